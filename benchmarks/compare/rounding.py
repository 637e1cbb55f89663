"""Uniform rounding and a general compressor: the plain way to make weights small.

The bytes compressed are the image of a safetensors file: integers for the weight matrices with
their scales, side tensors as float32.
"""

from __future__ import annotations

import lzma
import math

import numpy as np
import zstandard
from safetensors.numpy import save

from benchmarks.common.tensors import Array, Tensors, energy, matrices, vectors


def _zstd(image: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=19).compress(image)


def _xz(image: bytes) -> bytes:
    return lzma.compress(image, preset=9 | lzma.PRESET_EXTREME)


COMPRESSORS = {"zstd -19": _zstd, "xz -9e": _xz}


def step_reaching(tensors: Tensors, mse: float, tolerance: float = 1e-4, tries: int = 60) -> float:
    """Return the rounding step, one for all matrices, whose relative error is `mse`."""
    weights = matrices(tensors)
    total = energy(weights)
    count = sum(array.size for array in weights.values())
    step = math.sqrt(12 * mse * total / count)
    for _ in range(tries):
        reached = sum(_rounding_energy(array, step) for array in weights.values()) / total
        if abs(reached / mse - 1) < tolerance:
            return step
        step *= math.sqrt(mse / reached)
    raise ValueError(f"no rounding step has a relative error of {mse:g}")


def _rounding_energy(array: Array, step: float) -> float:
    scaled = array / np.float32(step)
    return energy({"": scaled - np.rint(scaled)}) * step**2


def uniform_image(tensors: Tensors, step: float) -> bytes:
    """Round all matrices with one step."""
    integers = {
        name: _narrow(np.rint(array / np.float32(step)))
        for name, array in matrices(tensors).items()
    }
    return save({**integers, **vectors(tensors), "step": np.array([step], np.float32)})


def _narrow(values: Array) -> Array:
    """Cast whole numbers to the smallest signed integer type that holds them."""
    largest = np.abs(values).max(initial=0)
    return values.astype(
        next(t for t in (np.int8, np.int16, np.int32) if largest <= np.iinfo(t).max)
    )


def absmax_rounding(tensors: Tensors, bits: int) -> tuple[bytes, Tensors]:
    """Round each output channel to `bits` bits by its largest magnitude: image and weights."""
    image, rounded = vectors(tensors), dict(tensors)
    for name, array in matrices(tensors).items():
        axes = tuple(range(1, array.ndim))
        scale = np.abs(array).max(axis=axes, keepdims=True) / np.float32(2 ** (bits - 1) - 1)
        integers = np.rint(array / np.where(scale > 0, scale, 1)).astype(np.int8)
        image |= {name: _pack(integers) if bits == 4 else integers, f"{name}.scale": scale.ravel()}
        rounded[name] = integers * scale
    return save(image), rounded


def _pack(integers: Array) -> Array:
    """Put two 4-bit integers into a byte, which both compressors also find easier."""
    nibbles = np.pad(integers.ravel() & 15, (0, integers.size % 2)).astype(np.uint8)
    return nibbles[0::2] | nibbles[1::2] << 4
