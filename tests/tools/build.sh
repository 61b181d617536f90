#!/usr/bin/env bash
# Builds the Go programs that tests and the demo run, into target/tools:
#
#   controlplane  etcd, kube-apiserver and kube-controller-manager in one process
#   kubectl       of the same Kubernetes release, from the same module
#   helm
#   kms-plugin    a Kubernetes KMS v2 plugin with its keys in a directory
#
# Usage: tests/tools/build.sh [NAME...]     all of them by default
#
# It may be called before every test run: a program is built only when it is
# missing or when what it is made of has changed, and callers at the same time
# wait for each other. Needs Go and, the first time, a Go module proxy; nothing
# else, not even a C compiler.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
out=$root/target/tools

# For each program: the module that pins it, the package, what that takes the
# first time on two cores, and the linker flags that tell it its version.
module() {
  case $1 in
    controlplane | kubectl) echo "$root/tests/controlplane" ;;
    helm) echo "$root/tests/tools" ;;
    kms-plugin) echo "$root/tests/kms-plugin" ;;
    *) fail "unknown program '$1': there are controlplane, kubectl, helm and kms-plugin" ;;
  esac
}

package() {
  case $1 in
    controlplane | kms-plugin) echo . ;;
    kubectl) echo k8s.io/kubernetes/cmd/kubectl ;;
    helm) echo helm.sh/helm/v4/cmd/helm ;;
  esac
}

estimate() {
  case $1 in
    controlplane) echo "about 6 minutes" ;;
    kubectl) echo "about a minute" ;;
    helm) echo "about 2 minutes" ;;
    kms-plugin) echo "about half a minute" ;;
  esac
}

version_flags() {
  local version minor library
  case $1 in
    controlplane | kubectl)
      version=$(pinned "$1" k8s.io/kubernetes)
      minor=${version#v1.}
      for library in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        printf -- '-X %s.%s ' \
          "$library" "gitVersion=$version" \
          "$library" gitMajor=1 \
          "$library" "gitMinor=${minor%%.*}" \
          "$library" gitCommit=none \
          "$library" gitTreeState=clean
      done
      ;;
    helm)
      printf -- '-X %s' "helm.sh/helm/v4/internal/version.version=$(pinned helm helm.sh/helm/v4)"
      ;;
    kms-plugin) ;;
  esac
}

# The version of a dependency, from the go.mod of the program's module.
pinned() {
  awk -v path="$2" '$1 == "require" { sub(/^require /, "") } $1 == path { print $2; exit }' "$(module "$1")/go.mod"
}

# A digest of all that goes into a program, this script's flags included.
inputs() {
  local dir
  dir=$(module "$1")
  (
    cd "$dir"
    go env GOVERSION GOOS GOARCH
    sha256sum go.mod go.sum "$root/tests/tools/build.sh" | cut -d ' ' -f 1
    case $1 in controlplane | kms-plugin) sha256sum -- *.go ;; esac
  ) | sha256sum | cut -d ' ' -f 1
}

is_current() {
  [ -x "$out/$1" ] && [ "$(cat "$out/.$1.inputs" 2>/dev/null)" = "$(inputs "$1")" ]
}

build() {
  local name=$1 digest started=$SECONDS
  digest=$(inputs "$name")
  say "building $name ($(estimate "$name") the first time, on two cores)"
  show_progress "$name" &
  progress=$!
  (
    cd "$(module "$name")" &&
      CGO_ENABLED=0 go build -mod=readonly -buildvcs=false -trimpath \
        -ldflags "-s -w $(version_flags "$name")" \
        -o "$out/.$name.new" "$(package "$name")"
  ) || fail "$name could not be built"
  stop_progress
  # Renamed into place, so that one that is running is left alone.
  mv "$out/.$name.new" "$out/$name"
  echo "$digest" >"$out/.$name.inputs"
  say "built $name in $((SECONDS - started)) s"
}

# Somebody who watches gets a sign of life; a log does not need one.
show_progress() {
  local name=$1 started=$SECONDS
  [ -t 2 ] && [ -z "${CI:-}" ] || return 0
  while sleep 15 && kill -0 $$ 2>/dev/null; do
    say "still building $name: $((SECONDS - started)) s so far"
  done
}

progress=
stop_progress() {
  [ -z "$progress" ] || kill "$progress" 2>/dev/null || true
  progress=
}

say() { echo "tools: $*" >&2; }

fail() {
  say "$*"
  exit 1
}

main() {
  local name
  [ $# -gt 0 ] || set -- controlplane kubectl helm kms-plugin
  command -v go >/dev/null || fail "Go is missing: install Go 1.26 or newer"
  command -v flock >/dev/null || fail "flock is missing: install util-linux"

  local missing=()
  for name in "$@"; do
    module "$name" >/dev/null
    is_current "$name" || missing+=("$name")
  done
  [ ${#missing[@]} -gt 0 ] || return 0

  mkdir -p "$out"
  trap stop_progress EXIT
  exec 9>"$out/.lock"
  if ! flock --nonblock 9; then
    say "waiting for another build of the tools"
    flock 9
  fi
  for name in "${missing[@]}"; do
    is_current "$name" || build "$name" 9>&- # or else children hold the lock
  done
}

main "$@"
