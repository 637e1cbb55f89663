#!/bin/sh
# Creates the environment of the peers (NNCodec and ZipNN), apart from tqcodec's: NNCodec needs
# numpy 1 and builds C++. Usage: benchmarks/workers/setup_nncodec.sh ENV
set -eu
[ $# -eq 1 ] || { echo "usage: $0 ENV" >&2; exit 2; }

"${PYTHON:-python3}" -m venv "$1"
# torch is held at the project's version; a build for the CPU is enough.
"$1/bin/python" -m pip install \
    "nncodec==2.1.3" "zipnn==0.5.4" "torch==2.13.0" "ml_dtypes<0.6" safetensors
for codec in nncodec zipnn; do
    PYTHONPATH="$(dirname "$0")/../.." "$1/bin/python" -m "benchmarks.workers.$codec" </dev/null
done
echo "ready: python -m benchmarks.compare --nncodec-python $1/bin/python ..."
