#!/usr/bin/env bash
# setup.sh [python] [node]
#
# Puts unmodified SDKs into target/sdk: python (a virtual environment) and node (a node_modules
# folder), both unless one is named, with exactly what the lock files beside this script name.
#
# It may be called before every test run: nothing is done for a language whose lock file is the one it
# was made from, and callers at the same time wait for each other. Needs python3 (3.10 or later, with
# venv), node with npm and, the first time, their package indexes.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$here/../../target/sdk
mkdir -p "$out"
exec 9>"$out/lock"
flock 9

# there LANGUAGE WANTED: whether it was made from what is wanted now
there() {
  [[ -f $out/$1.stamp && $(<"$out/$1.stamp") == "$2" ]]
}

set_up_python() {
  local wanted
  # A python3 that was replaced by another makes another environment, too.
  wanted=$(python3 -c 'import sys; print(sys.version)' && cat "$here/python/requirements.txt")
  if there python "$wanted" && "$out/python/bin/python" -c '' 2>&-; then return; fi
  rm -rf "$out/python"
  python3 -m venv "$out/python"
  "$out/python/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
    --only-binary :all: --require-hashes --requirement "$here/python/requirements.txt" >&2
  # Last, so that a set-up that was cut short starts again.
  printf '%s\n' "$wanted" >"$out/python.stamp"
}

set_up_node() {
  local wanted
  wanted=$(node --version && cat "$here/node/package-lock.json")
  if there node "$wanted"; then return; fi
  rm -rf "$out/node"
  mkdir -p "$out/node"
  cp "$here/node/package.json" "$here/node/package-lock.json" "$out/node"
  (cd "$out/node" && npm ci --ignore-scripts --no-audit --no-fund --silent >&2)
  printf '%s\n' "$wanted" >"$out/node.stamp"
}

if (($# == 0)); then set -- python node; fi
for language; do "set_up_$language"; done
