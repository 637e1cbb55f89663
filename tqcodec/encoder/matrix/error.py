"""Error: the one measure of what a coding did to a matrix, for the directory and for the check."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tqcodec.format.dtypes import DType, to_float

BLOCK = 1 << 18  # elements compared at a time, to bound memory

Patterns = NDArray[np.unsignedinteger]


def error_of(before: Patterns, after: Patterns, dtype: DType) -> tuple[float, float]:
    """Squared error of decoded elements, and energy of the original ones."""
    error = energy = 0.0
    old, new = before.reshape(-1), after.reshape(-1)
    for start in range(0, len(old), BLOCK):
        truth = to_float(old[start : start + BLOCK], dtype)
        difference = truth - to_float(new[start : start + BLOCK], dtype)
        error += float(np.dot(difference, difference))
        energy += float(np.dot(truth, truth))
    return error, energy


def decibels(error: float, energy: float) -> int | None:
    """Signal-to-noise ratio in hundredths of a decibel; None where there is no noise."""
    if error <= 0 or energy <= 0:
        return None
    return round(1000 * (math.log10(energy) - math.log10(error)))
