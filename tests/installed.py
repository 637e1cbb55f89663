"""Encodes, verifies and decodes a file with the tqcodec that is installed.

    python tests/installed.py [--native | --portable]

Run from a folder outside the checkout. With --native it must be compiled, with --portable it must
not. Needs no pytest.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file


def main() -> None:
    """Exit with a message if something is wrong."""
    rng = np.random.default_rng(0)
    tensors = {
        "conv.weight": rng.normal(size=(32, 16, 3, 3)).astype(np.float32),
        "conv.bias": rng.normal(size=32).astype(np.float32),
        "steps": np.array(7),
    }
    tool = [sys.executable, "-m", "tqcodec"]
    with tempfile.TemporaryDirectory() as folder:

        def run(*arguments: str) -> str:
            command = [*tool, *arguments]
            return subprocess.run(
                command, cwd=folder, check=True, capture_output=True, text=True
            ).stdout

        version = run("--version")
        print(version, end="")
        if "--native" in sys.argv and not {"native", "C"} <= set(version.replace(")", "").split()):
            sys.exit("it is not compiled")
        if "--portable" in sys.argv and "native" in version:
            sys.exit("it is compiled")
        save_file(tensors, Path(folder) / "in.safetensors")
        run("encode", "in.safetensors", "--bits", "4", "-o", "x.tqc")
        run("verify", "x.tqc")
        run("decode", "x.tqc", "-o", "out.safetensors")
        run("encode", "in.safetensors", "--lossless", "-o", "y.tqc")
        run("decode", "y.tqc", "-o", "same.safetensors")
        lossy, same = (load_file(Path(folder) / f"{name}.safetensors") for name in ("out", "same"))
    assert set(lossy) == set(same) == set(tensors)
    for name, array in tensors.items():
        assert same[name].tobytes() == array.tobytes(), name
    error = lossy["conv.weight"] - tensors["conv.weight"]
    assert float((error**2).mean()) < 0.03


if __name__ == "__main__":
    main()
