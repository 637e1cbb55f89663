"""Files for `make bench`:  python bench_files.py FOLDER [MODEL.safetensors]

Three matrices of 4.2 million random weights, rows and columns of different spread, at 2 and 3 bits
each; and the given model at 2 and 3 bits and without loss.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import tqcodec
from tqcodec import Settings

SHAPES = [(2048, 1024), (1024, 1024), (512, 2048)]


def matrices(law: str) -> dict[str, np.ndarray]:
    """Random weights of the same law on every run."""
    rng = np.random.default_rng(1)
    out = {}
    for i, (rows, columns) in enumerate(SHAPES):
        weights = getattr(rng, law)(size=(rows, columns)) * 0.02
        weights *= np.exp(0.3 * rng.normal(size=(rows, 1)))
        weights *= np.exp(0.3 * rng.normal(size=(1, columns)))
        out[f"matrix{i}"] = weights.astype(np.float32)
    return out


def main() -> None:
    """Write the files."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    subjects = {law: matrices(law) for law in ("laplace", "normal")}
    for path in sys.argv[2:]:
        subjects[Path(path).stem] = load_file(path)
    for name, tensors in subjects.items():
        for bits in (2, 3):
            (folder / f"{name}-{bits}.tqc").write_bytes(
                tqcodec.encode(tensors, Settings(bits=bits))
            )
    for path in sys.argv[2:]:
        data = tqcodec.encode(subjects[Path(path).stem], Settings(lossless=True))
        (folder / f"{Path(path).stem}-lossless.tqc").write_bytes(data)


if __name__ == "__main__":
    main()
