#!/usr/bin/env bash
# Builds wheel and sdist, and uses each from a fresh environment outside the checkout; the sdist without a compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Compiled is what is imported, as it is.
pip() { "$folder/$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "${@:2}"; }
for name in build wheel sdist; do python3 -m venv "$folder/$name"; done
pip build build
"$folder/build/bin/python" -m build --outdir "$folder" . > "$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
CC=false pip sdist "$folder"/*.tar.gz &
pip wheel "$folder"/*.whl
wait $! # with its exit status
cd "$folder"
# Without a compiler, and without one on the path, the wheel is what it was built as.
PATH=/nowhere "$folder/wheel/bin/python" "$root/tests/installed.py" "$(command -v cc > /dev/null && echo --native)"
"$folder/sdist/bin/python" "$root/tests/installed.py" --portable
