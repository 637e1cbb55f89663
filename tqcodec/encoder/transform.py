"""Transform: which basis on which axis of a tensor, and its integers.

Notation of the paper (Young et al. 2021): theta are the weights, U the transform whose columns are
analysis vectors; synthesis rows are those of U^-1, U^T where it is orthonormal. Without data the
optimal one is the KLT of the weight second moment C_tt, with a gradient second moment C_gg the ELT,
which diagonalises both (section III). With error feedback the gradient side is gained without a
basis, so that the KLT is as good in theory; `choose` takes what costs least.

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

from tqcodec.encoder.classes import class_of, fit_levels
from tqcodec.encoder.feedback import quantize_with_feedback
from tqcodec.encoder.grid import grid_of
from tqcodec.encoder.metric import Metric
from tqcodec.encoder.quantizer import Method
from tqcodec.encoder.tables import code_lengths
from tqcodec.format.dct import dct
from tqcodec.format.registry import MAX_DCT, Axis, BasisKind

HIGH_RATE = 2 * math.pi * math.e  # ½ log2(2 pi e s²/d²): bits of a Gaussian of variance s², step d
LARGEST_BASIS = 1024  # axis length up to which a KLT is tried
WIDE_ENOUGH = 4  # times more weights a channel than channels, for a KLT of in or out
ELT_REGULARISATION = 0.001  # of the norm of C_gg, as in the paper
PRECISION_MARGIN = 0.5  # entries' step relative to the equal-slope one: errors of bases add up


@dataclass(frozen=True, eq=False)
class Transform:
    """Bases of the three axes.

    Attributes:
        kinds: kind of basis of each axis.
        rows: float64 (channels, axis length) synthesis rows of unit norm, or None.
        orthonormal: False where they are not orthogonal.
    """

    kinds: tuple[BasisKind, BasisKind, BasisKind]
    rows: tuple[NDArray[np.float64] | None, ...]
    orthonormal: bool = True

    def analyse(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """Coefficients (O', I', T') of weights (O, I, T)."""
        matrices = self.rows
        if not self.orthonormal:
            matrices = tuple(None if m is None else np.linalg.inv(m).T for m in matrices)
        for axis in (Axis.TAPS, Axis.IN, Axis.OUT):
            matrix = matrices[axis]
            if matrix is not None:
                weights = _apply(weights, matrix, axis)
        return weights

    def replaced(
        self, axis: Axis, kind: BasisKind, rows: NDArray[np.float64] | None, orthonormal: bool
    ) -> Transform:
        """The transform with another basis on one axis."""
        kinds, matrices = list(self.kinds), list(self.rows)
        kinds[axis], matrices[axis] = kind, rows
        both = self.orthonormal and orthonormal
        return Transform((kinds[0], kinds[1], kinds[2]), tuple(matrices), both)


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


def elt(weights: NDArray[np.float64], gradients: NDArray[np.float64]) -> NDArray[np.float64]:
    """Synthesis rows of the ELT, of unit norm, by falling eigenvalue.

    The columns of U with U^T C_tt U diagonal and U^T C_gg^-1 U = I (Young et al. 2021, section III)
    are L V, where C_gg = L L^T and V are the eigenvectors of L^T C_tt L.

    Args:
        weights: second moment C_tt, (n, n).
        gradients: second moment C_gg, (n, n).
    """
    n = len(gradients)
    regular = gradients + ELT_REGULARISATION * np.linalg.norm(gradients) * np.eye(n)
    lower = np.linalg.cholesky(regular)
    rows = klt(lower.T @ weights @ lower) @ np.linalg.inv(lower)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    largest = np.abs(rows).argmax(axis=1)
    return np.asarray(rows * np.sign(rows[np.arange(n), largest])[:, None])


def cost(energies: NDArray[np.float64], count: int, step: float) -> float:
    """Bits that columns of `count` coefficients with these energies take, roughly.

    Their error is counted as bits at the slope of the quantizer. A Gaussian of variance s^2 at the
    error theta = step^2 / (2 pi e) takes R = 1/2 log2(1 + s^2 / theta) bits and leaves the error
    D = s^2 theta / (s^2 + theta), at a slope of dD/dR = -2 ln 2 theta where the rate is high.
    """
    ratios = HIGH_RATE * energies / max(1, count) / step**2
    bits = 0.5 * np.log2(1 + ratios) + ratios / (1 + ratios) / (2 * math.log(2))
    return float(count * bits.sum())


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


@dataclass(frozen=True, eq=False)
class Problem:
    """What a transform is chosen for.

    Attributes:
        weights: float32 (O, I, T).
        taps_shape: lengths of the taps' dimensions.
        step: of the quantizer, in units of the weights or, with a metric, of the logits.
        metric: what errors do, or None where all weights count alike.
    """

    weights: NDArray[np.float32]
    taps_shape: Sequence[int]
    step: float
    metric: Metric | None = None

    def energies(self, transform: Transform, axis: Axis) -> NDArray[np.float64]:
        """Energies of the columns, or with Axis.OUT of the rows and columns turned round.

        In units in which all coefficients have the same step: float64 (channels, taps).
        """
        coefficients = transform.analyse(self.weights)
        if self.metric is not None:
            diagonal, _ = self.metric.transformed(transform.rows).factor()
            if self.metric.by_rows:
                diagonal = np.exp(np.log(diagonal).mean(axis=0))
            shape = coefficients.shape[1:]
            flat = diagonal.ravel()[: math.prod(shape)].astype(np.float32)
            coefficients = coefficients * flat.reshape(shape)
        if axis == Axis.OUT:
            coefficients = coefficients.transpose(1, 0, 2)
        return column_energies(coefficients)

    def count(self, axis: Axis) -> int:
        """Coefficients of a column of `energies`."""
        return self.weights.shape[1 if axis == Axis.OUT else 0]

    def moments(self, axis: Axis) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """C_tt and C_gg of an axis; the latter None where it is not known."""
        known = self.metric is not None and axis != Axis.OUT
        gradients = self.metric.moment(axis) if known and self.metric is not None else None
        return second_moment(self.weights, axis), gradients

    def cost(self, transform: Transform, axis: Axis) -> float:
        """Bits of the coefficients, and of the basis of one axis."""
        energies = self.energies(transform, axis)
        bits = cost(energies, self.count(axis), self.step)
        if self.metric is not None and axis == Axis.TAPS:
            bits = self._trial(self.metric.transformed(transform.rows), transform)
        if transform.kinds[axis] == BasisKind.EXPLICIT:
            length = self.weights.shape[axis]
            bits += basis_bits(energies.sum(axis=0 if axis == Axis.TAPS else 1), length, self.step)
        return bits


    def _trial(self, metric: Metric, transform: Transform) -> float:
        """As `cost`, by quantizing: where feedback meets vanishing columns no formula holds."""
        coefficients = transform.analyse(self.weights)
        grid = grid_of(metric.factor()[0], metric, len(coefficients))
        levels = fit_levels(grid.relative(coefficients))
        classes = class_of(levels, np.arange(metric.columns))
        number = int(classes.max()) + 1
        method, free = Method(0, 0.0), np.zeros((number, 1, 1), np.float32)
        fed = quantize_with_feedback(coefficients, metric, classes, method, self.step, free)
        counts = method.count(fed.coefficients, classes, number).counts
        bits = float((counts * code_lengths(counts.astype(np.float32))).sum())
        rebuilt = fed.coefficients * fed.grid.steps * fed.step
        error = metric.error(coefficients.reshape(rebuilt.shape) - rebuilt)
        return bits + 6 / math.log(2) * error / self.step**2


def choose(problem: Problem, wish: str, effort: int) -> Transform:
    """The transform of one tensor at a step, its bases counted in the cost.

    Args:
        problem: the weights, the step and the metric.
        wish: ``auto``, ``none``, ``dct`` (taps), ``klt`` or ``elt`` (every axis longer than one
            that is small enough). Without statistics C_gg = I and the ELT is the KLT.
        effort: 1 to 9; bases of the axes in and out are tried from 3.
    """
    weights = problem.weights
    depthwise = weights.shape[1] == 1 and weights.shape[2] > 1
    # A depthwise kernel alone makes its output channel: what a basis zeroes there is lost whole.
    if wish == "none" or not weights.size or (wish == "auto" and depthwise):
        return IDENTITY
    forced = wish in ("klt", "elt")
    chosen = IDENTITY
    for axis in (Axis.TAPS, Axis.IN, Axis.OUT):
        if axis != Axis.TAPS and (wish == "dct" or (wish == "auto" and effort < 3)):
            break
        length = weights.shape[axis]
        wide = axis == Axis.TAPS or weights.size // length >= WIDE_ENOUGH * length
        possible = problem.metric is None or problem.metric.can_have(axis)
        if 1 < length <= LARGEST_BASIS and (wide or forced) and possible:
            candidates = _candidates(problem, chosen, axis, wish)
            if len(candidates) == 1:
                chosen = candidates[0]
            elif candidates:
                chosen = min(candidates, key=lambda t, a=axis: problem.cost(t, a))  # type: ignore[misc]
    return chosen


def _candidates(problem: Problem, now: Transform, axis: Axis, wish: str) -> list[Transform]:
    """Transforms to choose from, with each basis that an axis can have."""
    found = [now] if wish == "auto" else []
    if axis == Axis.TAPS and wish in ("auto", "dct") and max(problem.taps_shape) <= MAX_DCT:
        unit = _unit_dct(tuple(problem.taps_shape))
        found.append(now.replaced(axis, BasisKind.DCT, unit, True))
    if wish == "dct":
        return found
    weights, gradients = problem.moments(axis)
    if wish != "elt" or gradients is None:
        found.append(now.replaced(axis, BasisKind.EXPLICIT, klt(weights), True))
    if wish != "klt" and gradients is not None:
        found.append(now.replaced(axis, BasisKind.EXPLICIT, elt(weights, gradients), False))
    return found


@cache
def _unit_dct(taps_shape: tuple[int, ...]) -> NDArray[np.float64]:
    rows: NDArray[np.float64] = np.ones((1, 1))
    for length in taps_shape:
        rows = np.kron(rows, dct(length)).astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
