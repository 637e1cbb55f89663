"""Weights from coefficients, bit-exact (chapter 10).

Every sum is a sum of integers below 2^53, so it is exact in float64 in any order. Imports numpy
only, besides the layers below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tqcodec.format import reader as io
from tqcodec.format.dct import dct_rows
from tqcodec.format.dtypes import DType, round_to
from tqcodec.format.records import Basis, CodedTensor, axis_lengths, axis_order, taps_lengths
from tqcodec.format.registry import SUM_BITS, Axis, BasisKind, Quantizer
from tqcodec.format.vectors import Vector

ROW_SCALE_MANTISSA: Final = 5  # bits
MULTIPLIER_MANTISSA: Final = 3
BLOCK: Final = 1 << 17  # weights rebuilt at a time, to bound memory

Rows = NDArray[np.int64] | None  # synthesis rows of an axis, None without a basis


def expand(codes: NDArray[np.uint8], mantissa: int) -> NDArray[np.int64]:
    """Integers of 8-bit codes: c below 2^m; else (2^m + low m bits) << (c >> m) - 1."""
    wide = codes.astype(np.int64)
    exponent, fraction = wide >> mantissa, wide & ((1 << mantissa) - 1)
    normal = (fraction + (1 << mantissa)) << np.maximum(exponent - 1, 0)
    return np.where(exponent == 0, fraction, normal)


def basis_rows(basis: Basis, axis_shape: Sequence[int]) -> Rows:
    """Synthesis rows of a basis: int64 (channels, axis length), or None without a basis."""
    if basis.kind == BasisKind.DCT:
        return dct_rows(axis_shape)
    if basis.entries is None or basis.shifts is None:
        return None
    return basis.entries.astype(np.int64) << basis.shifts.values.astype(np.int64)[:, None]


def all_rows(coded: CodedTensor, shape: Sequence[int]) -> list[Rows]:
    """Synthesis rows of the three axes."""
    taps_shape = taps_lengths(shape, coded.roles)
    return [
        basis_rows(basis, taps_shape if axis == Axis.TAPS else ())
        for axis, basis in zip(Axis, coded.bases, strict=True)
    ]


def sum_bound(coded: CodedTensor, shape: Sequence[int]) -> int:
    """What no sum of the reconstruction exceeds; it follows from the head alone (10.1)."""
    depth = _largest(coded.depths)
    bound = max(1, 1 << depth >> (coded.quantizer == Quantizer.UNIFORM))
    multiplier = np.array([_largest(coded.multipliers)], np.uint8)
    bound *= max(1, int(expand(multiplier, MULTIPLIER_MANTISSA)[0]))
    for rows in all_rows(coded, shape):
        if rows is not None and rows.size:
            # Sums of doubles cannot wrap, and are exact below 2^53.
            bound *= max(1, int(np.abs(rows).sum(axis=0, dtype=np.float64).max()))
    return bound


def check_bound(coded: CodedTensor, shape: Sequence[int], check: io.Check) -> None:
    """Check that the sums of the reconstruction are exact in doubles (10.1)."""
    bound = sum_bound(coded, shape)
    message = f"sums may reach 2 ** {bound.bit_length() - 1}"
    check(bound < 1 << SUM_BITS, "reconstruct.bound", message)


def _largest(vector: Vector) -> int:
    return int(vector.values.max()) if len(vector.values) else 0


def channels(lengths: Sequence[int], bases: Sequence[Rows]) -> tuple[int, int, int]:
    """Channels O', I', T' of the three axes: those of a basis, or the positions of the axis."""
    out, inn, taps = (
        length if rows is None else len(rows) for length, rows in zip(lengths, bases, strict=True)
    )
    return out, inn, taps


