#!/usr/bin/env bash
# Runs the tests, or those that are named, and prints which part of the package's lines and branches they have gone
# through, folder by folder. Child processes count too, unless they are killed. .coverage-html/ shows what is left.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
export OMP_NUM_THREADS=1
$python -m coverage erase
$python -m coverage run -m pytest -q --numprocesses auto --dist loadfile "$@"
$python -m coverage combine --quiet
$python -m coverage html --quiet --directory .coverage-html
$python -m coverage json --quiet -o - | $python tests/covered.py
