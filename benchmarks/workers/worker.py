"""The child's side of a codec process: takes orders on standard input, measures, answers.

One order is one line of JSON, and so is its answer. The module of a codec calls `serve` with its
two functions once its imports are done. Runs in the environment of any codec.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from benchmarks.common.tensors import Tensors, matrices, relative_mse, same_bytes, vectors

Encode = Callable[[Tensors, dict[str, Any]], bytes]
Decode = Callable[[bytes], Tensors]


class Session:
    """One codec with the network it works on, and the memory it started from."""

    def __init__(self, encode: Encode, decode: Decode) -> None:
        self._encode = encode
        self._decode = decode
        self._tensors: Tensors = {}
        self._baseline = 0

    def warm_up(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Code a tiny network, so that lazy imports are not measured; then note the memory."""
        weight = np.random.default_rng(0).standard_normal((8, 8, 3, 3)).astype(np.float32)
        bias = np.ones(8, np.float32)
        self._decode(self._encode({"weight": weight, "bias": bias}, settings))
        _restart_peak()
        self._baseline = _status_bytes("VmRSS")
        return {}

    def load(self, path: str, dtype: str = "float32") -> dict[str, Any]:
        """Take a safetensors file, cast to `dtype`, as the network to be coded."""
        tensors = load_file(Path(path)).items()
        self._tensors = {name: array.astype(dtype, copy=False) for name, array in tensors}
        _restart_peak()
        return {}

    def encode(self, settings: dict[str, Any], path: str) -> dict[str, Any]:
        """Encode the network into a file: bytes, CPU seconds, growth of memory in bytes."""
        start = time.process_time()
        data = self._encode(self._tensors, settings)
        seconds = time.process_time() - start
        growth = self._growth()
        Path(path).write_bytes(data)
        return {"bytes": len(data), "seconds": seconds, "growth": growth}

    def decode(self, path: str, out: str | None = None) -> dict[str, Any]:
        """Decode a file: CPU seconds, growth of memory, and the errors if a network is loaded.

        The decoded tensors are written to the safetensors file `out`, if one is named.
        """
        data = Path(path).read_bytes()
        start = time.process_time()
        decoded = self._decode(data)
        seconds = time.process_time() - start
        growth = self._growth()
        if out is not None:
            save_file(decoded, out)
        return {"seconds": seconds, "growth": growth, **self._errors(decoded)}

    def _errors(self, decoded: Tensors) -> dict[str, Any]:
        return {
            "mse": relative_mse(matrices(self._tensors), decoded),
            "vector_mse": relative_mse(vectors(self._tensors), decoded),
            "exact": same_bytes(self._tensors, decoded),
        }

    def _growth(self) -> int:
        """Peak of the memory since the last restart of the counter, over the baseline."""
        return _status_bytes("VmHWM") - self._baseline


def serve(encode: Encode, decode: Decode) -> None:
    """Answer orders until standard input ends. What the codec prints is thrown away."""
    session = Session(encode, decode)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for line in sys.stdin:
        order = json.loads(line)
        answer = getattr(session, order.pop("do"))(**order)
        print(json.dumps(answer), file=answers, flush=True)


def _restart_peak() -> None:
    """Give freed memory back to the system and restart the kernel's peak counter."""
    with contextlib.suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
