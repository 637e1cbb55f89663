"""Tables: a few frequency tables that serve all classes of all tensors.

Histograms of symbols are clustered by the bits they cost under each other's tables (Lloyd's
algorithm with the Kullback-Leibler divergence); the number of tables is the one for which data and
tables together are smallest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.histograms import BINS, REACH, Histograms
from tqcodec.format.registry import MAX_ALPHABET, TABLE_SUM
from tqcodec.format.tables import Table, write_tables

LLOYD_ROUNDS: Final = 6
SIZES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # numbers of clusters that are tried
PATIENCE: Final = 2  # numbers of clusters in a row that bring nothing before the search ends
ESCAPE_BITS: Final = 20.0  # of an escaped symbol beyond its code, about
SMOOTHING: Final = 0.02  # added to the counts of a cluster: what it lacks may still come


@dataclass(frozen=True, eq=False)
class TableSet:
    """Tables fitted to groups of histograms.

    Attributes:
        tables: for each cluster one table for each context, next to each other.
        cluster: cluster of each group, int64 (groups,); 0 for groups without a count.
        histograms: the groups, those of a cluster with the same low bits.
        symmetric: as of `fit`.
    """

    tables: tuple[Table, ...]
    cluster: NDArray[np.int64]
    histograms: Histograms
    symmetric: bool

    @property
    def contexts(self) -> int:
        """Tables of a cluster."""
        return self.histograms.counts.shape[1]

    @property
    def clusters(self) -> int:
        """Number of clusters."""
        return len(self.tables) // self.contexts

    def first_table(self, base: int) -> NDArray[np.int64]:
        """Index of the first table of each group when the set starts at table `base`."""
        return base + self.cluster * self.contexts


def fit(
    histograms: Histograms, most: int, symmetric: bool, sizes: Sequence[int] = SIZES
) -> TableSet:
    """Tables for the groups, as few as pay for themselves.

    Args:
        histograms: what is to be coded.
        most: largest number of clusters.
        symmetric: True where symbols of either sign are equally likely; used where no low bits
            are split off.
        sizes: numbers of clusters to try.
    """
    seen = np.flatnonzero(histograms.seen)
    if not len(seen):  # groups that code nothing still refer to tables
        seen = np.arange(min(1, len(histograms.counts)))
    used = Histograms(histograms.counts[seen], histograms.low_bits[seen])
    best, best_bits, worse = _fit_size(used, min(sizes[0], most), symmetric), np.inf, 0
    for size in sizes:
        if size > most or worse == PATIENCE:
            break
        candidate = _fit_size(used, size, symmetric)
        bits = _total_bits(used, candidate)
        worse = worse + 1 if bits >= best_bits else 0
        if bits < best_bits:
            best, best_bits = candidate, bits
    cluster = np.zeros(len(histograms.counts), np.int64)
    cluster[seen] = best.cluster
    return TableSet(best.tables, cluster, histograms, symmetric)


def _fit_size(histograms: Histograms, size: int, symmetric: bool) -> TableSet:
    """Tables of about `size` clusters."""
    return tables_of(histograms, _lloyd(histograms, size), symmetric)


def tables_of(
    histograms: Histograms,
    cluster: NDArray[np.int64],
    symmetric: bool,
    most: int = MAX_ALPHABET - 1,
) -> TableSet:
    """Tables of given clusters.

    Args:
        histograms: what is to be coded; groups of a cluster that are seen share their low bits.
        cluster: of each group, int64 (groups,), from 0 without a gap.
        symmetric: as of `fit`.
        most: largest number of symbols of a table.
    """
    number = int(cluster.max(initial=-1)) + 1
    sums = _sums(histograms.counts.astype(np.float32), cluster, number)
    low_bits = _low_bits_of(histograms, cluster, number)
    tables = tuple(
        make_table(counts, int(low), symmetric and low == 0, most)
        for contexts, low in zip(sums, low_bits, strict=True)
        for counts in contexts
    )
    return TableSet(tables, cluster, histograms, symmetric)


def _low_bits_of(
    histograms: Histograms, cluster: NDArray[np.int64], number: int
) -> NDArray[np.int32]:
    """Low bits of each cluster."""
    low = np.zeros(number, np.int32)
    low[cluster] = histograms.low_bits
    seen = histograms.seen
    low[cluster[seen]] = histograms.low_bits[seen]
    return low


def cluster_sums(chosen: TableSet) -> NDArray[np.int32]:
    """Histograms of the clusters: int32 (clusters, contexts, bins)."""
    counts = chosen.histograms.counts.astype(np.float32)
    return _sums(counts, chosen.cluster, chosen.clusters).astype(np.int32)


def _sums(
    counts: NDArray[np.float32], cluster: NDArray[np.int64], number: int
) -> NDArray[np.float32]:
    """Histograms of the clusters: float32 (number, contexts, bins)."""
    member = (cluster[None, :] == np.arange(number)[:, None]).astype(np.float32)
    sums: NDArray[np.float32] = member @ counts.reshape(len(counts), -1)
    return sums.reshape(number, *counts.shape[1:])


def code_lengths(counts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bits of each bin under smoothed counts, over the last axis."""
    smooth = counts + np.float32(SMOOTHING)
    bits: NDArray[np.float32] = -np.log2(smooth / smooth.sum(axis=-1, keepdims=True))
    bits[..., -1] += ESCAPE_BITS
    return bits


