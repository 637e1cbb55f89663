"""Transform: bases of the axes of a tensor, and what they cost.

Notation of the paper (Young et al. 2021): theta are the weights, U the transform whose columns are
analysis vectors; synthesis rows are those of U^-1, U^T where it is orthonormal. Without data the
optimal one is the KLT of the weight second moment C_tt, with a gradient second moment C_gg the ELT,
which diagonalises both (section III).

The step of the quantizer is `step` throughout, in units of the weights: bases are stored relative
to it and their precision follows from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tqcodec.format.dct import dct_rows
from tqcodec.format.registry import Axis, BasisKind

HIGH_RATE = 2 * math.pi * math.e  # ½ log2(2 pi e s²/d²): bits of a Gaussian of variance s², step d
ELT_REGULARISATION = 0.001  # of the norm of C_gg, as in the paper
FINEST = 2.0**-20  # step over the norm of a matrix: what float32 tells apart
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
            matrices = tuple(None if m is None else _dual(m) for m in matrices)
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


def finest_step(norm: float) -> float:
    """Smallest step of a matrix whose coefficients have this norm."""
    return norm * FINEST if norm > 0 else 1.0


def _dual(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Analysis rows of synthesis rows: the inverse itself, by numpy as well as by scipy."""
    return np.asarray(np.linalg.inv(rows).T, np.float64)


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

    They are the rows of U^-1 = U^T C_gg^-1, where U^T C_tt U is diagonal and U^T C_gg^-1 U = I
    (Young et al. 2021, section III): a generalised eigenproblem, C_gg C_tt u = u lambda.

    Args:
        weights: second moment C_tt, (n, n).
        gradients: second moment C_gg, (n, n).
    """
    from scipy import linalg  # slow to import, and few files need it

    n = len(gradients)
    regular = gradients + ELT_REGULARISATION * np.linalg.norm(gradients) * np.eye(n)
    _, columns = linalg.eigh(weights, regular, type=3)  # by rising eigenvalue
    rows = linalg.solve(regular, columns[:, ::-1], assume_a="pos").T
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


@cache
def unit_dct(taps_shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Rows of the format's DCT, of unit norm."""
    rows = dct_rows(taps_shape).astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
