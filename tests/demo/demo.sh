#!/usr/bin/env bash
# The main job, shown on a control plane of its own: a real etcd, kube-apiserver and
# kube-controller-manager, the chart installed by Helm, and the operator running under the chart's
# own ServiceAccount.
#
#   demo.sh up     starts everything, shows it, leaves it running
#   demo.sh down   stops it and removes its state
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
demo=$root/target/demo
tools=$root/target/tools
system=claviger-system

bold='' dim='' plain=''
if [[ -t 1 ]]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; fi

step() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
say() { printf '  %s\n' "$*"; }
show() { # the command, then what it prints
  printf '  %s$ %s%s\n' "$dim" "$*" "$plain"
  "$@" 2>&1 | sed 's/^/    /' || true
}
die() {
  printf 'demo: %s\n' "$*" >&2
  exit 1
}

# A name that can be typed: kubectl and claviger as on a workstation.
export KUBECONFIG=$demo/kubeconfig
PATH=$tools:$demo/bin:$PATH

down() {
  local name pid
  for name in server controller controlplane; do
    if [[ -f $demo/$name.pid ]]; then
      pid=$(<"$demo/$name.pid")
      # The number may belong to another process by now: ask for the name as well.
      if [[ $(ps -p "$pid" -o comm= 2>/dev/null) =~ ^(claviger|controlplane)$ ]]; then
        kill "$pid" 2>/dev/null || true
        for _ in {1..100}; do
          kill -0 "$pid" 2>/dev/null || break
          sleep 0.1
        done
        kill -9 "$pid" 2>/dev/null || true
      fi
    fi
  done
  rm -rf "$demo"
}

# waits_for WHAT SECONDS COMMAND...
waits_for() {
  local what=$1 limit=$2
  shift 2
  local end=$((SECONDS + limit))
  while ((SECONDS < end)); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.2
  done
  die "waited $limit s in vain for $what; see $demo/*.log"
}

value() { # value SECRET ENTRY: what stands there, of a key only enough to tell it from another
  kubectl -n shop get secret "$1" -o json |
    python3 -c 'import base64,json,sys
data = json.load(sys.stdin).get("data", {})
text = base64.b64decode(data[sys.argv[1]]).decode()
print(text[:6] + "…" + text[44:48] + "…" if len(text) > 50 else "?")' "$2"
}

entries() { # the entries of the app's key Secret
  kubectl -n shop get secret shop-function-keys -o json |
    python3 -c 'import base64,json,sys
data = json.load(sys.stdin)["data"]
for entry in sorted(data):
    text = base64.b64decode(data[entry]).decode()
    print(f"    {entry:<42} {text[:6]}…{text[44:48]}…")'
}

letters() { # letters SECRET ENTRY...: entries beside each other, of each value the first letters
  kubectl -n shop get secret "$1" -o json |
    python3 -c 'import base64,json,sys
data = json.load(sys.stdin).get("data", {})
for entry in sys.argv[1:]:
    text = base64.b64decode(data[entry]).decode() if entry in data else ""
    print(f"    {entry:<22}", text[:4] + "…" if text else "(none)")' "${@:2}"
}

newest_object() { # newest_object SECRET: the object of the newest version of a vault's secret
  kubectl -n shop get secrets -o json \
    -l claviger.dev/content=vault-secret-version,claviger.dev/vault=payments |
    python3 -c 'import json,sys
meta = [item["metadata"] for item in json.load(sys.stdin)["items"]]
said = lambda meta: json.loads(meta["annotations"]["claviger.dev/attributes"])["name"]
print([one["name"] for one in meta if said(one) == sys.argv[1]][-1])' "$1"
}

ciphertext() { # ciphertext OBJECT: what stands in it, long lines cut
  kubectl -n shop get secret "$1" -o json |
    python3 -c 'import json,sys
cut = lambda text: text if len(text) <= 80 else text[:79] + "…"
secret = json.load(sys.stdin)
print("    data:")
for key, text in secret["data"].items():
    print("      " + cut(f"{key}: {text}"))
print("    immutable:", str(secret["immutable"]).lower())
print("    metadata.annotations:")
for key, text in sorted(secret["metadata"]["annotations"].items()):
    print("      " + cut(f"{key}: {text}"))
print("    type:", secret["type"])'
}

