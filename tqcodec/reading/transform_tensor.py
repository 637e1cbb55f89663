"""A tensor in the transform domain, as numpy arrays: what a decoder has before it reconstructs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tqcodec.arrays import Array, dtype_of
from tqcodec.format.reconstruct import Domain, channels, weights
from tqcodec.format.records import axis_order
from tqcodec.format.registry import Axis

AXES: Final = tuple(axis.name.lower() for axis in Axis)  # out, in, taps

Basis = NDArray[np.int64] | None
Integers = NDArray[np.signedinteger]


@dataclass(frozen=True, eq=False)
class TransformTensor:
    """A tensor before its reconstruction (spec/tqc.md, chapter 10), in integers.

    With the channels o', i', t' of the three axes, q the coefficients and B the bases:

        w[o,i,t] = step r[o] sum_{o',i',t'} q[o',i',t'] m[i',t'] B_out[o',o] B_in[i',i] B_taps[t',t]

    A tensor that has no transform domain, because it is coded exactly or as a vector, has `values`,
    shape and dtype; all else is empty and says nothing. The arrays may be shared: do not write to
    them.

    Attributes:
        shape: dimensions of the weights.
        dtype: element type of the weights.
        roles: axis of each dimension: "out", "in" or "taps". An axis is the product of its
            dimensions, in their order.
        coefficients: q, signed integers of the narrowest type: (O', kept columns).
        columns: number i' * T' + t' of each kept column, ascending; the others are zero.
        bases: synthesis rows of the axes out, in, taps: (channels, length of the axis); None for an
            axis without a basis, whose channels are its positions.
        multipliers: m of each kept column.
        row_scales: r of each position of the axis out.
        scale: (mantissa, exponent) of the step, which is ``mantissa * 2 ** exponent``.
        values: the elements, where there is no transform domain; else None.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    roles: tuple[str, ...]
    coefficients: Integers
    columns: NDArray[np.int64]
    bases: tuple[Basis, Basis, Basis]
    multipliers: NDArray[np.int64]
    row_scales: NDArray[np.int64]
    scale: tuple[int, int]
    values: Array | None = None

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Positions of the axes out, in, taps."""
        pairs = list(zip(self.shape, self.roles, strict=self.values is None))
        out, inn, taps = (math.prod(n for n, role in pairs if role == axis) for axis in AXES)
        return out, inn, taps

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels of the axes out, in, taps: O', I', T'."""
        return channels(self.lengths, self.bases)

    @property
    def order(self) -> list[int]:
        """Dimensions of the weights, those of the axis out first, then in, then taps."""
        return axis_order(self._axes)

    @property
    def _axes(self) -> tuple[Axis, ...]:
        return tuple(Axis(AXES.index(role)) for role in self.roles)

    @property
    def step(self) -> float:
        """The step of the coefficients: the scale as a number."""
        return math.ldexp(*self.scale)

    def density(self) -> float:
        """Share of the coefficients that are not zero, of all columns; 1 without any."""
        if self.values is not None:
            return 1.0
        total = math.prod(self.channels)
        return np.count_nonzero(self.coefficients) / total if total else 1.0

    def weights(self) -> Array:
        """The weights, in the very bits that `TensorFile[name]` gives."""
        if self.values is not None:
            return self.values.copy()
        domain = Domain(
            self.shape,
            self._axes,
            self.coefficients,
            self.columns,
            self.bases,
            self.multipliers,
            self.row_scales,
            self.scale,
        )
        return weights(domain, dtype_of("", np.empty(0, self.dtype))).view(self.dtype)


def of_values(values: Array) -> TransformTensor:
    """A tensor that has no transform domain."""
    none = np.zeros(0, np.int64)
    bases = (None, None, None)
    nothing = none.reshape(0, 0)
    return TransformTensor(
        values.shape, values.dtype, (), nothing, none, bases, none, none, (1, 0), values
    )


def of_domain(domain: Domain, dtype: np.dtype[Any]) -> TransformTensor:
    """A tensor in the transform domain, as the format layer has it."""
    return TransformTensor(
        domain.shape,
        dtype,
        tuple(AXES[role] for role in domain.roles),
        narrowest(domain.coefficients),
        domain.columns.astype(np.int64),
        domain.bases,
        domain.multipliers,
        domain.row_scales,
        domain.scale,
    )


def narrowest(integers: NDArray[Any]) -> Integers:
    """Integers in the narrowest signed type that holds them all."""
    least, most = int(integers.min(initial=0)), int(integers.max(initial=0))
    types: list[type[np.signedinteger]] = [np.int8, np.int16, np.int32, np.int64]
    fitting = (t for t in types if np.iinfo(t).min <= least and most <= np.iinfo(t).max)
    return integers.astype(next(fitting))
