"""Tables against brute force: over what groups share a table, and over the weights of one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from strategies import Array, Rng

from tqcodec.encoder import tables
from tqcodec.encoder.histograms import BINS, REACH, Histograms
from tqcodec.encoder.tables import TableSet
from tqcodec.format.reader import Reader
from tqcodec.format.registry import TABLE_SUM
from tqcodec.format.tables import Table, read_tables, write_tables


def groups_of(
    rng: Rng, groups: int, contexts: int = 1, count: int = 400, kinds: int = 3
) -> Histograms:
    """Groups of a few symbols, of one of some kinds each."""
    counts = np.zeros((groups, contexts, BINS), np.int32)
    scales = rng.uniform(0.2, 3, (kinds, contexts))
    for g in range(groups):
        for c, scale in enumerate(scales[rng.integers(kinds)]):
            size = int(count * rng.uniform(0.1, 2))
            symbols = np.rint(rng.laplace(0, scale, size)).astype(int).clip(-6, 6)
            np.add.at(counts[g, c], symbols + REACH, 1)
    return Histograms(counts, np.zeros(groups, np.int32))


def partitions(groups: int, most: int) -> Iterator[tuple[int, ...]]:
    """Every way to put groups into at most so many clusters, numbered in order of appearance."""
    for clusters in itertools.product(range(min(groups, most)), repeat=groups):
        if all(c <= max(clusters[:i], default=-1) + 1 for i, c in enumerate(clusters)):
            yield clusters


def bits_of(counts: Array, table: Table) -> float:
    """Bits of one histogram under a table, symbol by symbol; escapes take 20 more."""
    total = 0.0
    for place in np.flatnonzero(counts).tolist():
        position = place - REACH - table.low
        inside = place < BINS - 1 and 0 <= position < len(table.weights)
        weight = table.weights[position] if inside else max(table.escape, 1)
        bits = math.log2(TABLE_SUM / weight) + table.low_bits + (0 if inside else 20)
        total += int(counts[place]) * bits
    return total


def total_bits(histograms: Histograms, chosen: TableSet) -> float:
    """Bits of all groups and of the tables."""
    total = 8.0 * len(write_tables(chosen.tables))
    for contexts, cluster in zip(histograms.counts, chosen.cluster.tolist(), strict=True):
        for c, counts in enumerate(contexts):
            total += bits_of(counts, chosen.tables[cluster * len(contexts) + c])
    return total


def assert_legal(made: Sequence[Table]) -> None:
    """What the format asks of tables."""
    for table in made:
        assert sum(table.weights) + table.escape == TABLE_SUM
        assert min(table.weights) >= 1 and table.escape >= 0
    assert list(read_tables(Reader(write_tables(made)))) == list(made)


# Which groups share a table


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("contexts", [1, 2])
@pytest.mark.parametrize("count", [60, 400, 3000])
def test_fit_is_near_the_best_partition(count: int, contexts: int, symmetric: bool) -> None:
    """Within 0.5 % of the best of all in sum, 10 % at worst, and never behind one table for all.

    Lloyd's algorithm ends at partitions that no single group would leave: not always the best.
    """
    rng = np.random.default_rng([count, contexts, symmetric])
    total = least = 0.0
    for groups in (2, 3, 4, 5):
        for _ in range(4):
            histograms = groups_of(rng, groups, contexts, count)
            found = tables.fit(histograms, 48, symmetric)
            assert_legal(found.tables)
            costs = {}
            for clusters in partitions(groups, groups):
                one = tables.tables_of(histograms, np.array(clusters), symmetric)
                costs[clusters] = total_bits(histograms, one)
            cost, best = total_bits(histograms, found), min(costs.values())
            assert best * (1 - 1e-6) <= cost <= 1.1 * best
            assert cost <= costs[(0,) * groups] + 0.1
            total, least = total + cost, least + best
    assert total <= 1.005 * least


def test_groups_of_different_kinds_part_and_equal_ones_do_not() -> None:
    rng = np.random.default_rng(1)
    counts = np.zeros((6, 1, BINS), np.int32)
    for g in range(6):
        scale = (0.3, 5.0)[g % 2]
        symbols = np.rint(rng.laplace(0, scale, 20_000)).astype(int).clip(-REACH, REACH)
        np.add.at(counts[g, 0], symbols + REACH, 1)
    found = tables.fit(Histograms(counts, np.zeros(6, np.int32)), 2, True)
    assert found.clusters == 2 and found.cluster[0] != found.cluster[1]
    assert (found.cluster == found.cluster[[0, 1] * 3]).all()
    same = Histograms(counts[[1, 1, 1]], np.zeros(3, np.int32))
    assert tables.fit(same, 48, True).clusters == 1


def test_more_clusters_than_allowed_are_never_made() -> None:
    rng = np.random.default_rng(2)
    histograms = groups_of(rng, 12, count=20_000, kinds=12)
    free = tables.fit(histograms, 48, False)
    assert free.clusters > 4
    costs = []
    for most in (1, 2, 4, 12):
        found = tables.fit(histograms, most, False)
        assert found.clusters <= most
        costs.append(total_bits(histograms, found))
    assert costs == sorted(costs, reverse=True) and costs[0] > costs[2]


def test_no_group_would_rather_have_another_table() -> None:
    """Lloyd's algorithm has ended: what moves a single group costs more, but for rounding."""
    rng = np.random.default_rng(3)
    for _ in range(5):
        histograms = groups_of(rng, 9, 2, 2000, 4)
        found = tables.fit(histograms, 48, True)
        for counts, own in zip(histograms.counts, found.cluster.tolist(), strict=True):
            costs = [
                sum(bits_of(c, found.tables[2 * k + i]) for i, c in enumerate(counts))
                for k in range(found.clusters)
            ]
            assert costs[own] <= min(costs) * 1.002 + 1