up() {
  cd "$root"
  command -v python3 >/dev/null || die "python3 is needed to show values shortened"
  down
  umask 077
  mkdir -p "$demo/bin"

  step "1. A control plane"
  say "building claviger (the first time takes some minutes) …"
  cargo build --quiet --locked
  ln -sf "$root/target/debug/claviger" "$demo/bin/claviger"
  ln -sf "$root/target/debug/claviger" "$demo/bin/kubectl-claviger"
  say "installing azure-identity from PyPI, unmodified …"
  tests/sdk/setup.sh python
  say "starting etcd, kube-apiserver and kube-controller-manager …"
  setsid "$tools/controlplane" --dir "$demo/state" --kubeconfig "$demo/kubeconfig" --keep \
    >"$demo/controlplane.out" 2>"$demo/controlplane.log" </dev/null &
  echo $! >"$demo/controlplane.pid"
  waits_for "the control plane" 60 grep -q '^ready' "$demo/controlplane.out"
  say "it answers at $(sed -n 's/^ready //p' "$demo/controlplane.out")"

  step "2. Claviger, as a cluster gets it"
  # No kubelet runs here: both halves are started by hand below, with the chart's ServiceAccount.
  show helm install claviger charts/claviger --namespace "$system" --create-namespace \
    --set replicaCount=0,server.replicaCount=0 --hide-notes
  kubectl wait --for=condition=established --timeout=30s \
    crd/functionkeys.claviger.dev crd/roleassignments.claviger.dev crd/secretvaults.claviger.dev >/dev/null
  kubeconfig_of claviger >"$demo/controller.kubeconfig"
  kubeconfig_of claviger-server >"$demo/server.kubeconfig"
  doors=$(free_port)
  half controller --host-reload-delay 3s --restart-delay 1s --ring-grace 1s --domain localhost
  half server --domain localhost --server-name localhost --server-port "$doors" --listen 127.0.0.1:"$doors"
  waits_for "the operator to lead" 60 grep -q ' leading' "$demo/controller.log"
  waits_for "the doors" 60 grep -q 'serving the doors' "$demo/server.log"
  say "controller and server run with the rights of their ServiceAccounts, and no others"

  step "3. Keys are declared; nobody writes a value"
  show kubectl apply -f examples/
  kubectl -n shop wait --for=condition=Ready --timeout=60s functionkeys,secretvaults,roleassignments --all >/dev/null
  show kubectl -n shop get functionkeys
  say "what the Functions host of the app reads (values shortened):"
  entries
  say "what the client reads: ORDERS_KEY = $(value orders-client ORDERS_KEY)"

  step "4. A rotation that nobody notices"
  show kubectl claviger rotate orders-default --namespace shop
  waits_for "the new value" 30 has_previous
  say "both values stand in the app's Secret, so the host accepts both:"
  entries
  say "the client still has the old value until every host has surely seen the new one (3 s here, 90 s by default) …"
  waits_for "the client to get it" 60 overlapping
  say "now: ORDERS_KEY = $(value orders-client ORDERS_KEY), and its Deployment was restarted at $(restarted)"
  show kubectl -n shop get functionkey orders-default
  say "the previous value works until the overlap ends; then it is removed by itself"

  step "5. A vault: what it holds is encrypted, what pods need is synced"
  show kubectl -n shop get secretvaults
  show kubectl -n shop get secrets -l claviger.dev/vault=payments
  local object before
  object=$(newest_object db-password)
  say "whoever may read Secrets sees this of a version of the password: a name, dates, and ciphertext"
  printf '  %s$ kubectl -n shop get secret %s -o yaml%s\n' "$dim" "$object" "$plain"
  ciphertext "$object"
  say "and what the vault writes for the pods, which is a Secret like any other (values shortened):"
  letters payments-env DB_PASSWORD DB_PASSWORD_PREVIOUS PROVIDER_API_KEY

  step "6. Its password turns, with an overlap"
  show kubectl claviger rotate secretvault/payments --secret db-password --namespace shop
  waits_for "the new password" 30 has_previous_password
  letters payments-env DB_PASSWORD DB_PASSWORD_PREVIOUS
  waits_for "the restart" 30 payments_restarted
  say "one write, one restart of its Deployment; the previous version ends by itself:"
  show kubectl claviger status secretvault/payments --namespace shop

  step "7. Its key ring turns, and everything is re-wrapped"
  before=$(kubectl -n shop get secret payments-env -o jsonpath='{.metadata.resourceVersion}')
  show kubectl claviger rotate secretvault/payments --namespace shop
  waits_for "the re-wrap" 30 rewrapped
  show kubectl -n shop get secretvault payments \
    -o jsonpath='{range .status.keyRing.versions[*]}ring version {.version}: {.secrets} objects{"\n"}{end}'
  if [[ $before == "$(kubectl -n shop get secret payments-env -o jsonpath='{.metadata.resourceVersion}')" ]]; then
    say "nothing is under version 1 any more, so it is destroyed; no Secret of a pod was touched"
  else
    die "a turn of the ring has touched payments-env"
  fi

  step "8. An application proves who it is, and a RoleAssignment says what it may do"
  say "what a labelled pod gets by itself, a workstation gets by this:"
  printf '  %s$ eval "$(kubectl claviger login --serviceaccount report --namespace shop --authority https://localhost:%s)"%s\n' \
    "$dim" "$doors" "$plain"
  local login
  login=$(kubectl claviger login --serviceaccount report --namespace shop \
    --authority "https://localhost:$doors" --folder "$demo/report")
  say "a Python program with azure-identity as it is (examples/identity/report.py):"
  report "403: "
  show kubectl apply -f examples/identity/role-assignment.yaml
  kubectl -n shop wait --for=condition=Ready --timeout=30s roleassignment/report-reads-payments >/dev/null
  waits_for "the role" 30 may_report
  report "I may read"
  show kubectl claviger who-can get secretvaults/payments --namespace shop
  say "each access is one line of the audit:"
  tail -n 1 "$demo/server.out" | sed 's/^/    /'

  step "9. What is wrong is refused at the door"
  show kubectl apply -f "examples/refused/overlap-longer-than-interval.yaml"
  show kubectl apply -f "examples/refused/vault-guessable-password.yaml"
  say "and values are checked without a cluster:"
  printf '  %s$ claviger key mint --scope master | claviger key verify --scope function%s\n' "$dim" "$plain"
  claviger key mint --scope master | claviger key verify --scope function | sed 's/^/    /' || true

  {
    echo "export KUBECONFIG='$demo/kubeconfig'"
    echo "export PATH='$tools:$demo/bin':\"\$PATH\""
  } >"$demo/env"

  step "Look around"
  say "source target/demo/env"
  say "kubectl -n shop get functionkeys,secretvaults -o wide"
  say "kubectl explain functionkey.spec.rotation"
  say "kubectl explain secretvault.spec.secrets"
  say "kubectl claviger status --namespace shop"
  say "kubectl claviger access serviceaccount:shop/report"
  say "logs: target/demo/controller.log, target/demo/server.log; the audit: target/demo/server.out"
  say "stop it with: make demo-down"
}

