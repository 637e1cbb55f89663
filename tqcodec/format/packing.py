"""Fixed-length packing of integers, least significant bit first (chapter 6).

Imports numpy only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tqcodec.format.reader import Reader

MAX_WIDTH = 57  # a value and a shift of up to 7 bits fit one 64-bit word
BLOCK = 1 << 16  # values unpacked at a time, to bound memory


def packed_size(widths: NDArray[np.uint8]) -> int:
    """Bytes that values of these bit widths take."""
    return (int(widths.sum(dtype=np.int64)) + 7) // 8


def pack(values: NDArray[np.unsignedinteger], widths: NDArray[np.uint8]) -> bytes:
    """Lay the low `widths[i]` bits of each value one after another.

    Args:
        values: unsigned integers, each below ``2 ** widths[i]``, 1-D.
        widths: bits of each value, 0 to 57, uint8, same shape.
    """
    if not widths.any():
        return b""
    ends = np.cumsum(widths, dtype=np.int64)
    total = int(ends[-1])
    used = widths > 0
    starts = (ends - widths)[used]
    wide = values[used].astype(np.uint64)
    word, shift = starts >> 6, (starts & 63).astype(np.uint64)
    out = np.zeros(total // 64 + 2, np.uint64)
    spill = wide >> (np.uint64(63) - shift) >> np.uint64(1)
    first = np.flatnonzero(np.diff(word, prepend=-1))
    # Values of one word do not overlap: their union is the word.
    out[word[first]] |= np.bitwise_or.reduceat(wide << shift, first)
    out[word[first] + 1] |= np.bitwise_or.reduceat(spill, first)
    return out.astype("<u8").tobytes()[: (total + 7) // 8]


def unpack(reader: Reader, widths: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Inverse of `pack`: reads exactly `packed_size(widths)` bytes; spare bits must be 0."""
    if not widths.any():
        return np.zeros(len(widths), np.uint64)
    total = int(widths.sum(dtype=np.int64))
    data = reader.take((total + 7) // 8)
    if total & 7:
        reader.check(data[-1] >> (total & 7) == 0, "bits.spare", "spare bits are not zero")
    padded = bytes(data) + bytes(8)
    window = np.ndarray((len(padded) - 7,), "<u8", padded, strides=(1,))
    values = np.zeros(len(widths), np.uint64)
    end = 0
    for i in range(0, len(widths), BLOCK):
        part = widths[i : i + BLOCK]
        ends = end + np.cumsum(part, dtype=np.int64)
        end = int(ends[-1])
        used = np.flatnonzero(part)
        starts, wide = (ends - part)[used], part[used].astype(np.uint64)
        masks = (np.uint64(1) << wide) - np.uint64(1)
        values[i : i + BLOCK][used] = window[starts >> 3] >> (starts & 7).astype(np.uint64) & masks
    return values