@dataclass(frozen=True, eq=False)
class Domain:
    """A tensor in the transform domain, in the integers of 10.1 from which its weights follow.

    Attributes:
        shape: dimensions of the tensor.
        roles: axis of each dimension.
        coefficients: signed integers (O', kept columns).
        columns: numbers i' * T' + t' of the kept columns, ascending.
        bases: synthesis rows of the axes out, in, taps: int64 (channels, length of the axis); None
            for an axis without a basis, whose channels are its positions.
        multipliers: of each kept column, int64.
        row_scales: of each position of the output axis, int64.
        scale: (mantissa, exponent): the step is ``mantissa * 2 ** exponent``.
    """

    shape: tuple[int, ...]
    roles: tuple[Axis, ...]
    coefficients: NDArray[np.signedinteger]
    columns: NDArray[np.integer]
    bases: tuple[Rows, Rows, Rows]
    multipliers: NDArray[np.int64]
    row_scales: NDArray[np.int64]
    scale: tuple[int, int]

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels of the three axes: O', I', T'."""
        return channels(axis_lengths(self.shape, self.roles), self.bases)

    def columns_of(self, rows: slice) -> NDArray[np.float64]:
        """Integers q * m of some coefficient rows in all columns: float64 (rows, I', T')."""
        _, inner, taps = self.channels
        part = self.coefficients[rows].astype(np.float64)
        if not (self.multipliers == 1).all():
            part *= self.multipliers
        if len(self.columns) < inner * taps:
            full = np.zeros((len(part), inner * taps))
            full[:, self.columns] = part
            part = full
        return part.reshape(len(part), inner, taps)


def domain(coded: CodedTensor, shape: tuple[int, ...]) -> Domain:
    """The transform domain of a record, its coefficients filled."""
    out, inn, taps = all_rows(coded, shape)
    kept = coded.kept
    return Domain(
        shape,
        coded.roles,
        coded.coefficients,
        kept,
        (out, inn, taps),
        expand(coded.multipliers.values[kept], MULTIPLIER_MANTISSA),
        expand(coded.row_scales.values, ROW_SCALE_MANTISSA),
        coded.scale,
    )


def reconstruct(
    coded: CodedTensor, shape: tuple[int, ...], dtype: DType
) -> NDArray[np.unsignedinteger]:
    """Bit patterns of the weights of a record, as of `weights`."""
    return weights(domain(coded, shape), dtype)


def weights(domain: Domain, dtype: DType) -> NDArray[np.unsignedinteger]:
    """Bit patterns of the weights, of the tensor's shape.

    Args:
        domain: of a record whose `sum_bound` is below 2^53.
        dtype: element type, floating point.
    """
    lengths = axis_lengths(domain.shape, domain.roles)
    scale = math.ldexp(domain.scale[0], domain.scale[1])
    weights = np.empty(lengths, dtype.pattern)
    out_basis = domain.bases[Axis.OUT]
    for rows in _row_blocks(lengths, out_basis):
        if out_basis is None:
            sums = _columns(domain.columns_of(rows), domain.bases)
        else:
            sums = _columns(domain.columns_of(slice(None)), domain.bases)
            synthesis = out_basis.astype(np.float64).T
            flat = sums.reshape(len(sums), lengths[1] * lengths[2])
            sums = (synthesis @ flat).reshape(lengths)
        steps = scale * domain.row_scales[rows]
        sums += 0.0  # leaves no negative zero: the sums stand for integers
        sums *= steps[:, None, None]
        np.clip(sums, -dtype.largest, dtype.largest, out=sums)
        weights[rows] = round_to(sums, dtype)
    return _arrange(weights, domain.shape, domain.roles)


def _row_blocks(lengths: tuple[int, int, int], out_basis: Rows) -> list[slice]:
    """Blocks of rows; one block where an output basis needs all rows at once."""
    count = lengths[0]
    height = count if out_basis is not None else max(1, BLOCK // max(1, lengths[1] * lengths[2]))
    return [slice(r, min(r + height, count)) for r in range(0, count, max(1, height))]


def _columns(part: NDArray[np.float64], bases: Sequence[Rows]) -> NDArray[np.float64]:
    """Sums over the channels of the taps and of the input axis."""
    in_basis, taps_basis = bases[Axis.IN], bases[Axis.TAPS]
    if taps_basis is not None:
        part = part @ taps_basis.astype(np.float64)
    if in_basis is not None:
        rows, inner, taps = part.shape
        flat = part.transpose(0, 2, 1).reshape(rows * taps, inner)  # one product, not one a row
        product = flat @ in_basis.astype(np.float64)
        part = product.reshape(rows, taps, in_basis.shape[1]).transpose(0, 2, 1)
    return part


def _arrange(
    weights: NDArray[np.unsignedinteger], shape: tuple[int, ...], roles: Sequence[Axis]
) -> NDArray[np.unsignedinteger]:
    """From (out, in, taps) to the dimensions of the tensor."""
    order = axis_order(roles)
    spread = weights.reshape([shape[d] for d in order])
    # reshape: ascontiguousarray makes a scalar 1-D
    return np.ascontiguousarray(spread.transpose(np.argsort(order))).reshape(shape)
