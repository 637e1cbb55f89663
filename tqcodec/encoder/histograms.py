"""Histograms: counts of symbols by group, from which tables are fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tqcodec.format.registry import MAX_LOW_BITS, MAX_VALUE

REACH: Final = 96  # symbols -REACH .. REACH have a bin each; all others share one
BINS: Final = 2 * REACH + 2
MOST_MEAN: Final = 12.0  # mean magnitude of a symbol above which a low bit is split off
# With more of them the symbols of a full table would be beyond what a stream may hold.
MOST_LOW_BITS: Final = min(MAX_LOW_BITS, (MAX_VALUE // (REACH + 1)).bit_length() - 1)


@dataclass(frozen=True, eq=False)
class Histograms:
    """Counts of symbols in groups, each of one or two contexts.

    Attributes:
        counts: int32 (groups, contexts, BINS); bin s + REACH counts symbol s, the last bin all
            symbols beyond the reach. Contexts are the quantizers of a trellis.
        low_bits: bits split off the values of each group, int32 (groups,).
    """

    counts: NDArray[np.int32]
    low_bits: NDArray[np.int32]

    @property
    def seen(self) -> NDArray[np.bool_]:
        """True for the groups that have a count."""
        return np.array(self.counts.any(axis=(1, 2)))

    def entropy(self) -> float:
        """Bits that the symbols take at least, coded with a table of their own for each context."""
        counts = self.counts.reshape(-1, BINS).astype(np.float64)
        totals = counts.sum(axis=1, keepdims=True)
        shares = np.divide(counts, totals, out=np.ones_like(counts), where=counts > 0)
        return -float((counts * np.log2(shares)).sum())

    def with_low_bits(self, low_bits: NDArray[np.int32]) -> Histograms:
        """The same values with more low bits split off: coarser symbols, the same escapes."""
        counts, more = self.counts.copy(), low_bits - self.low_bits
        symbols = np.arange(-REACH, REACH + 1)
        for shift in np.unique(more[more > 0]):
            moved = np.zeros((len(symbols), len(symbols)), counts.dtype)
            moved[np.arange(len(symbols)), (symbols >> shift) + REACH] = 1
            groups = more == shift
            counts[groups, :, :-1] = counts[groups, :, :-1] @ moved
        return Histograms(counts, low_bits)

    @staticmethod
    def empty(groups: int, contexts: int) -> Histograms:
        """Histograms without a count."""
        counts = np.zeros((groups, contexts, BINS), np.int32)
        return Histograms(counts, np.zeros(groups, np.int32))

    @staticmethod
    def join(parts: Sequence[Histograms]) -> Histograms:
        """All groups of all parts, in order."""
        return Histograms(
            np.concatenate([p.counts for p in parts]), np.concatenate([p.low_bits for p in parts])
        )


Counted = tuple[NDArray[np.int32], NDArray[np.integer], NDArray[np.uint8] | None]


def count(
    values: NDArray[np.int32],
    groups: NDArray[np.integer],
    number: int,
    contexts: NDArray[np.uint8] | None = None,
) -> Histograms:
    """Histograms of values by group (and context), all 1-D of the same length."""
    return count_blocks(lambda: iter([(values, groups, contexts)]), number, contexts is not None)


def count_blocks(
    blocks: Callable[[], Iterator[Counted]], number: int, with_contexts: bool
) -> Histograms:
    """Histograms of values that come in blocks of (values, groups, contexts); two passes."""
    sums, sizes = np.zeros(number), np.zeros(number)
    for values, groups, _ in blocks():
        sums += np.bincount(groups, np.abs(values), number)
        sizes += np.bincount(groups, minlength=number)
    means = sums / np.maximum(sizes, 1)
    low_bits = np.ceil(np.log2(np.maximum(means / MOST_MEAN, 1))).astype(np.int32)
    low_bits = np.minimum(low_bits, MOST_LOW_BITS)
    ways = 2 if with_contexts else 1
    counts = np.zeros(number * ways * BINS, np.int64)
    for values, groups, contexts in blocks():
        symbols = values >> low_bits[groups]
        bins = np.where(np.abs(symbols) <= REACH, symbols + REACH, BINS - 1)
        index = groups.astype(np.int32) * ways
        if contexts is not None:
            index += contexts
        counts += np.bincount(index * BINS + bins, minlength=len(counts))
    return Histograms(counts.reshape(number, ways, BINS).astype(np.int32), low_bits)


def entropy_of(vector: NDArray[np.integer]) -> float:
    """Bits of a vector under its own counts."""
    counts = np.unique(vector, return_counts=True)[1]
    return -float((counts * np.log2(counts / max(1, len(vector)))).sum())


def nearest_seen(seen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each class itself if it was seen, else the nearest that was."""
    where = np.flatnonzero(seen)
    if not len(where):
        return np.arange(len(seen))
    distance = np.abs(np.arange(len(seen))[:, None] - where[None, :])
    nearest: NDArray[np.int64] = where[distance.argmin(axis=1)]
    return nearest
