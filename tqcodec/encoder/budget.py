"""Budget: the tables of all sets together within the limits of the format.

Each set is fitted apart (`tables.fit`). Where they are too many together, the two clusters whose
union costs the fewest bits for each table that it saves are merged, over all sets, until the rest
fits. What then still has too many members gives the rarest of them to its escapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.histograms import Histograms
from tqcodec.encoder.tables import TableSet, cluster_sums, code_lengths, tables_of
from tqcodec.format.registry import MAX_TABLES, MAX_WEIGHTS


def within_limits(sets: Sequence[TableSet]) -> list[TableSet]:
    """The sets, with fewer clusters where all tables of a file would be too many."""
    out = list(sets)
    unions: dict[int, tuple[float, int, int]] = {}  # of each set that has two clusters
    while not _are_few(out):
        for i, one in enumerate(out):
            if one.clusters > 1 and i not in unions:
                unions[i] = _cheapest_union(one)
        if not unions:
            return [_trimmed(one, MAX_WEIGHTS // _count(out)) for one in out]
        i = min(unions, key=lambda i: unions[i])
        _, first, second = unions.pop(i)
        out[i] = _merged(out[i], first, second)
    return out


def _count(sets: Sequence[TableSet]) -> int:
    return sum(len(one.tables) for one in sets)


def _are_few(sets: Sequence[TableSet]) -> bool:
    members = sum(len(table.weights) for one in sets for table in one.tables)
    return _count(sets) <= MAX_TABLES and members <= MAX_WEIGHTS


def _cheapest_union(one: TableSet) -> tuple[float, int, int]:
    """Bits that merging two clusters costs for each table saved, least of all; and these two."""
    sums = Histograms(cluster_sums(one), _low_bits(one))
    own, best = _bits(sums), (math.inf, 0, 1)
    for low in np.unique(sums.low_bits):
        finer = np.flatnonzero(sums.low_bits <= low)
        coarse = Histograms(sums.counts[finer], sums.low_bits[finer])
        coarse = coarse.with_low_bits(np.full_like(coarse.low_bits, low))
        for place, i in enumerate(finer):
            if sums.low_bits[i] == low:
                union = Histograms(coarse.counts + coarse.counts[place], coarse.low_bits)
                costs = _bits(union) - own[finer] - own[i]
                costs[place] = np.inf
                j = int(costs.argmin())
                best = min(best, (float(costs[j]), int(i), int(finer[j])))
    cost, first, second = best
    return cost / one.contexts, min(first, second), max(first, second)


def _bits(sums: Histograms) -> NDArray[np.float64]:
    """Bits of each group, coded with tables of its own: float64 (groups,)."""
    counts = sums.counts.astype(np.float32)
    coded = (counts * code_lengths(counts)).sum(axis=(1, 2), dtype=np.float64)
    return coded + sums.low_bits * counts.sum(axis=(1, 2), dtype=np.float64)


def _low_bits(one: TableSet) -> NDArray[np.int32]:
    """Low bits of each cluster."""
    return np.array([table.low_bits for table in one.tables[:: one.contexts]], np.int32)


def _merged(one: TableSet, first: int, second: int) -> TableSet:
    """The set with the second cluster in the first; their groups share the larger low bits."""
    low = _low_bits(one)
    low[[first, second]] = max(low[first], low[second])
    cluster = np.where(one.cluster == second, first, one.cluster)
    histograms = one.histograms.with_low_bits(low[cluster])
    return tables_of(histograms, cluster - (cluster > second), one.symmetric)


def _trimmed(one: TableSet, most: int) -> TableSet:
    return tables_of(one.histograms, one.cluster, one.symmetric, most)
