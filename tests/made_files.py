"""Small files for tests: of every coding, and of tables alone."""

from __future__ import annotations

import zlib

import numpy as np
from damage import assemble

import tqcodec
from tqcodec.format.directory import write_directory
from tqcodec.format.entries import Directory, Segment
from tqcodec.format.reader import deflate


def several() -> bytes:
    """A file with a tensor of every coding."""
    tensors = {
        "matrix": np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32),
        "bias": np.linspace(0, 1, 7, dtype=np.float32),
        "long": np.arange(20000, dtype=np.int32),
        "other": np.random.default_rng(1).normal(size=(32, 32)).astype(np.float32),
        "noise": np.random.default_rng(2).integers(0, 1 << 32, 500, np.uint32).view(np.float32),
    }
    tensors["noise"][np.isnan(tensors["noise"])] = 0
    return tqcodec.encode(tensors, tqcodec.Settings(snr=20))


def tables_file(plain: bytes) -> bytes:
    """A file that holds nothing but tables."""
    stored = deflate(plain)
    first = Segment(len(stored), zlib.crc32(stored))
    return assemble(write_directory(Directory((), (), first, len(plain)))[0], [stored])
