"""Histograms: counts of symbols by group, from which tables are fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

REACH: Final = 96  # symbols -REACH .. REACH have a bin each; all others share one
BINS: Final = 2 * REACH + 2
MOST_MEAN: Final = 12.0  # mean magnitude of a symbol above which a low bit is split off


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
