"""Streams of coded integers: words, escapes and low bits (chapter 5).

The integers of a stream are the indices of a tile (rows, columns). They are coded in steps: one
without a trellis, else one for each row of a segment; within a step by table, then by position, so
that each table is one run of the range coder. Imports numpy only, besides the layers below.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tqcodec.errors import MalformedError
from tqcodec.format import native, packing, portable
from tqcodec.format import reader as io
from tqcodec.format.reader import Reader
from tqcodec.format.registry import MAX_VALUE
from tqcodec.format.tables import Tables

ESCAPE_SIZES = (1, 2, 4)  # bytes of an escaped symbol


def write_stream(
    indices: NDArray[np.signedinteger], ids: NDArray[np.uint8], tables: Tables, steps: int = 0
) -> bytes:
    """The element `stream`.

    Args:
        indices: integers (rows, columns).
        ids: table of each, uint8, same shape; with a trellis that of quantizer 0.
        tables: the tables of the file.
        steps: rows of a trellis segment, 0 without a trellis.

    Raises:
        MalformedError: no such table, an index outside a table without an escape, or beyond what a
            stream may hold.
    """
    if ids.size:
        tables.check_index(int(ids.max()) + (1 if steps else 0), io.check)
        largest = max(int(indices.max()), -int(indices.min()))
        io.check(largest <= MAX_VALUE, "stream.range", f"a value of magnitude {largest}")
    indices = indices.astype(np.int32, copy=False)
    encode = native.encode if native.AVAILABLE else portable.encode
    try:
        words, escapes = encode(indices, ids, tables, steps)
    except ValueError as error:
        raise MalformedError("stream.escape", str(error)) from None
    out = io.uv(len(words) // 4) + io.uv(len(escapes))
    if len(escapes):
        most = max(int(escapes.max()), -1 - int(escapes.min()))
        size = next(s for s in ESCAPE_SIZES if most < 1 << (8 * s - 1))
        out += bytes([size]) + words + escapes.astype(f"<i{size}").tobytes()
    else:
        out += words
    if not tables.low_bits.any():
        return out
    widths = tables.low_bits[ids].ravel()
    low = indices.ravel() & ((1 << widths.astype(np.int32)) - 1)
    return out + packing.pack(low.astype(np.uint32), widths)


def read_stream(
    reader: Reader, ids: NDArray[np.uint8], tables: Tables, steps: int = 0
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Inverse of `write_stream`.

    Returns:
        Coefficients and indices, int32 of the shape of `ids`; without a trellis both are the same.
    """
    words, count = reader.uv(), reader.uv(ids.size)
    size = 0
    if count:
        size = reader.u8()
        reader.check(size in ESCAPE_SIZES, "stream.escape_size", f"escapes of {size} bytes")
    raw_words = reader.take(4 * words)
    raw = reader.take(count * size)
    escapes = np.frombuffer(raw, f"<i{size}" if size else "u1").astype(np.int32)
    low = np.zeros(0, np.uint32)
    if tables.low_bits.any():
        low = packing.unpack(reader, tables.low_bits[ids].ravel()).astype(np.uint32)
    return portable.decode(reader, raw_words, escapes, low, ids, tables, steps)
