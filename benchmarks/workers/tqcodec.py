"""tqcodec as a codec process, with one worker."""

from __future__ import annotations

from typing import Any

import tqcodec
from benchmarks.common.tensors import Tensors
from benchmarks.workers.worker import serve


def encode(tensors: Tensors, settings: dict[str, Any]) -> bytes:
    """Encode; `settings` are fields of tqcodec's `Settings`."""
    return tqcodec.encode(tensors, tqcodec.Settings(workers=1, **settings))


def decode(data: bytes) -> Tensors:
    """Decode the whole file."""
    return tqcodec.decode(data)


if __name__ == "__main__":
    serve(encode, decode)
