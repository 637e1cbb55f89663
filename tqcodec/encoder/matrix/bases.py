"""Bases: the integers of a transform, and coefficients in units of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.matrix.transform import Transform, axis_energies, row_steps
from tqcodec.format.dct import dct_rows
from tqcodec.format.records import Basis
from tqcodec.format.registry import MAX_BASIS_SHIFT, Axis, BasisKind
from tqcodec.format.vectors import Vector

VANISHING = 0.3  # largest coefficient over step below which a channel is dropped at once


@dataclass(frozen=True, eq=False)
class AxisBasis:
    """The basis of one axis as the file has it, and how to analyse by it.

    Attributes:
        basis: its record.
        analysis: float64 (channels, length), or None without a basis.
        rows: float64 (channels, length), its synthesis vectors over `norm`, or None.
        kept: channels of the float transform that it has, or None for all.
        norm: of its synthesis vectors, about.
    """

    basis: Basis
    analysis: NDArray[np.float64] | None = None
    rows: NDArray[np.float64] | None = None
    kept: NDArray[np.int64] | None = None
    norm: float = 1.0


def integer_bases(
    transform: Transform,
    weights: NDArray[np.float32],
    taps_shape: Sequence[int],
    step: float,
    drop: bool,
) -> list[AxisBasis]:
    """Bases of the axes out, in, taps.

    Args:
        transform: orthonormal bases.
        weights: float32 (O, I, T): their coefficients say how precise the rows must be.
        taps_shape: lengths of the taps' dimensions.
        step: of the quantizer, in units of the weights.
        drop: True to leave out channels that will vanish; False to keep them all.
    """
    explicit = BasisKind.EXPLICIT in transform.kinds
    coefficients = transform.analyse(weights) if explicit else weights
    bases = []
    for axis, kind, rows in zip(Axis, transform.kinds, transform.rows, strict=True):
        if kind == BasisKind.DCT:
            bases.append(_dct(taps_shape))
        elif rows is not None:
            bases.append(_explicit(rows, coefficients, axis, step, drop))
        else:
            bases.append(AxisBasis(Basis()))
    return bases


def _dct(taps_shape: Sequence[int]) -> AxisBasis:
    integers = dct_rows(taps_shape).astype(np.float64)
    norm = float(np.linalg.norm(integers[0]))
    rows = integers / norm
    return AxisBasis(Basis(BasisKind.DCT), analysis_of(rows), rows, None, norm)


def _explicit(
    rows: NDArray[np.float64],
    coefficients: NDArray[np.float32],
    axis: Axis,
    step: float,
    drop: bool,
) -> AxisBasis:
    others = tuple(a for a in Axis if a != axis)
    largest = np.abs(coefficients).max(axis=others, initial=0.0)
    kept = np.flatnonzero(largest > VANISHING * step) if drop else np.arange(len(rows))
    integer = quantize_basis(rows[kept], axis_energies(coefficients, axis)[kept], step)
    tables = Vector.constant(0, len(kept))
    basis = Basis(BasisKind.EXPLICIT, integer.entries, Vector(integer.shifts), tables)
    return AxisBasis(basis, analysis_of(integer.rows), integer.rows, kept, 2.0**integer.exponent)


def project(weights: NDArray[np.float32], bases: Sequence[AxisBasis]) -> NDArray[np.float32]:
    """Coefficients (O', I', T') of weights (O, I, T) in units of the bases."""
    for axis in (Axis.TAPS, Axis.IN, Axis.OUT):
        matrix = bases[axis].analysis
        if matrix is not None:
            moved = np.moveaxis(weights, axis, -1) @ matrix.astype(np.float32).T
            weights = np.ascontiguousarray(np.moveaxis(moved, -1, axis))
    return weights


@dataclass(frozen=True, eq=False)
class IntegerBasis:
    """The integers of one explicit basis.

    Attributes:
        entries: int32 (rows, length).
        shifts: uint8 (rows,): row k is ``entries[k] << shifts[k]``.
        exponent: rows have the norm ``2 ** exponent``, nearly.
    """

    entries: NDArray[np.int32]
    shifts: NDArray[np.uint8]
    exponent: int

    @property
    def rows(self) -> NDArray[np.float64]:
        """Synthesis rows with about unit norm."""
        scales = np.ldexp(1.0, self.shifts.astype(np.int64) - self.exponent)
        return self.entries.astype(np.float64) * scales[:, None]


def quantize_basis(
    rows: NDArray[np.float64], energies: NDArray[np.float64], step: float
) -> IntegerBasis:
    """Integers of a basis; each row as precise as the energy of its channel deserves."""
    wanted = np.floor(np.log2(row_steps(energies, step)))
    finest = min(-1.0, float(wanted.min(initial=0.0)))
    shifts = np.clip(wanted - finest, 0, MAX_BASIS_SHIFT).astype(np.uint8)
    # A row must not vanish: its largest entry keeps at least two bits.
    largest = np.abs(rows).max(axis=1, initial=0.0)
    coarsest = np.maximum(np.floor(np.log2(largest)) - finest - 1, 0)
    shifts = np.minimum(shifts, coarsest).astype(np.uint8)
    entries = np.rint(np.ldexp(rows, -int(finest) - shifts.astype(np.int64)[:, None]))
    return IntegerBasis(entries.astype(np.int32), shifts, -int(finest))


def analysis_of(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Analysis matrix (channels, length) for synthesis rows: least squares.

    By a pseudo-inverse, since rounded rows may depend on others. It is numpy's, which has the same
    routine as scipy's and drops only what float64 cannot tell from zero.
    """
    return np.linalg.pinv(rows).T.astype(np.float64)
