"""Weights and the error measure: what every process of the benchmark shares.

Imports numpy, ml_dtypes and safetensors only, so that it runs in the environment of any codec.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file

Array = np.ndarray[Any, np.dtype[Any]]
Tensors = dict[str, Array]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def read_weights(path: Path) -> Tensors:
    """Read every floating-point tensor of a `.safetensors` or `.pth` file as float32.

    Integer tensors (batch-norm's counters, position ids), scalars and empty tensors are left out:
    NNCodec takes none.
    """
    tensors = load_file(path) if path.suffix == ".safetensors" else _read_checkpoint(path)
    return {
        name: np.ascontiguousarray(array, np.float32)
        for name, array in tensors.items()
        if array.dtype.kind == "f" and array.ndim and array.size
    }


def _read_checkpoint(path: Path) -> Tensors:
    import torch  # only a checkpoint needs it, and no codec process may carry it

    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor.numpy() for name, tensor in state.items()}


def matrices(tensors: Tensors) -> Tensors:
    """The weight matrices: every tensor of two axes or more."""
    return {name: array for name, array in tensors.items() if array.ndim >= 2}


def vectors(tensors: Tensors) -> Tensors:
    """The side tensors (biases, batch-norm): every tensor of fewer than two axes."""
    return {name: array for name, array in tensors.items() if array.ndim < 2}


def energy(tensors: Tensors) -> float:
    """Sum of squares over all tensors."""
    return sum(float(np.sum(np.square(array, dtype=np.float64))) for array in tensors.values())


def relative_mse(original: Tensors, decoded: Tensors) -> float:
    """Energy of the error over the energy of `original`, over all its tensors."""
    total = energy(original)
    error = sum(energy({name: array - decoded[name]}) for name, array in original.items())
    return error / total if total else 0.0


def same_bytes(original: Tensors, decoded: Tensors) -> bool:
    """Whether every tensor came back exactly, in value, dtype and shape."""
    return all(
        array.dtype == decoded[name].dtype
        and array.shape == decoded[name].shape
        and array.tobytes() == decoded[name].tobytes()
        for name, array in original.items()
    )