def _lloyd(histograms: Histograms, size: int) -> NDArray[np.int64]:
    """Cluster of each group, with about `size` clusters."""
    occupied = np.flatnonzero(histograms.counts[:, :, :-1].any(axis=(0, 1)))
    reach = slice(occupied[0], occupied[-1] + 1) if len(occupied) else slice(0, 0)
    bins = np.append(np.arange(BINS)[reach], BINS - 1)
    counts = histograms.counts[:, :, bins].astype(np.float32)
    flat = counts.reshape(len(counts), -1)
    cluster = _initial(histograms, size)
    for _ in range(LLOYD_ROUNDS):
        number = int(cluster.max(initial=0)) + 1
        sums = _sums(counts, cluster, number)
        low = _low_bits_of(histograms, cluster, number)
        cost = flat @ code_lengths(sums).reshape(number, -1).T
        cost[histograms.low_bits[:, None] != low[None, :]] = np.inf
        fresh = cost.argmin(axis=1)
        if (fresh == cluster).all():
            break
        cluster = fresh
    return np.unique(cluster, return_inverse=True)[1].astype(np.int64)


def _initial(histograms: Histograms, size: int) -> NDArray[np.int64]:
    """Clusters of equal weight after sorting the groups by low bits and mean magnitude."""
    magnitudes = np.abs(np.arange(BINS) - REACH)
    counts = histograms.counts.sum(axis=1)
    weight, sums = counts.sum(axis=1), counts @ magnitudes
    means = sums / np.maximum(weight, 1)
    order = np.lexsort((means, histograms.low_bits))
    # Square roots: small but different groups deserve tables more than their share.
    shares = np.cumsum(np.sqrt(weight[order]))
    cluster = np.zeros(len(order), np.int64)
    cluster[order] = np.minimum(shares / max(shares[-1], 1e-9) * size, size - 1).astype(np.int64)
    key = cluster * (int(histograms.low_bits.max(initial=0)) + 1) + histograms.low_bits
    return np.unique(key, return_inverse=True)[1].astype(np.int64)


def make_table(
    counts: NDArray[np.float32], low_bits: int, symmetric: bool, most: int = MAX_ALPHABET - 1
) -> Table:
    """The table of one histogram (BINS,): weights of sum 4096, an escape for what is rare.

    `most` is the largest number of its symbols; the others escape.
    """
    inside = counts[:-1].astype(np.float64)
    if symmetric:
        inside = (inside + inside[::-1]) / 2
    total = max(float(inside.sum() + counts[-1]), 1.0)
    frequent = np.flatnonzero(inside * TABLE_SUM >= 0.6 * total)
    if not len(frequent):
        frequent = np.array([REACH])
    low, high = int(frequent[0]), int(frequent[-1])
    if high - low >= most:
        low = _fullest(inside, most)
        high = low + most - 1
    if symmetric:
        reach = min(max(REACH - low, high - REACH), (most - 1) // 2)
        low, high = REACH - reach, REACH + reach
    rare = total - float(inside[low : high + 1].sum())
    target = np.append(inside[low : high + 1], rare) * (TABLE_SUM / total)
    weights = _round_to_sum(target, symmetric)
    return Table(low - REACH, tuple(weights[:-1].tolist()), int(weights[-1]), low_bits)


def _fullest(counts: NDArray[np.float64], length: int) -> int:
    """Start of the run of so many bins that holds most."""
    sums = np.cumsum(np.append(0.0, counts))
    return int((sums[length:] - sums[:-length]).argmax())


def _round_to_sum(target: NDArray[np.float64], symmetric: bool) -> NDArray[np.int64]:
    """Integers of at least 1 near the targets that sum to 4096; all but the last symmetric."""
    weights = np.maximum(np.rint(target), 1).astype(np.int64)
    surplus = int(weights.sum()) - TABLE_SUM
    if symmetric:
        middle = (len(weights) - 1) // 2
        while surplus >= weights[middle]:  # the middle cannot pay: the largest other does
            other = 1 + middle + int(weights[middle + 1 :].argmax())
            payers = [other] if other == len(weights) - 1 else [other, 2 * middle - other]
            weights[payers] -= 1
            surplus -= len(payers)
        weights[middle] -= surplus
        return weights
    while surplus > 0:
        largest = int(weights.argmax())
        taken = min(surplus, max(1, int(weights[largest]) // 8))
        weights[largest] -= taken
        surplus -= taken
    weights[int(weights.argmax())] -= surplus
    return weights


def _total_bits(histograms: Histograms, chosen: TableSet) -> float:
    """Bits of the data under its tables, and of the tables."""
    return float(group_bits(histograms, chosen).sum()) + 8 * len(write_tables(chosen.tables))


def group_bits(histograms: Histograms, chosen: TableSet) -> NDArray[np.float64]:
    """Bits of each group under its tables: float64 (groups,)."""
    bits = np.stack([table_bits(t) for t in chosen.tables]).astype(np.float32)
    counts = histograms.counts.reshape(len(histograms.counts), -1).astype(np.float32)
    cost = counts @ bits.reshape(-1, counts.shape[1]).T
    return cost[np.arange(len(cost)), chosen.cluster].astype(np.float64)


def table_bits(table: Table) -> NDArray[np.float64]:
    """Bits of each bin under a table: float64 (BINS,)."""
    bits = np.full(BINS, -np.log2(max(table.escape, 1) / TABLE_SUM) + ESCAPE_BITS)
    first = table.low + REACH
    bits[first : first + len(table.weights)] = -np.log2(np.array(table.weights) / TABLE_SUM)
    return bits + table.low_bits


def magnitude_bits(table: Table, largest: int) -> NDArray[np.float32]:
    """Bits of values 0 .. largest under a table, the mean of both signs: float32."""
    values = np.arange(largest + 1)
    bits = table_bits(table)
    both = [v >> table.low_bits for v in (values, -values)]
    bins = [np.where(np.abs(s) <= REACH, s + REACH, BINS - 1) for s in both]
    return (0.5 * (bits[bins[0]] + bits[bins[1]])).astype(np.float32)
