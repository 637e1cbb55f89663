#!/usr/bin/env bash
# A fast part of the tests with the oldest versions that pyproject.toml admits.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
export OMP_NUM_THREADS=1 # threads of BLAS would wait for each other
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
# The floors, as they stand in pyproject.toml, that have wheels for this Python.
"$folder/bin/python" - pyproject.toml > "$folder/floors" << 'END'
import re, sys
text = open(sys.argv[1]).read()
block = re.search(r"^dependencies = \[(.*?)^\]", text, re.M | re.S).group(1)
for name, floor in re.findall(r'"([\w.-]+)>=([\d.]+)', block):
    print(f"{name}=={floor}" + (".*" if floor.count(".") == 1 else ""))
END
cat "$folder/floors"
# Compiled is what is imported, as it is.
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
    --requirement "$folder/floors" . "hypothesis>=6.90" "pytest>=8" "pytest-xdist>=3"
exec "$folder/bin/python" -m pytest -q --numprocesses auto --dist loadfile \
    --disable-warnings --override-ini filterwarnings=default --hypothesis-profile few \
    tests/format/test_{dtypes,records,roundtrip,spec}.py tests/encoder/test_encoder.py \
    tests/decoders/test_native_decoder.py tests/decoders/test_reference_decoder.py
