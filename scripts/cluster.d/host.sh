#!/usr/bin/env bash
# The half of scripts/cluster that runs on the hosts: files, processes and logs below one directory. The other half runs it
# here, or hands it to `bash -c` over ssh; it is never installed. Needs Linux (/proc), bash and coreutils.
#
#   host.sh DIRECTORY VERB ARGUMENT...
#
# Below DIRECTORY: bin/shoal, cluster.toml, pki/ (copies, on hosts that are not the operator's), run/NAME.pid, log/NAME.log.
set -euo pipefail
umask 077

# shellcheck disable=SC2088 # The tilde is not for the shell: it came as text, and means the home directory of this host.
case "$1" in
  "~/"*) dir="$HOME/${1#"~/"}" ;;
  *) dir="$1" ;;
esac
verb="$2"
shift 2

# A log that has grown over this at the start of its process becomes log/NAME.log.1.
max_log=$((32 << 20))

# When process $1 began, in clock ticks since boot. Fails where there is none, or only its corpse.
began() {
  local stat
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  # The name in parentheses may hold anything; the state is the first field after it, the start the 20th.
  read -r -a stat <<<"${stat##*) }"
  [[ "${stat[0]}" != [ZX] ]] && printf '%s\n' "${stat[19]}"
}

boot() { cat /proc/sys/kernel/random/boot_id; }

# Sets pid, since and stamp from run/$1.pid, and state to running, stale (the file is there, the process is not: it died, or
# the machine was started again, and the number may be another process's by now) or stopped.
look() {
  local ticks boot_id now
  state=stopped pid=- since=- stamp=-
  { read -r pid ticks boot_id since stamp <"$dir/run/$1.pid"; } 2>/dev/null || return 0
  now="$(began "$pid" || true)"
  if [[ -n "$now" && "$now" == "$ticks" && "$boot_id" == "$(boot)" ]]; then state=running; else state=stale; fi
}

# What a process is before it becomes shoal: it says who it is, sends its output to the log and executes the command.
# shellcheck disable=SC2016 # For the inner shell.
become='
  pid_file="$1" log="$2" stamp="$3"
  shift 3
  exec </dev/null >>"$log" 2>&1
  read -r stat </proc/$$/stat
  read -r -a stat <<<"${stat##*) }"
  printf "%s %s %s %s %s\n" "$$" "${stat[19]}" "$(</proc/sys/kernel/random/boot_id)" "$(date +%s)" "$stamp" >"$pid_file.new"
  mv "$pid_file.new" "$pid_file"
  exec "$@"'

# start NAME STAMP LAUNCHER COMMAND...: LAUNCHER is `setsid`, or the name of a unit for `systemd-run --user`.
start() {
  local name="$1" new_stamp="$2" launcher="$3" log="$dir/log/$1.log" pid_file="$dir/run/$1.pid"
  shift 3
  mkdir -p "$dir/run" "$dir/log"
  look "$name"
  if [[ "$state" == running ]]; then return 0; fi
  if [[ -f "$log" && "$(stat -c %s "$log")" -gt "$max_log" ]]; then mv "$log" "$log.1"; fi
  rm -f "$pid_file"
  if [[ "$launcher" == setsid ]]; then
    setsid bash -c "$become" "$name" "$pid_file" "$log" "$new_stamp" "$@" </dev/null >/dev/null 2>&1 &
  else
    systemd-run --user --quiet --collect --unit="$launcher" --property=KillMode=control-group \
      bash -c "$become" "$name" "$pid_file" "$log" "$new_stamp" "$@"
  fi
  for _ in {1..200}; do
    [[ -f "$pid_file" ]] && return 0
    sleep 0.05
  done
  echo "$name did not start: see $log" >&2
  return 1
}

# put FILE MODE: stdin becomes the file, whole or not at all. A running program keeps the one it has.
put() {
  local file="$dir/$1"
  mkdir -p "$(dirname "$file")"
  cat >"$file.new"
  chmod "$2" "$file.new"
  mv "$file.new" "$file"
}

case "$verb" in
  # The machine's architecture and where the directory is.
  who) printf '%s\t%s\n' "$(uname -m)" "$dir" ;;
  put) put "$@" ;;
  # The SHA-256 of each file, or `-`.
  sums)
    for file in "$@"; do
      if [[ -f "$dir/$file" ]]; then sha256sum <"$dir/$file" | cut -d' ' -f1; else echo -; fi
    done
    ;;
  start) start "$@" ;;
  # state, pid, seconds since the start and stamp of each.
  states)
    now="$(date +%s)"
    for name in "$@"; do
      look "$name"
      age=-
      if [[ "$state" == running ]]; then age=$((now - since)); fi
      printf '%s\t%s\t%s\t%s\t%s\n' "$name" "$state" "$pid" "$age" "$stamp"
    done
    ;;
  # signal NAME SIGNAL: only to a process that is the one that was started.
  signal)
    look "$1"
    if [[ "$state" == running ]]; then kill -s "$2" "$pid" 2>/dev/null || true; fi
    ;;
  forget)
    look "$1"
    if [[ "$state" != running ]]; then rm -f "$dir/run/$1.pid"; fi
    ;;
  # log NAME LINES [follow]
  log)
    if [[ ! -f "$dir/log/$1.log" ]]; then
      echo "there is no log yet" >&2
      exit 0
    fi
    if [[ "${3:-}" == follow ]]; then exec tail -n "$2" -F "$dir/log/$1.log"; else exec tail -n "$2" "$dir/log/$1.log"; fi
    ;;
  run) exec "$@" ;;
  *)
    echo "no such verb: $verb" >&2
    exit 2
    ;;
esac