report() { # report END: the program, which has to end so
  printf '  %s$ report.py shop payments%s\n' "$dim" "$plain"
  run_report >"$demo/report.out" 2>&1 || true
  sed 's/^/    /' "$demo/report.out"
  if ! grep -q "^$1" "$demo/report.out"; then die "report.py did not end with $1"; fi
}

run_report() (
  eval "$login"
  exec "$root/target/sdk/python/bin/python" -I "$root/examples/identity/report.py" shop payments
)

may_report() {
  run_report 2>&1 | grep -q 'may read'
}

has_previous() {
  kubectl -n shop get secret shop-function-keys -o jsonpath='{.data}' | grep -q previous-
}

overlapping() {
  [[ $(kubectl -n shop get functionkey orders-default -o jsonpath='{.status.rotation.phase}') == Overlap && -n $(restarted) ]]
}

has_previous_password() {
  kubectl -n shop get secret payments-env -o jsonpath='{.data}' | grep -q DB_PASSWORD_PREVIOUS
}

payments_restarted() {
  kubectl -n shop get deployment payments -o jsonpath='{.spec.template.metadata.annotations}' | grep -q restarted-at &&
    kubectl -n shop get secretvault payments -o jsonpath='{.status.declared[*].state}' | grep -q Overlap
}

rewrapped() {
  [[ $(kubectl -n shop get secretvault payments -o jsonpath='{.status.keyRing.versions[*].version}') == 2 ]]
}

restarted() {
  kubectl -n shop get deployment web -o jsonpath='{.spec.template.metadata.annotations.claviger\.dev/restarted-at}'
}

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# half NAME FLAG...: starts the controller or the server
half() {
  setsid env -i PATH="$PATH" KUBECONFIG="$demo/$1.kubeconfig" "$demo/bin/claviger" "$1" \
    --system-namespace "$system" --admin-address 127.0.0.1:"$(free_port)" "${@:2}" \
    >"$demo/$1.out" 2>"$demo/$1.log" </dev/null &
  echo $! >"$demo/$1.pid"
}

# kubeconfig_of ACCOUNT: a kubeconfig with a token of a ServiceAccount of the chart
kubeconfig_of() {
  local token
  token=$(kubectl -n "$system" create token "$1" --duration 24h)
  TOKEN=$token python3 - "$demo/kubeconfig" <<'PY'
import json, os, re, sys
text = open(sys.argv[1]).read()
server = re.search(r"server: (\S+)", text).group(1)
ca = re.search(r"certificate-authority-data: (\S+)", text).group(1)
print(json.dumps({
    "apiVersion": "v1", "kind": "Config", "current-context": "demo",
    "clusters": [{"name": "demo", "cluster": {"server": server, "certificate-authority-data": ca}}],
    "users": [{"name": "demo", "user": {"token": os.environ["TOKEN"]}}],
    "contexts": [{"name": "demo", "context": {"cluster": "demo", "user": "demo"}}],
}))
PY
}

case ${1:-} in
up) up ;;
down) down ;;
*) die "say up or down" ;;
esac
