# shellcheck shell=bash disable=SC2034,SC2154 # It shares its variables with scripts/cluster.
# What the router says of the parts, waiting for them, and the table of status. Sourced by scripts/cluster; changes nothing.

# What the router says, in lines; nothing where it does not answer. Whoever else has its port is not asked.
view() {
  look "$router"
  if [[ "$state" == running ]]; then ask_router status --lines 2>/dev/null || true; fi
}

# How the line of part $1 begins in a view.
kind_of() { if is_stage "$1"; then echo stage; else echo worker; fi; }

# Field $3 of part $2 in view $1: 3 state, 4 incarnation, 5 model ... as `shoal status --lines` writes them.
field() { awk -F'\t' -v kind="$(kind_of "$2")" -v name="$2" -v n="$3" '$1 == kind && $2 == name { print $n }' <<<"$1"; }

# How many workers of model $2 are ready in view $1.
ready_workers() { awk -F'\t' -v model="$2" '$1 == "worker" && $3 == "ready" && $5 == model' <<<"$1" | wc -l; }

# Tells each trouble of view $1 once, if it is not older than $2 seconds.
declare -A told=()
tell_troubles() {
  local kind event worker address cause _times ago why advice name
  for name in "${workers[@]}"; do
    is_stage "$name" || continue
    why="$(field "$1" "$name" 10)"
    [[ -n "$why" && "$why" != - && -z "${told[$name$why]:-}" ]] || continue
    told[$name$why]=yes
    say "${head_of[$name]} has not got its stage $name: $why"
  done
  while IFS=$'\t' read -r kind event worker address cause _times ago why advice; do
    [[ "$kind" == incident && "$cause" != shutdown && "$ago" -le "$2" ]] || continue
    [[ -z "${told[$event$worker$cause]:-}" ]] || continue
    told[$event$worker$cause]=yes
    say "the router $event $worker from $address: $why"
    if [[ "$advice" != - ]]; then say "    -> $advice"; fi
  done <<<"$1"
}

# await NAME...: until each is ready; fails with a sentence when one ends, or time is up. before[NAME] is the life of a worker
# that is not meant any more.
declare -A before=()
await() {
  local began=$SECONDS now name left=("$@") still spoke=$SECONDS
  while :; do
    now="$(view)" still=()
    for name in "${left[@]}"; do
      is_ready "$name" "$now" || still+=("$name")
    done
    left=("${still[@]}")
    if [[ ${#left[@]} == 0 ]]; then return 0; fi
    for name in "${left[@]}"; do
      look "$name"
      if [[ "$state" != running ]]; then
        say "$name ended while it was waited for. The end of its log on $(at "${host[$name]}"):"
        tell "${host[$name]}" log "${file[$name]}" 15 >&2
        return 1
      fi
    done
    if ((SECONDS - began >= within)); then
      say "not ready within $within s: ${left[*]} (see scripts/cluster logs NAME)"
      return 1
    fi
    tell_troubles "$now" $((SECONDS - began + 1))
    if ((SECONDS - spoke >= 5)); then say "waiting for: ${left[*]}"; spoke=$SECONDS; fi
    sleep 0.3
  done
}

is_ready() {
  if [[ "${role[$1]}" == router ]]; then [[ "$2" == router* ]]; return; fi
  local wanted=ready
  if is_stage "$1"; then wanted=connected; fi
  [[ "$(field "$2" "$1" 3)" == "$wanted" && "$(field "$2" "$1" 4)" != "${before[$1]:-}" ]]
}

# Prints rows of fields apart by tabs as a table.
table() {
  awk -F'\t' '{ for (i = 1; i <= NF; i++) { cell[NR, i] = $i; if (length($i) > wide[i]) wide[i] = length($i) } fields[NR] = NF }
    END { for (r = 1; r <= NR; r++) { line = ""
      for (i = 1; i <= fields[r]; i++) line = line sprintf("%-" wide[i] "s  ", cell[r, i])
      sub(/ +$/, "", line); print line } }'
}

age() {
  local s="$1"
  case "$s" in
    -) echo - ;;
    ? | ?? | 1[01]?) echo "${s}s" ;;
    *)
      if ((s < 7200)); then
        echo "$((s / 60))min"
      elif ((s < 172800)); then
        echo "$((s / 3600))h"
      else
        echo "$((s / 86400))d"
      fi
      ;;
  esac
}

# The table of the chosen parts. Fails where one does not run or is not ready.
show() {
  local now name good=0 rows
  now="$(view)"
  rows=$'NAME\tROLE\tHOST\tPID\tUP\tPROCESS\tSTATE\tMODEL\tLAYERS\tRUNNING\tWAITING\tKV\tTOKENS/S'
  for name in "${chosen[@]}"; do
    look "$name"
    if [[ "$state" != running ]] || ! is_ready "$name" "$now"; then good=1; fi
    rows+=$'\n'"$(printf '%s\t' "$name" "${role[$name]}" "$(at "${host[$name]}")" "$pid" "$(age "$age")" "$state")"
    rows+="$(row_of "$name" "$now")"
  done
  table <<<"$rows"
  tell_troubles "$now" 600
  return "$good"
}

# What the router says of part $1 in view $2: state, model, layers, running, waiting, KV, tokens/s.
row_of() {
  if [[ "${role[$1]}" == router ]]; then
    if is_ready "$1" "$2"; then printf 'answers'; else printf 'silent'; fi
    return
  fi
  awk -F'\t' -v kind="$(kind_of "$1")" -v name="$1" -v model="${model[$1]}" '
    $1 == "stage" && kind == "stage" && $2 == name { printf "%s\t%s\t%s\t-\t-\t-\t-", $3, $5, $6; found = 1 }
    $1 == "worker" && kind == "worker" && $2 == name { printf "%s\t%s\t%s\t%s\t%s\t%s\t%s", $3, $5, $6, $7, $8, $9, $10; found = 1 }
    END { if (!found) printf "away\t%s", model }' <<<"$2"
}
