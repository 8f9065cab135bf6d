# shellcheck shell=bash disable=SC2034,SC2154 # It shares its variables with scripts/cluster.
# The parts of a cluster, the hosts they are on and the files they need there. Sourced by scripts/cluster, which owns the
# commands; what happens on a host is in host.sh. Sets: cluster, dir, pki, drain_ms, url, names, role, file, host, model,
# weights, head_of.

say() { printf '%s\n' "$*" >&2; }

die() {
  say "cluster: $*"
  exit 1
}

# Text as one word of any POSIX shell.
quoted() {
  local word
  for word in "$@"; do printf " '%s'" "${word//\'/\'\\\'\'}"; done
}

# By host: its architecture, the path of the directory there, and the SHA-256 of its binary. By architecture: the binary for
# it, where one was given.
declare -A arch=() home=() binaries=() binary_sum=()

# Settings of the shell would be those of the parts on this machine alone; only how much is logged may be said so.
logging=()
if [[ -n "${SHOAL_LOG:-}" ]]; then logging+=("SHOAL_LOG=$SHOAL_LOG"); fi
if [[ -n "${SHOAL_LOG_FORMAT:-}" ]]; then logging+=("SHOAL_LOG_FORMAT=$SHOAL_LOG_FORMAT"); fi
unset "${!SHOAL__@}" SHOAL_CONFIG

ssh_options=(-o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=15)

# on HOST VERB ARGUMENT...: runs host.sh there. stdin is only for `put`; the lock (9) is for nobody else.
on() {
  local where="$1" status=0
  shift
  if [[ "$where" == . ]]; then
    bash "$here/cluster.d/host.sh" "$dir" "$@" 9>&- || status=$?
  else
    ssh "${ssh_options[@]}" -- "$where" "bash -c$(quoted "$host_code" host.sh "$dir" "$@")" 9>&- || status=$?
    if [[ $status == 255 ]]; then die "cannot reach $where by ssh; this must work without a question: ssh $where true"; fi
  fi
  return "$status"
}

# As `on`, without stdin.
tell() { on "$@" </dev/null; }

at() { if [[ "$1" == . ]]; then echo "this machine"; else echo "$1"; fi; }

read_plan() {
  local plan kind a b c d e f
  plan="$("$shoal" plan --config "$config")" || exit 1
  names=()
  declare -gA role file host model weights head_of
  while IFS=$'\t' read -r kind a b c d e f; do
    case "$kind" in
      cluster) cluster="$a" dir="$b" pki="$c" drain_ms="$d" ;;
      router) role[$a]=router file[$a]="$b" host[$a]="$c" url="$d" model[$a]=- weights[$a]=- head_of[$a]=- router="$a" ;;
      worker)
        names+=("$a") role[$a]=worker file[$a]="$b" host[$a]="$c" model[$a]="$d" weights[$a]="$e" head_of[$a]="$f"
        ;;
    esac
  done <<<"$plan"
  workers=("${names[@]}")
  # The router first: workers dial it. Whoever stops or rolls takes another order.
  names=("$router" "${names[@]}")
  # shellcheck disable=SC2088 # As in host.sh.
  case "$dir" in
    "~/"*) local_dir="$HOME/${dir#"~/"}" ;;
    *) local_dir="$dir" ;;
  esac
  if [[ "$pki" == - ]]; then pki="$local_dir/pki"; fi
  pki="$(realpath -m -- "$pki")"
  host_code="$(<"$here/cluster.d/host.sh")"
}

# Whether worker $1 is a stage of a split model that another one, its head, dials. The router knows it from that one alone.
is_stage() { [[ "${head_of[$1]}" != - && "${head_of[$1]}" != "$1" ]]; }

hosts_of() {
  local name
  for name in "$@"; do printf '%s\n' "${host[$name]}"; done | sort -u
}

# Makes the authority and the certificates that are missing. The authority's key stays here.
ensure_certificates() {
  local name
  if [[ ! -f "$pki/ca.pem" ]]; then
    "$shoal" cert init --dir "$pki" --cluster "$cluster" >/dev/null || exit 1
    say "made the authority of cluster $cluster in $pki; its key, ca.key, stays there"
  fi
  for name in "${names[@]}"; do
    if [[ -f "$pki/${file[$name]}.pem" && -f "$pki/${file[$name]}.key" ]]; then continue; fi
    if [[ ! -f "$pki/ca.key" ]]; then
      die "${role[$name]} $name has no certificate in $pki, and the authority's key is elsewhere: issue it there with" \
        "\`shoal cert issue --dir PKI --role ${role[$name]} --name $name\` and copy its two files here"
    fi
    "$shoal" cert issue --dir "$pki" --role "${role[$name]}" --name "$name" >/dev/null || exit 1
    say "issued a certificate for ${role[$name]} $name"
  done
}

sum() { sha256sum <"$1" | cut -d' ' -f1; }

# The binary for host $1, empty where there is none.
binary_for() {
  local given="${binaries[${arch[$1]}]:-}"
  if [[ "$1" == . || (-z "$given" && "${arch[$1]}" == "$(uname -m)") ]]; then echo "$shoal"; else echo "$given"; fi
}

