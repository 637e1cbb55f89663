"""Side tensors and exact ones: planes, with the mantissa shortened where that is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.histograms import BINS, REACH, Histograms
from tqcodec.encoder.settings import Settings
from tqcodec.encoder.tensor import Item
from tqcodec.format.dtypes import DType
from tqcodec.format.planes import Part
from tqcodec.format.registry import MAX_SYMBOLS

MIDDLE = 12  # exponents count from this far below the largest


def kept_bits(item: Item, settings: Settings) -> int | None:
    """Mantissa bits that a tensor which is rounded keeps; None for all."""
    own = item.options.side_bits
    return own if own is not None else settings.side_bits


def make_part(patterns: NDArray[np.unsignedinteger], dtype: DType, kept: int | None) -> Part:
    """The numbers of a tensor as a part, without its table yet.

    Args:
        patterns: bit patterns of any shape.
        dtype: element type.
        kept: mantissa bits to keep, more where a relative error of 2^-(kept + 1) takes them; None
            keeps all. Integers are always exact.
    """
    flat = patterns.reshape(-1)
    if not dtype.is_float:
        highest = int(flat.max(initial=0))
        return Part(dtype, flat, highest.bit_length())
    full = dtype.mantissa_bits
    kept = full if kept is None else precision(flat, dtype, min(kept, full))
    flat = _shorten(flat, dtype, kept)
    if kept == full:
        kept -= _spare_bits(flat, full)
    unsigned = not (flat >> (8 * dtype.size - 1)).any()
    if not len(flat):
        return Part(dtype, flat, kept, True, None, 0)
    exponents = exponents_of(flat, dtype)
    if exponents.min() == exponents.max():
        return Part(dtype, flat, kept, unsigned, None, int(exponents[0]))
    return Part(dtype, flat, kept, unsigned, 0, _offset(exponents))


def _offset(exponents: NDArray[np.int32]) -> int:
    """The exponent in the middle of the table.

    Tables are shared, so exponents line up at their largest value; but where more of them can be
    coded without escape, as in a tensor of zeros and few other numbers, at their smallest one.
    """
    offsets = (int(exponents.max()) - MIDDLE, int(exponents.min()))
    near = [int((np.abs(exponents - offset) <= REACH).sum()) for offset in offsets]
    return offsets[near[1] > near[0]]


def precision(flat: NDArray[np.unsignedinteger], dtype: DType, kept: int) -> int:
    """Mantissa bits to keep so that no relative error is above 2^-(kept + 1).

    More than `kept` where subnormal numbers have fewer of their own, or where the largest number
    would be rounded to infinity.
    """
    magnitudes = flat & flat.dtype.type((1 << (8 * dtype.size - 1)) - 1)
    full = dtype.mantissa_bits
    least = int(magnitudes[magnitudes > 0].min(initial=1 << full))
    needed = kept + full + 1 - least.bit_length() if least < 1 << full else kept
    needed = min(needed, full)
    most = int(magnitudes.max(initial=0))
    # The pattern of infinity. Without infinities only that of all bits set is no number.
    top = ((1 << dtype.exponent_bits) << full) - (1 << full if dtype.infinities else 1)
    while needed < full and _rounded(most, full - needed) >= top:
        needed += 1
    return needed


def _rounded(magnitude: int, drop: int) -> int:
    """A pattern without its sign, the last `drop` bits rounded away, half to even."""
    odd = magnitude >> drop & 1
    return (magnitude + (1 << (drop - 1)) - 1 + odd) >> drop << drop


def _shorten(
    flat: NDArray[np.unsignedinteger], dtype: DType, kept: int
) -> NDArray[np.unsignedinteger]:
    """Round mantissas to `kept` bits, half to even."""
    drop = dtype.mantissa_bits - kept
    if drop == 0:
        return flat
    wide = flat.astype(np.uint64)
    sign = wide >> np.uint64(8 * dtype.size - 1) << np.uint64(8 * dtype.size - 1)
    magnitude = wide ^ sign
    odd = magnitude >> np.uint64(drop) & np.uint64(1)
    rounded = (magnitude + np.uint64((1 << (drop - 1)) - 1) + odd) >> np.uint64(drop)
    return (rounded << np.uint64(drop) | sign).astype(dtype.pattern)


def _spare_bits(flat: NDArray[np.unsignedinteger], full: int) -> int:
    """Low mantissa bits that are 0 in all numbers."""
    union = int(np.bitwise_or.reduce(flat, initial=0)) | (1 << full)
    return (union & -union).bit_length() - 1


def exponents_of(flat: NDArray[np.unsignedinteger], dtype: DType) -> NDArray[np.int32]:
    """Biased exponents of bit patterns: int32."""
    mask = (1 << dtype.exponent_bits) - 1
    return (flat >> dtype.mantissa_bits & mask).astype(np.int32)


def is_incompressible(part: Part) -> bool:
    """True for no numbers at all, and for exact ones whose exponents are as good as random."""
    if not len(part.patterns):
        return True
    if part.table is None or part.kept < part.dtype.mantissa_bits:
        return False
    counts = exponent_histograms([part]).counts.ravel()
    used = counts[counts > 0]
    entropy = -float((used * np.log2(used / used.sum())).sum())
    entropy += float(counts[-1]) * part.dtype.exponent_bits  # these escape
    return entropy + 8 * len(used) > part.dtype.exponent_bits * len(part.patterns)


def exponent_histograms(parts: Sequence[Part]) -> Histograms:
    """One group for each part; empty for parts without coded exponents."""
    out = Histograms.empty(len(parts), 1)
    for counts, part in zip(out.counts, parts, strict=True):
        if part.table is None:
            continue
        for i in range(0, len(part.patterns), MAX_SYMBOLS):
            block = exponents_of(part.patterns[i : i + MAX_SYMBOLS], part.dtype) - part.offset
            bins = np.where(np.abs(block) <= REACH, block + REACH, BINS - 1)
            counts[0] += np.bincount(bins, minlength=BINS)
    return out


def with_table(part: Part, table: int) -> Part:
    """The part with the table of its exponents, if they are coded."""
    return part if part.table is None else replace(part, table=table)
