"""The 8-state trellis of the trellis-coded quantizer (chapter 7).

Coefficients of a tile run through the trellis in segments of `steps` rows, one segment for each
column and each group of rows, all starting in state 0. All segments advance together, one row at a
time, so that a step is one vector. Imports numpy only, besides the layers below.

The code is Ungerboeck's for one dimension and 8 states (IEEE Trans. IT 28(1), 1982, table I:
h0 = 13, h1 = 04), used as in Marcellin and Fischer, IEEE Trans. COM 38(1), 1990; the two quantizers,
both with a zero, are those of dependent quantization in H.266 (8.7.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tqcodec.format.reader import Reader
from tqcodec.format.symbols import SymbolReader, SymbolWriter, join, low_widths
from tqcodec.format.tables import Table

STATES: Final = 8
# Next state by (state, parity of the index); quantizer of a state is its lowest bit.
TRANSITIONS: Final = ((0, 2), (5, 7), (1, 3), (4, 6), (2, 0), (7, 5), (3, 1), (6, 4))
_NEXT: Final = np.array(TRANSITIONS, np.uint8).ravel()


def coefficients_of(indices: NDArray[np.int32], quantizer: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Coefficient of each index: 2k by quantizer 0, 2k - sign(k) by quantizer 1."""
    return 2 * indices - np.sign(indices) * quantizer


class _Walk:
    """Advances all segments of a tile of `shape` (rows, columns) by `steps` rows."""

    def __init__(self, shape: tuple[int, int], steps: int) -> None:
        groups = -(-shape[0] // steps)
        self._state = np.zeros(groups * shape[1], np.uint8)
        self._shape, self._steps = shape, steps

    def rows(self) -> Iterator[slice]:
        """Rows of each step: one of every segment."""
        return (slice(t, None, self._steps) for t in range(min(self._shape[0], self._steps)))

    def quantizer(self, count: int) -> NDArray[np.uint8]:
        """Quantizer of the next step's `count` coefficients."""
        return self._state[:count] & 1

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
    walk = _Walk((coefficients.shape[0], coefficients.shape[1]), steps)
    out = np.empty(coefficients.shape, np.int32)
    quantizers = np.empty(coefficients.shape, np.uint8)
    for rows in walk.rows():
        part = coefficients[rows].ravel().astype(np.int32)
        quantizer = walk.quantizer(len(part))
        doubled = part + np.sign(part) * quantizer
        if (doubled & 1).any():
            raise ValueError("coefficient is not on the trellis")
        indices = doubled >> 1
        quantizers[rows] = quantizer.reshape(-1, coefficients.shape[1])
        walk.advance(indices)
        out[rows] = indices.reshape(-1, coefficients.shape[1])
    return out, quantizers


def from_indices(indices: NDArray[np.int32], steps: int) -> NDArray[np.int32]:
    """Inverse of `indices_of`."""
    walk = _Walk((indices.shape[0], indices.shape[1]), steps)
    out = np.empty_like(indices)
    for rows in walk.rows():
        part = indices[rows].ravel()
        quantizer = walk.quantizer(len(part))
        walk.advance(part)
        out[rows] = coefficients_of(part, quantizer).reshape(-1, indices.shape[1])
    return out


def write(
    coefficients: NDArray[np.int32], ids: NDArray[np.uint8], tables: Sequence[Table], steps: int
) -> bytes:
    """The element `stream` of one tile: int32 coefficients and table ids, (rows, columns)."""
    indices, quantizers = indices_of(coefficients, steps)
    widths = low_widths(ids, tables)
    symbols = indices >> widths
    paired = ids + quantizers
    writer = SymbolWriter(tables)
    for top in range(min(steps, len(ids))):
        rows = slice(top, None, steps)
        writer.step(symbols[rows].ravel(), paired[rows].ravel())
    low = indices & ((1 << widths.astype(np.int32)) - 1)
    return writer.end(low.ravel().astype(np.uint32), widths.ravel())


def read(
    reader: Reader, ids: NDArray[np.uint8], tables: Sequence[Table], steps: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Inverse of `write`: coefficients and indices, int32 (rows, columns)."""
    shape = (ids.shape[0], ids.shape[1])
    widths = low_widths(ids, tables)
    source = SymbolReader(reader, tables, widths.ravel())
    low = source.low.reshape(shape)
    walk = _Walk(shape, steps)
    out, all_indices = np.empty(shape, np.int32), np.empty(shape, np.int32)
    for rows in walk.rows():
        quantizer = walk.quantizer(ids[rows].size)
        symbols = source.step(ids[rows].ravel() + quantizer)
        indices = join(symbols, low[rows].ravel(), widths[rows].ravel(), reader)
        walk.advance(indices)
        out[rows] = coefficients_of(indices, quantizer).reshape(-1, shape[1])
        all_indices[rows] = indices.reshape(-1, shape[1])
    source.end()
    return out, all_indices
