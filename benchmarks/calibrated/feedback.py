"""Plain error feedback with entropy coding: GPTQ's rounding, one uniform step, ideal entropies.

For each column from the first to the last, the weights are rounded and what that does to the
layer's output is made up for in the columns behind it, by the Cholesky factor of the inverse of the
inputs' second moment (Frantar et al. 2023). This is the "GPTQ + entropy coding" that CERWU is
compared with in its paper.

The size is one that no file reaches: the zero-order entropy of the integers of each tensor, its
table, shape and step for nothing, and the bytes in which tqcodec codes the side tensors, their
names for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tqcodec
from tqcodec.encoder.kinds import is_matrix
from tqcodec.encoder.statistics import WeightStatistics

Array = NDArray[Any]
Tensors = Mapping[str, Array]

DAMPING = 0.01
"""Of the mean diagonal of the second moment."""


def matrices(tensors: Tensors) -> dict[str, Array]:
    """What is rounded: floating-point tensors of two axes longer than 1 and 64 elements or more."""
    return {
        name: array
        for name, array in tensors.items()
        if array.dtype.kind == "f" and is_matrix(array.shape)
    }


def side_tensors(tensors: Tensors) -> tuple[int, dict[str, Array]]:
    """Bytes of everything else as tqcodec codes it, and what it decodes to."""
    weights = matrices(tensors)
    data = tqcodec.encode({k: array for k, array in tensors.items() if k not in weights})
    with tqcodec.open(data) as file:
        return sum(b.length for b in file.container.directory.bundles), dict(file)


def step_with(tensors: Tensors, bits: float) -> float:
    """The step at which plain rounding has an entropy of `bits` per weight, within 0.1 %."""
    weights = [array.ravel() for array in matrices(tensors).values()]
    count = sum(array.size for array in weights)
    low, high = 1e-9, max(float(np.abs(array).max()) for array in weights)
    while high > 1.001 * low:
        step = float(np.sqrt(low * high))
        rate = sum(entropy(np.rint(array / step)) for array in weights) / count
        low, high = (step, high) if rate > bits else (low, step)
    return high


def entropy(integers: Array) -> float:
    """Bits of an ideal code for a tensor that knows how often each of its integers occurs."""
    counts = np.unique(integers, return_counts=True)[1]
    return float((counts * -np.log2(counts / counts.sum())).sum())


def encode(
    tensors: Tensors, statistics: Mapping[str, WeightStatistics], step: float
) -> tuple[float, dict[str, Array]]:
    """Bits of all weight matrices at a step, and the rounded matrices.

    A matrix without statistics is rounded without feedback.
    """
    bits, rounded = 0.0, {}
    for name, array in matrices(tensors).items():
        integers = (
            round_with_feedback(array, statistics[name], step)
            if name in statistics
            else np.rint(array / step)
        )
        bits += entropy(integers)
        rounded[name] = (integers * step).astype(array.dtype)
    return bits, rounded


def round_with_feedback(array: Array, statistics: WeightStatistics, step: float) -> Array:
    """Integers of a weight, in its shape; float64."""
    blocks, n = statistics.sums.shape
    ordered = np.moveaxis(array.astype(np.float64), statistics.rows, 0)
    matrix = ordered.reshape(len(ordered), -1)
    rows, columns = matrix.shape
    if n == columns:  # one block for each group of rows
        parts = matrix.reshape(blocks, rows // blocks, n)
    else:  # one block for each range of columns, the last of which is filled up
        padded = np.pad(matrix, ((0, 0), (0, blocks * n - columns)))
        parts = padded.reshape(rows, blocks, n).transpose(1, 0, 2)
    integers = _feedback(parts / step, _factors(statistics.inputs))
    if n != columns:
        integers = integers.transpose(1, 0, 2).reshape(rows, -1)[:, :columns]
    return np.moveaxis(integers.reshape(ordered.shape), 0, statistics.rows)


def _factors(inputs: Array) -> Array:
    """Upper factors U of the inverse moments, inverse = U^T U: (blocks, n, n)."""
    n = inputs.shape[-1]
    damping = DAMPING * np.trace(inputs, axis1=1, axis2=2) / n
    damping[damping == 0] = 1.0  # nothing was ever seen: plain rounding
    inverse = np.linalg.inv(inputs + damping[:, None, None] * np.eye(n))
    return np.linalg.cholesky((inverse + inverse.transpose(0, 2, 1)) / 2).transpose(0, 2, 1)


def _feedback(parts: Array, factors: Array, width: int = 64) -> Array:
    """Round (blocks, rows, n) column by column; later columns take up the errors.

    Columns beyond the next `width` are brought up to date together, which is the same sum.
    """
    parts = parts.copy()
    integers = np.empty_like(parts)
    n = parts.shape[2]
    for start in range(0, n, width):
        stop = min(start + width, n)
        errors = np.empty((*parts.shape[:2], stop - start))
        for j in range(start, stop):
            integers[:, :, j] = np.rint(parts[:, :, j])
            error = (parts[:, :, j] - integers[:, :, j]) / factors[:, j, j, None]
            errors[:, :, j - start] = error
            parts[:, :, j:stop] -= error[:, :, None] * factors[:, None, j, j:stop]
        parts[:, :, stop:] -= errors @ factors[:, start:stop, stop:]
    return integers