# prepare HOST NAME...: what the parts need is there afterwards, or there is a sentence about it.
prepare() {
  local where="$1" name binary version
  shift
  binary="$(binary_for "$where")"
  if [[ -z "$binary" ]]; then
    die "$where is ${arch[$where]} and $shoal is for $(uname -m): build shoal on a machine like it and say" \
      "--binary ${arch[$where]}=PATH"
  fi
  binary_sum[$where]="$(sum "$binary")"
  if [[ "$where" != . ]]; then
    copy "$where" bin/shoal 755 "$binary"
    copy "$where" cluster.toml 600 "$config"
    copy "$where" pki/ca.pem 644 "$pki/ca.pem"
    for name in "$@"; do
      copy "$where" "pki/${file[$name]}.pem" 644 "$pki/${file[$name]}.pem"
      copy "$where" "pki/${file[$name]}.key" 600 "$pki/${file[$name]}.key"
    done
    version="$(tell "$where" run "${home[$where]}/bin/shoal" --version 2>&1)" ||
      die "shoal does not run on $where: ${version:-no reason given}; build it on a machine like it and say" \
        "--binary ${arch[$where]}=PATH"
  fi
  for name in "$@"; do check "$where" "$name"; done
}

# copy HOST NAME MODE FILE, unless it is there already.
copy() {
  if [[ "$(tell "$1" sums "$2")" == "$(sum "$4")" ]]; then return; fi
  on "$1" put "$2" "$3" <"$4" || die "cannot write ${home[$1]}/$2 on $1"
}

# Whether part $2 finds on host $1 what it needs: settings, certificate, model files.
check() {
  local where="$1" name="$2" said flags=(--router)
  if [[ "${role[$name]}" == worker ]]; then flags=(--worker "$name"); fi
  shoal_on "$where" check "${flags[@]}"
  if said="$(tell "$where" run "${command[@]}" 2>&1 >/dev/null)"; then return; fi
  say "cluster: ${role[$name]} $name cannot start on $(at "$where"):"
  say "    ${said//$'\n'/$'\n    '}"
  if [[ "$where" != . && "${weights[$name]}" != - ]]; then
    say "a model is fetched there, and its path printed, by:  ssh $where ${home[$where]}/bin/shoal pull ORG/NAME"
    say "In cluster.toml a relative path begins at ${home[$where]} there; an absolute one, or one under ~/, says what it means."
  fi
  exit 1
}

# Sets command to shoal's command line on host $1, with its certificates. What it keeps is the cluster's own, so that two of
# them share nothing, unless the settings say where.
shoal_on() {
  local where="$1" subcommand="$2" bin="$shoal" settings="$config" certificates="$pki"
  shift 2
  if [[ "$where" != . ]]; then
    bin="${home[$where]}/bin/shoal" settings="${home[$where]}/cluster.toml" certificates="${home[$where]}/pki"
  fi
  command=(env "SHOAL__CLUSTER__PKI=$certificates" "XDG_DATA_HOME=${home[$where]}/data" "${logging[@]}"
    "$bin" "$subcommand" --config "$settings" "$@")
}

# Of which binary, settings and certificate a process of part $1 would be now.
stamp_of() {
  printf '%s %s %s' "${binary_sum[${host[$1]}]}" "$(sum "$config")" "$(sum "$pki/${file[$1]}.pem")" | sha256sum | cut -c1-16
}

start() {
  local name="$1" where="${host[$1]}" launcher=setsid flags=()
  if [[ "${role[$name]}" == worker ]]; then flags=(--name "$name"); fi
  # A unit's name takes neither a slash nor a percent sign.
  if [[ -n "$systemd" ]]; then launcher="shoal-${cluster//\//-}-${file[$name]//%2F/-}"; fi
  shoal_on "$where" "${role[$name]}" "${flags[@]}"
  tell "$where" start "${file[$name]}" "$(stamp_of "$name")" "$launcher" "${command[@]}" ||
    die "$name could not be started on $(at "$where")"
}

# Sets state, pid, age and stamp of part $1.
look() {
  local _name
  IFS=$'\t' read -r _name state pid age stamp < <(tell "${host[$1]}" states "${file[$1]}") || die "$1 cannot be looked at"
}

signal() { tell "${host[$1]}" signal "${file[$1]}" "$2"; }

forget() { tell "${host[$1]}" forget "${file[$1]}"; }

# ended SECONDS NAME...: waits until none of them runs; prints those that do at the end, and fails.
ended() {
  local until=$((SECONDS + $1)) name left=() all
  shift
  all=("$@")
  while :; do
    left=()
    for name in "${all[@]}"; do
      look "$name"
      if [[ "$state" == running ]]; then left+=("$name"); fi
    done
    if [[ ${#left[@]} == 0 ]]; then return 0; fi
    if ((SECONDS >= until)); then
      printf '%s\n' "${left[@]}"
      return 1
    fi
    all=("${left[@]}")
    sleep 0.2
  done
}

# Asks the router, on its own machine: `status --lines` or an order. shoal talks HTTP, so that curl is not needed.
ask_router() {
  local where="${host[$router]}" bin="$shoal"
  if [[ "$where" != . ]]; then bin="${home[$where]}/bin/shoal"; fi
  tell "$where" run "$bin" "$@" --url "$url"
}

# Asks every host what it is. The first that happens to a host: it must answer.
find_homes() {
  local where
  for where in $(hosts_of "${names[@]}"); do
    IFS=$'\t' read -r "arch[$where]" "home[$where]" < <(tell "$where" who || true) || true
    if [[ -z "${home[$where]:-}" ]]; then die "$(at "$where") cannot be looked at: see above"; fi
  done
}
