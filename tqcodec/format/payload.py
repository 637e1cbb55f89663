"""Payloads: the coefficients of one tile, range-coded or of fixed length (chapter 7).

Imports numpy only, besides the layers below.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tqcodec.errors import MalformedError
from tqcodec.format import packing, stream, trellis
from tqcodec.format import reader as io
from tqcodec.format.reader import Reader
from tqcodec.format.records import CodedTensor
from tqcodec.format.registry import MAX_VALUE, PayloadKind
from tqcodec.format.tables import Tables

DEPTH: Final = "payload.depth"


def write_payload(coded: CodedTensor, rows: slice, columns: slice, tables: Tables) -> bytes:
    """The element `payload` of one tile.

    Args:
        coded: the record; `records.write_head` takes it.
        rows, columns: of the tile.
        tables: of the file.

    Raises:
        MalformedError: coefficients that a payload cannot hold.
    """
    part = coded.coefficients[rows, columns]
    largest = max(int(part.max()), -int(part.min()))
    io.check(largest <= MAX_VALUE, DEPTH, f"a coefficient of magnitude {largest}")
    indices = part.astype(np.int32)
    if coded.steps:
        try:
            indices, _ = trellis.indices_of(indices, coded.steps)
        except ValueError as error:  # no index of any depth stands for it
            raise MalformedError(DEPTH, str(error)) from None
    _check_depths(indices, coded, columns, io.check)
    if coded.payload_kind == PayloadKind.RANGE:
        return stream.write_stream(indices, coded.table_ids(rows, columns), tables, coded.steps)
    widths = _widths(coded, indices.shape, columns)
    masks = (1 << widths.astype(np.int32)) - 1
    return packing.pack((indices & masks).ravel().astype(np.uint32), widths.ravel())


def read_payload(
    reader: Reader, coded: CodedTensor, rows: slice, columns: slice, tables: Tables
) -> None:
    """Inverse of `write_payload`: fills the tile of ``coded.coefficients``."""
    part = coded.coefficients[rows, columns]
    widths = _widths(coded, part.shape, columns)
    if coded.payload_kind == PayloadKind.FIXED:
        raw = packing.unpack(reader, widths.ravel()).astype(np.int32).reshape(part.shape)
        wide = widths.astype(np.int32)
        indices = raw - ((raw >> (wide - 1) & 1) << wide)
        part[:] = trellis.from_indices(indices, coded.steps) if coded.steps else indices
    else:
        ids = coded.table_ids(rows, columns)
        part[:], indices = stream.read_stream(reader, ids, tables, coded.steps)
        _check_depths(indices, coded, columns, reader.check)
    reader.end()


def _check_depths(
    indices: NDArray[np.int32], coded: CodedTensor, columns: slice, check: io.Check
) -> None:
    """Check that the indices of a tile lie in the signed ranges of their columns' depths."""
    depths = coded.depths.values[coded.kept[columns]]
    least = int(depths.min()) - 1  # bits of the magnitude
    if -(1 << least) <= int(indices.min()) and int(indices.max()) < 1 << least:
        return
    half = np.int32(1) << (depths.astype(np.int32) - 1)
    inside = ((indices.max(axis=0) < half) & (indices.min(axis=0) >= -half)).all()
    check(bool(inside), DEPTH, "an index outside its column's depth")


def _widths(coded: CodedTensor, shape: tuple[int, ...], columns: slice) -> NDArray[np.uint8]:
    depths = coded.depths.values[coded.kept[columns]]
    return np.broadcast_to(depths, shape)
