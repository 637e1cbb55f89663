"""Writes two files of 5 million weights for bench.mjs: python bench_files.py FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import tqcodec

SHAPES = [(1024, 1024), (512, 512, 3, 3), (2048, 512), (256, 256, 3, 3)]


def main() -> None:
    rng = np.random.default_rng(1)
    tensors = {}
    for i, shape in enumerate(SHAPES):
        ones = (1,) * (len(shape) - 2)
        rows = np.exp(rng.normal(0, 0.5, (shape[0], 1, *ones)))
        columns = np.exp(rng.normal(0, 0.4, (1, shape[1], *ones)))
        weight = rng.normal(size=shape) * rows * columns * 0.02
        tensors[f"layer{i}.weight"] = weight.astype(np.float32)
        tensors[f"layer{i}.bias"] = rng.normal(size=shape[0]).astype(np.float32)
    for bits in (2, 3):
        data = tqcodec.encode(tensors, tqcodec.Settings(bits=bits))
        (Path(sys.argv[1]) / f"normal-{bits}bit.tqc").write_bytes(data)


if __name__ == "__main__":
    main()
