"""The batch mode of README.md for the Python package, which has none of its own.

python conformance/package.py --batch
"""

from __future__ import annotations

import json
import sys
from typing import BinaryIO

import tqcodec
from tqcodec.api import numpy_dtype
from tqcodec.errors import DecodeError, LimitError, MalformedError, UnsupportedError
from tqcodec.format.dtypes import DTYPES

VERDICTS: dict[type[DecodeError], int] = {MalformedError: 1, UnsupportedError: 3, LimitError: 4}
NAMES = {numpy_dtype(dtype): name for name, dtype in DTYPES.items()}


def safetensors(data: bytes) -> bytes:
    """A file, decoded, as a safetensors file with the tensors in its order."""
    tensors = tqcodec.decode(data)
    with tqcodec.open(data) as file:
        metadata = dict(file.metadata())
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    bodies, position = [], 0
    for name, array in tensors.items():
        bodies.append(array.tobytes())
        end = position + len(bodies[-1])
        dtype, shape = NAMES[array.dtype], list(array.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *bodies])


def answer(data: bytes) -> bytes:
    """The answer of the batch mode to one file."""
    try:
        verdict, rule, out = 0, b"", safetensors(data)
    except DecodeError as error:
        verdict, rule, out = VERDICTS[type(error)], error.rule.encode(), b""
    return bytes([verdict, len(rule)]) + rule + len(out).to_bytes(4, "little") + out


def batch(source: BinaryIO, target: BinaryIO) -> None:
    """Answer file by file until the input ends."""
    while start := source.read(4):
        target.write(answer(source.read(int.from_bytes(start, "little"))))
        target.flush()


if __name__ == "__main__":
    if sys.argv[1:] != ["--batch"]:
        sys.exit("usage: package.py --batch")
    batch(sys.stdin.buffer, sys.stdout.buffer)
