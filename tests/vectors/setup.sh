#!/usr/bin/env bash
# Puts a Python with exactly what requirements.txt names into target/python.
#
# It may be called before every test run: nothing is done when it is there and requirements.txt is
# the one it was made from, and callers at the same time wait for each other. Needs python3 (3.10 or
# later, with venv) and, the first time, the Python package index.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$here/../../target/python
stamp=$out/claviger.stamp

mkdir -p "$(dirname "$out")"
exec 9>"$out.lock"
flock 9

# A python3 that was replaced by another makes another environment, too.
wanted=$(python3 -c 'import sys; print(sys.version)' && cat "$here/requirements.txt")
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && "$out/bin/python" -c '' 2>&-; then
  exit 0
fi

rm -rf "$out"
python3 -m venv "$out"
"$out/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
  --only-binary :all: --require-hashes --requirement "$here/requirements.txt" >&2
# Last, so that a set-up that was cut short starts again.
printf '%s\n' "$wanted" >"$stamp"
