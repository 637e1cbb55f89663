"""The 8-state trellis of the trellis-coded quantizer (chapter 7).

Coefficients of a tile run through the trellis in segments of `steps` rows, one segment for each
column and each group of rows, all starting in state 0. All segments advance together, one row at a
time, so that a step is one vector. Imports numpy only, besides the layers below.

The code is Ungerboeck's for one dimension and 8 states (IEEE Trans. IT 28(1), 1982, table I:
h0 = 13, h1 = 04), used as in Marcellin and Fischer, IEEE Trans. COM 38(1), 1990; the two
quantizers, both with a zero, are those of dependent quantization in H.266 (8.7.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tqcodec.format import native

STATES: Final = 8
# Next state by (state, parity of the index); quantizer of a state is its lowest bit.
TRANSITIONS: Final = ((0, 2), (5, 7), (1, 3), (4, 6), (2, 0), (7, 5), (3, 1), (6, 4))
_NEXT: Final = np.array(TRANSITIONS, np.uint8).ravel()


def coefficients_of(indices: NDArray[np.int32], quantizer: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Coefficient of each index: 2k by quantizer 0, 2k - sign(k) by quantizer 1."""
    return 2 * indices - _sign(indices) * quantizer


def _sign(values: NDArray[np.int32]) -> NDArray[np.int32]:
    return (values > 0).astype(np.int32) - (values < 0)


class Walk:
    """Advances all segments of a tile of `shape` (rows, columns) by `steps` rows.

    With 0 steps there is no trellis, and all rows are one step.
    """

    def __init__(self, shape: tuple[int, ...], steps: int) -> None:
        groups = -(-shape[0] // steps) if steps else 0
        self._state = np.zeros(groups * shape[1], np.uint8)
        self._shape, self._steps = shape, steps

    def rows(self) -> Iterator[slice]:
        """Rows of each step: one of every segment."""
        if not self._steps:
            return iter([slice(None)])
        return (slice(t, None, self._steps) for t in range(min(self._shape[0], self._steps)))

    def quantizer(self, count: int) -> NDArray[np.uint8]:
        """Quantizer of the next step's `count` coefficients."""
        return self._state[:count] & np.uint8(1)

    def advance(self, indices: NDArray[np.int32]) -> None:
        """Take the next step's indices."""
        state = self._state[: len(indices)]
        state[:] = _NEXT[2 * state + (indices & 1).astype(np.uint8)]


def indices_of(
    coefficients: NDArray[np.signedinteger], steps: int
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Indices of coefficients (rows, columns), and the quantizer that each belongs to.

    Raises:
        ValueError: a coefficient that its quantizer does not have.
    """
    if native.AVAILABLE:
        return native.indices_of(coefficients, steps)
    walk = Walk((coefficients.shape[0], coefficients.shape[1]), steps)
    out = np.empty(coefficients.shape, np.int32)
    quantizers = np.empty(coefficients.shape, np.uint8)
    for rows in walk.rows():
        part = coefficients[rows].ravel().astype(np.int32)
        quantizer = walk.quantizer(len(part))
        doubled = part + _sign(part) * quantizer
        if (doubled & 1).any():
            raise ValueError("coefficient is not on the trellis")
        indices = doubled >> 1
        quantizers[rows] = quantizer.reshape(quantizers[rows].shape)
        walk.advance(indices)
        out[rows] = indices.reshape(out[rows].shape)
    return out, quantizers


def from_indices(indices: NDArray[np.int32], steps: int) -> NDArray[np.int32]:
    """Inverse of `indices_of`."""
    walk = Walk((indices.shape[0], indices.shape[1]), steps)
    out = np.empty_like(indices)
    for rows in walk.rows():
        part = indices[rows].ravel()
        quantizer = walk.quantizer(len(part))
        walk.advance(part)
        out[rows] = coefficients_of(part, quantizer).reshape(out[rows].shape)
    return out
