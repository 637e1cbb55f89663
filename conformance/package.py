"""The batch mode of README.md for the Python package, which has none of its own.

python conformance/package.py --batch
"""

from __future__ import annotations

import json
import sys
from typing import BinaryIO

import tqcodec
from tqcodec.errors import DecodeError, LimitError, MalformedError, UnsupportedError

VERDICTS: dict[type[DecodeError], int] = {MalformedError: 1, UnsupportedError: 3, LimitError: 4}


def safetensors(data: bytes) -> bytes:
    """A file, decoded, as a safetensors file with the tensors in its order."""
    # Not tqcodec.decode, which may use the decoder in C: that one answers for itself.
    with tqcodec.open(data) as file:
        metadata = dict(file.metadata())
        decoded = {entry.name: (entry, p) for entry, p in file.container.decode_all()}
        tensors = [decoded[name] for name in file]
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    bodies, position = [], 0
    for entry, patterns in tensors:
        bodies.append(patterns.tobytes())
        end = position + len(bodies[-1])
        place = {"shape": list(entry.shape), "data_offsets": [position, end]}
        header[entry.name] = {"dtype": entry.dtype.name, **place}
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