def test_groups_with_different_low_bits_share_no_table() -> None:
    rng = np.random.default_rng(4)
    low_bits = np.array([0, 3, 0, 3, 1], np.int32)
    same = groups_of(rng, 1).counts[[0] * 5]  # nothing else tells them apart
    histograms = Histograms(same, low_bits)
    for symmetric in (False, True):
        found = tables.fit(histograms, 48, symmetric)
        assert found.clusters == 3
        assert [found.tables[k].low_bits for k in found.cluster] == low_bits.tolist()
        assert_legal(found.tables)


def test_groups_without_a_count_have_the_first_table() -> None:
    rng = np.random.default_rng(5)
    counts = groups_of(rng, 6, 2, count=20_000, kinds=6).counts.copy()
    counts[[0, 3]] = 0
    full = [1, 2, 4, 5]
    low_bits = np.array([7, 0, 0, 9, 0, 0], np.int32)
    found = tables.fit(Histograms(counts, low_bits), 48, False)
    alone = tables.fit(Histograms(counts[full], low_bits[full]), 48, False)
    assert found.tables == alone.tables
    assert found.cluster[full].tolist() == alone.cluster.tolist()
    assert found.cluster[[0, 3]].tolist() == [0, 0]
    assert found.clusters > 1 and found.contexts == 2
    assert found.first_table(10).tolist() == (10 + 2 * found.cluster).tolist()
    nothing = tables.fit(Histograms.empty(3, 2), 48, True)
    assert nothing.clusters == 1 and nothing.cluster.tolist() == [0, 0, 0]
    assert_legal(nothing.tables)


def test_bits_of_groups_symbol_by_symbol() -> None:
    rng = np.random.default_rng(6)
    histograms = groups_of(rng, 5, 2, 2000, 5)
    histograms.counts[:, :, -1] = rng.integers(0, 5, (5, 2))  # beyond the reach
    found = tables.fit(histograms, 2, False)
    for g, bits in enumerate(tables.group_bits(histograms, found).tolist()):
        first = 2 * int(found.cluster[g])
        own = [bits_of(c, found.tables[first + i]) for i, c in enumerate(histograms.counts[g])]
        assert bits == pytest.approx(sum(own), rel=1e-5)
    sums = tables.cluster_sums(found)
    for k in range(found.clusters):
        assert (sums[k] == histograms.counts[found.cluster == k].sum(axis=0)).all()


# The weights of one table


def histogram(counts: dict[int, int], beyond: int = 0) -> Array:
    out = np.zeros(BINS, np.float32)
    for symbol, count in counts.items():
        out[symbol + REACH] = count
    out[-1] = beyond
    return out


