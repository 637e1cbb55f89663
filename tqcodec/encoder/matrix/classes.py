"""Classes: how large the coefficients of each row, input channel and tap are.

The magnitude of a coefficient is modelled as a product of three factors, one for each axis. Their
logarithms, in steps of half an octave, are the levels of the file; a coefficient's class is the
sum of its three levels, and each class has a frequency table. Where integers are given, as in
retraining, levels are those by which they take the fewest bits (`levels.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.histograms import entropy_of
from tqcodec.encoder.matrix.blocks import row_blocks
from tqcodec.format.registry import MAX_CLASSES

Levels = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]

LEVEL = 0.5  # octaves
MOST_LEVELS = 20  # levels of one axis
ITERATIONS = 3
FLOOR = 1e-3  # of the mean magnitude: keeps vanishing channels finite
GAIN = 0.7  # bits a coefficient and squared octave that a known scale saves, about
PRECISION = 1.0  # octaves of deviation that the magnitudes of one coefficient leave, about


def fit_levels(coefficients: NDArray[np.float32]) -> Levels:
    """Levels of the three axes of float32 coefficients (O', I', T'): uint8 vectors from 0."""
    if not coefficients.size:
        shape = coefficients.shape
        return _flat(shape[0]), _flat(shape[1]), _flat(shape[2])
    factors = _factors(coefficients)
    levels = [_quantize(f, coefficients.size) for f in factors]
    return levels[0], levels[1], levels[2]


def _flat(length: int) -> NDArray[np.uint8]:
    return np.zeros(length, np.uint8)


def _factors(coefficients: NDArray[np.float32]) -> list[NDArray[np.float64]]:
    """Factors of each axis, by alternating means of the magnitude over the other factors."""
    shape = coefficients.shape
    blocks = list(row_blocks(shape[0], shape[1] * shape[2]))
    total = sum(float(np.abs(coefficients[rows]).sum(dtype=np.float64)) for rows in blocks)
    floor = np.float32(FLOOR * total / coefficients.size + np.finfo(np.float32).tiny)
    factors = [np.ones(n) for n in shape]
    for _ in range(ITERATIONS):
        for axis in range(3):
            if shape[axis] > 1:
                means = _sums(coefficients, factors, axis, floor, blocks)
                factors[axis] = means * shape[axis] / coefficients.size
    return factors


def _sums(
    coefficients: NDArray[np.float32],
    factors: Sequence[NDArray[np.float64]],
    axis: int,
    floor: np.float32,
    blocks: Sequence[slice],
) -> NDArray[np.float64]:
    """Sums over the other axes of the magnitude divided by their factors."""
    out, inn, taps = ((1 / factor).astype(np.float32) for factor in factors)
    sums = np.zeros(coefficients.shape[axis])
    for rows in blocks:
        magnitude = np.abs(coefficients[rows])
        magnitude += floor
        if axis == 0:
            sums[rows] = (magnitude @ taps) @ inn
        elif axis == 1:
            sums += out[rows] @ (magnitude @ taps)
        else:
            sums += inn @ np.tensordot(out[rows], magnitude, 1)
    return sums


def _quantize(factors: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """Levels of one axis, all equal where they would cost more than they save."""
    octaves = np.log2(factors)
    levels = np.rint(octaves / LEVEL).astype(np.int64)
    most = min(MOST_LEVELS, (MAX_CLASSES - 1) // 3 + 1)  # three axes stay within the classes
    levels = np.clip(levels, levels.max() - most + 1, None)
    cost = entropy_of(levels)
    per_channel = size / len(levels)
    # Of the variance seen, the part that a small sample shows by chance saves nothing.
    variance = max(0.0, float(octaves.var()) - PRECISION / per_channel)
    if GAIN * variance * size <= cost:
        return _flat(len(levels))
    return (levels - levels.min()).astype(np.uint8)


def class_of(levels: Sequence[NDArray[np.uint8]], kept: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Class of each coefficient in the kept columns: uint8 (rows, columns)."""
    column = (levels[1][:, None] + levels[2][None, :]).ravel()[kept]
    return levels[0][:, None] + column[None, :]


def class_count(levels: Sequence[NDArray[np.uint8]]) -> int:
    """Number of classes that levels can make."""
    return 1 + sum(int(level.max(initial=0)) for level in levels)
