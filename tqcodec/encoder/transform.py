"""Transform: which basis on which axis of a tensor, and its integers.

Notation of the paper (Young et al. 2021): theta are the weights, U the transform whose columns are
analysis vectors; here all transforms are orthonormal, so synthesis rows are U^T. Data-free, the
optimal one is the KLT of the weight second moment C_tt (algorithm of section III, C_gg = I).

The step of the quantizer is `step` throughout, in units of the weights: bases are stored relative
to it and their precision follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tqcodec.format.dct import dct
from tqcodec.format.registry import MAX_DCT, Axis, BasisKind

HIGH_RATE = 2 * math.pi * math.e  # ½ log2(2 pi e s²/d²): bits of a Gaussian of variance s², step d
LARGEST_BASIS = 1024  # axis length up to which a KLT is tried
WIDE_ENOUGH = 4  # times more weights a channel than channels, for a KLT of in or out
PRECISION_MARGIN = 0.5  # entries' step relative to the equal-slope one: errors of bases add up


@dataclass(frozen=True, eq=False)
class Transform:
    """Orthonormal bases of the three axes.

    Attributes:
        kinds: kind of basis of each axis.
        rows: float64 (channels, axis length) synthesis rows of unit norm, or None.
    """

    kinds: tuple[BasisKind, BasisKind, BasisKind]
    rows: tuple[NDArray[np.float64] | None, ...]

    def analyse(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """Coefficients (O', I', T') of weights (O, I, T)."""
        return _analyse(weights, self.rows)


IDENTITY = Transform((BasisKind.NONE,) * 3, (None, None, None))


def _apply(
    array: NDArray[np.float32], matrix: NDArray[np.float64], axis: int
) -> NDArray[np.float32]:
    """Multiply one axis of an array by a matrix (new, old)."""
    narrow = matrix.astype(np.float32)
    if axis == Axis.TAPS:
        return array @ narrow.T
    if axis == Axis.IN:
        return np.matmul(narrow, array)
    return (narrow @ array.reshape(len(array), -1)).reshape(-1, *array.shape[1:])


def _analyse(
    weights: NDArray[np.float32], matrices: Sequence[NDArray[np.float64] | None]
) -> NDArray[np.float32]:
    for axis in (Axis.TAPS, Axis.IN, Axis.OUT):
        matrix = matrices[axis]
        if matrix is not None:
            weights = _apply(weights, matrix, axis)
    return weights


def second_moment(weights: NDArray[np.float32], axis: int) -> NDArray[np.float64]:
    """C_tt of one axis: sum of theta theta^T over all else, float64 (n, n)."""
    if axis == Axis.OUT:
        flat = weights.reshape(len(weights), -1)
        return (flat @ flat.T).astype(np.float64)
    if axis == Axis.TAPS:
        flat = weights.reshape(-1, weights.shape[2])
        return (flat.T @ flat).astype(np.float64)
    total = np.zeros((weights.shape[1],) * 2)
    for t in range(weights.shape[2]):
        flat = weights[:, :, t]
        total += flat.T @ flat
    return total


def klt(moment: NDArray[np.float64]) -> NDArray[np.float64]:
    """Eigenvectors as rows, by falling eigenvalue; of each, the largest entry is positive."""
    _, vectors = np.linalg.eigh(moment)
    rows = vectors.T[::-1]
    largest = np.abs(rows).argmax(axis=1)
    return rows * np.sign(rows[np.arange(len(rows)), largest])[:, None]


def rate(energies: NDArray[np.float64], count: int, step: float) -> float:
    """Bits that columns of `count` coefficients with these energies take, roughly.

    Half the logarithm of one plus the ratio to the step: the high-rate formula at high rate, and
    next to nothing for a column that the quantizer sets to zero.
    """
    variances = energies / max(1, count)
    return float(count * 0.5 * np.log2(1 + HIGH_RATE * variances / step**2).sum())


def column_energies(coefficients: NDArray[np.float32]) -> NDArray[np.float64]:
    """Energy of each column: float64 (I', T')."""
    return np.einsum("oit,oit->it", coefficients, coefficients, dtype=np.float64)


def axis_energies(coefficients: NDArray[np.float32], axis: int) -> NDArray[np.float64]:
    """Energy of each channel of one axis: float64."""
    name = "oit"[axis]
    return np.einsum(f"oit,oit->{name}", coefficients, coefficients, dtype=np.float64)


def row_steps(energies: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """Step of the entries of basis rows whose channels have these energies.

    An error e in an entry of row k costs E_k e², an error in a coefficient costs e²: at equal
    slope the steps are as 1 / sqrt(E_k).
    """
    return PRECISION_MARGIN * step / np.sqrt(np.maximum(energies, step**2))


def basis_bits(energies: NDArray[np.float64], length: int, step: float) -> float:
    """Bits of an explicit basis: `length` entries of variance 1/length in each row."""
    used = energies > step**2
    variance = 1 / length
    ratio = HIGH_RATE * variance / row_steps(energies[used], step) ** 2
    return float(length * 0.5 * np.log2(1 + ratio).sum() + 16 * used.sum())


def choose(
    weights: NDArray[np.float32],
    taps_shape: Sequence[int],
    wish: str,
    step: float,
    effort: int,
) -> Transform:
    """The transform of one tensor at a step, its bases counted in the cost.

    Args:
        weights: float32 (O, I, T).
        taps_shape: lengths of the taps' dimensions.
        wish: ``auto``, ``none``, ``dct`` (taps) or ``klt`` (every axis longer than one that is
            small enough).
        step: of the quantizer.
        effort: 1 to 9; bases of the axes in and out are tried from 3.
    """
    depthwise = weights.shape[1] == 1 and weights.shape[2] > 1
    # A depthwise kernel alone makes its output channel: what a basis zeroes there is lost whole.
    if wish == "none" or not weights.size or (wish == "auto" and depthwise):
        return IDENTITY
    chosen = _choose_taps(weights, taps_shape, wish, step)
    if wish == "dct" or (wish == "auto" and effort < 3):
        return chosen
    for axis in (Axis.IN, Axis.OUT):
        length = weights.shape[axis]
        wide = weights.size // length >= WIDE_ENOUGH * length
        if 1 < length <= LARGEST_BASIS and (wide or wish == "klt"):
            chosen = _choose_axis(weights, chosen, axis, step, forced=wish == "klt")
    return chosen


def _choose_taps(
    weights: NDArray[np.float32], taps_shape: Sequence[int], wish: str, step: float
) -> Transform:
    rows, _, taps = weights.shape
    if taps == 1:
        return IDENTITY
    best, best_cost = IDENTITY, math.inf
    candidates: list[tuple[BasisKind, NDArray[np.float64] | None]] = []
    if wish == "auto":
        candidates.append((BasisKind.NONE, None))
    if wish in ("auto", "dct") and max(taps_shape) <= MAX_DCT:
        candidates.append((BasisKind.DCT, _unit_dct(tuple(taps_shape))))
    if wish in ("auto", "klt"):
        candidates.append((BasisKind.EXPLICIT, klt(second_moment(weights, Axis.TAPS))))
    for kind, matrix in candidates:
        energies = column_energies(_analyse(weights, (None, None, matrix)))
        cost = rate(energies, rows, step)
        if kind == BasisKind.EXPLICIT:
            cost += basis_bits(energies.sum(axis=0), taps, step)
        if cost < best_cost:
            kinds = (BasisKind.NONE, BasisKind.NONE, kind)
            best, best_cost = Transform(kinds, (None, None, matrix)), cost
    return best


@cache
def _unit_dct(taps_shape: tuple[int, ...]) -> NDArray[np.float64]:
    rows: NDArray[np.float64] = np.ones((1, 1))
    for length in taps_shape:
        rows = np.kron(rows, dct(length)).astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _choose_axis(
    weights: NDArray[np.float32], now: Transform, axis: Axis, step: float, forced: bool
) -> Transform:
    """Add a KLT on one axis if it pays for itself, or in any case if `forced`."""
    matrix = klt(second_moment(weights, axis))
    matrices = list(now.rows)
    matrices[axis] = matrix
    before, after = now.analyse(weights), _analyse(weights, matrices)
    if axis == Axis.OUT:  # energies of rows: what an output basis makes unequal
        before, after = (a.transpose(1, 0, 2) for a in (before, after))
    length, count = weights.shape[axis], len(before)
    energies = column_energies(after)
    cost = rate(energies, count, step) + basis_bits(energies.sum(axis=1), length, step)
    if not forced and cost >= rate(column_energies(before), count, step):
        return now
    kinds = list(now.kinds)
    kinds[axis] = BasisKind.EXPLICIT
    return Transform((kinds[0], kinds[1], kinds[2]), tuple(matrices))