def least_bits(counts: Sequence[int], symmetric: bool) -> float:
    """Of three symbols under the best weights that leave 1 for the escape: all are tried."""
    if symmetric:
        side = np.arange(1, (TABLE_SUM - 1) // 2)
        middle = TABLE_SUM - 1 - 2 * side
        bits = -(counts[0] + counts[2]) * np.log2(side / TABLE_SUM)
        return float((bits - counts[1] * np.log2(middle / TABLE_SUM)).min())
    lengths = -np.log2(np.arange(1, TABLE_SUM) / TABLE_SUM)  # of weights 1, 2, ...
    best = math.inf
    for first in range(1, TABLE_SUM - 2):
        left = TABLE_SUM - 1 - first  # for the other two
        own = counts[1] * lengths[: left - 1] + counts[2] * lengths[: left - 1][::-1]
        best = min(best, counts[0] * float(lengths[first - 1]) + float(own.min()))
    return best


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "counts", [(500, 900, 300), (2, 5000, 1), (1, 1, 1), (40, 3, 2), (9000, 20_000, 70_000)]
)
def test_weights_are_near_the_best(counts: tuple[int, int, int], symmetric: bool) -> None:
    made = tables.make_table(histogram(dict(zip((-1, 0, 1), counts, strict=True))), 0, symmetric)
    assert_legal([made])
    assert made.low == -1 and len(made.weights) == 3 and made.escape == 1
    assert made.is_symmetric() or not symmetric
    bits = sum(-n * math.log2(w / TABLE_SUM) for n, w in zip(counts, made.weights, strict=True))
    assert bits <= 1.001 * least_bits(counts, symmetric) + 0.05


@pytest.mark.parametrize("symmetric", [False, True])
def test_any_histogram_makes_a_legal_table(symmetric: bool) -> None:
    """From a single count to all bins full, in shares from even to extreme."""
    rng = np.random.default_rng(7)
    for _ in range(300):
        used = rng.integers(1, BINS + 1)
        counts = np.zeros(BINS, np.float32)
        chosen = rng.permutation(BINS)[:used]
        counts[chosen] = np.rint(2.0 ** rng.uniform(0, rng.choice([1, 8, 24]), used))
        low_bits, most = int(rng.integers(0, 5)), int(rng.choice([1, 2, 3, 8, 4095]))
        made = tables.make_table(counts, low_bits, symmetric, most)
        assert_legal([made])
        assert made.is_symmetric() or not symmetric
        assert made.low_bits == low_bits and len(made.weights) <= most
        assert made.low >= -REACH and made.low + len(made.weights) - 1 <= REACH
        covered = made.low + len(made.weights) - 1 == REACH and made.low == -REACH
        # What is not in the alphabet can escape.
        assert made.escape >= 1 or (covered and counts[-1] == 0)


def test_a_table_gives_each_symbol_its_share() -> None:
    """Rounded; the fullest takes what rounding leaves."""
    rng = np.random.default_rng(8)
    lacking = 0
    for _ in range(20):
        counts = rng.integers(50, 1000, 21)
        inside = dict(zip(range(-10, 11), counts.tolist(), strict=True))
        made = tables.make_table(histogram(inside, beyond=200), 0, False)
        shares = np.array([*inside.values(), 200]) * TABLE_SUM / (counts.sum() + 200)
        off = np.array(made.all_weights) - shares
        fullest = int(shares.argmax())
        assert np.abs(np.delete(off, fullest)).max() <= 0.5 + 1e-3
        assert abs(off[fullest]) <= len(off) / 2
        lacking += off[fullest] > 1
    assert lacking  # rounding has left something to take


def test_rare_symbols_escape() -> None:
    """Those at the ends, that would not get a weight of 0.6; not those in between."""
    many = TABLE_SUM * 10
    counts = {-5: 3, -1: 10_000, 0: many - 10_017, 1: 4, 2: 0, 3: 10}
    made = tables.make_table(histogram(counts), 0, False)
    assert made.low == -1 and len(made.weights) == 5
    assert made.weights[2] == made.weights[3] == 1 and made.escape == 1


def test_a_short_alphabet_is_the_fullest_run() -> None:
    rng = np.random.default_rng(9)
    counts = rng.integers(100, 200, 30)
    made = tables.make_table(
        histogram(dict(zip(range(-4, 26), counts.tolist(), strict=True))), 2, False, 7
    )
    runs = [int(counts[i : i + 7].sum()) for i in range(24)]
    assert (made.low, len(made.weights)) == (runs.index(max(runs)) - 4, 7)
    escapes = TABLE_SUM * (1 - max(runs) / counts.sum())
    assert made.escape == pytest.approx(escapes, abs=4)  # the fullest takes what rounding leaves


def test_bits_of_magnitudes_are_means_of_both_signs() -> None:
    rng = np.random.default_rng(10)
    for low_bits in (0, 1, 3):
        counts = histogram({s: int(rng.integers(1, 99)) for s in range(-3, 8)})
        made = tables.make_table(counts, low_bits, False)
        bits = tables.magnitude_bits(made, 70)
        for magnitude in range(71):
            own = 0.0
            for value in (magnitude, -magnitude):
                one = np.zeros(BINS)
                one[(value >> low_bits) + REACH] = 1
                own += bits_of(one, made) / 2
            assert bits[magnitude] == pytest.approx(own, rel=1e-6)
