"""ZipNN (lossless) as a codec process; runs in the environment of the peers.

ZipNN codes bytes, so it is given the image of a safetensors file, names and shapes included.
Must not import tqcodec.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from safetensors.numpy import load, save
from zipnn import ZipNN

from benchmarks.common.tensors import BFLOAT16, Tensors
from benchmarks.workers.worker import serve


def encode(tensors: Tensors, settings: dict[str, Any]) -> bytes:
    """Encode losslessly with one thread; `settings` are keyword arguments of `ZipNN`."""
    image = bytearray(save({name: _bits(array) for name, array in tensors.items()}))
    return bytes(ZipNN(threads=1, **settings).compress(image))


def decode(data: bytes) -> Tensors:
    """Decode the whole file; 16-bit elements are bfloat16."""
    decoded = load(bytes(ZipNN(threads=1).decompress(data)))
    return {name: _floats(array) for name, array in decoded.items()}


def _bits(array: Any) -> Any:
    return array.view(np.uint16) if array.dtype == BFLOAT16 else array


def _floats(array: Any) -> Any:
    return array.view(BFLOAT16) if array.dtype == np.uint16 else array


if __name__ == "__main__":
    serve(encode, decode)
