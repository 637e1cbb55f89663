"""Encoding within the limits of the format, lowered here until they bite (chapter 11).

`docs/limits.md` says for each rule what makes it hold in the encoder.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import pytest
from networks import Network, Tensors
from strategies import using

import tqcodec
import tqcodec.api
import tqcodec.format.writer
from tqcodec import EncodeError, EncodeWarning, Settings
from tqcodec.encoder import histograms, pipeline, tables
from tqcodec.encoder.budget import within_limits
from tqcodec.encoder.histograms import BINS, REACH, Histograms
from tqcodec.encoder.matrix import record
from tqcodec.encoder.provenance import provenance
from tqcodec.encoder.statistics import WeightStatistics
from tqcodec.format import native, registry
from tqcodec.format.container import Container
from tqcodec.format.dtypes import DTYPES
from tqcodec.format.tables import Table, write_tables

WISHES: dict[str, dict[str, Any]] = {
    "default": {},
    "fast": {"bits": 6, "effort": 1},
    "klt": {"snr": 30, "transform": "klt"},
    "fixed": {"snr": 15, "payload": "fixed"},
    "dct": {"snr": 20, "transform": "dct"},
}
LIMITS: dict[str, dict[str, int]] = {
    "8 tables": {"MAX_TABLES": 8},
    "200 members": {"MAX_WEIGHTS": 200},
    "40 members": {"MAX_WEIGHTS": 40},
    "4 classes": {"MAX_CLASSES": 4},
    "head of 1 KiB": {"MAX_HEAD": 1024},
    "empty head": {"MAX_HEAD": 0},
    "payloads of 1 KiB": {"MAX_SYMBOLS": 1024},
    "bases of 100": {"MAX_BASIS": 100},
    "shifts of 1": {"MAX_BASIS_SHIFT": 1},
    "DCT of 2": {"MAX_DCT": 2},
    "no work": {"FREE_CHANNELS": 1, "WORK_PER_BYTE": 1},
    "sums of 20 bits": {"SUM_BITS": 20},
    "depth of 6": {"MAX_DEPTH": 6},
    "all": {
        "MAX_TABLES": 8,
        "MAX_WEIGHTS": 200,
        "MAX_CLASSES": 4,
        "MAX_HEAD": 1024,
        "MAX_SYMBOLS": 1024,
        "MAX_DEPTH": 8,
        "SUM_BITS": 24,
    },
}


@contextmanager
def lowered(**limits: int) -> Iterator[None]:
    """Other limits, wherever a module has taken their names."""
    modules = [m for name, m in list(sys.modules.items()) if name.startswith("tqcodec.")]
    with ExitStack() as stack:
        stack.enter_context(using("native" if native.AVAILABLE else "portable"))
        for name, value in limits.items():
            assert value < getattr(registry, name)
            for module in modules:
                if name in vars(module):
                    stack.enter_context(mock.patch.object(module, name, value))
        yield


def encoded(tensors: Tensors, wish: dict[str, Any]) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EncodeWarning)
        return tqcodec.encode(tensors, Settings(**wish))


def wide_spread() -> Tensors:
    """Matrices and kernels that differ so much that they have use for many tables."""
    network = Network(5, 30, 64, (1.5, 1.0, 3.0), 0.1).tensors()
    rng = np.random.default_rng(0)
    kernels = {
        f"kernels.{i}": (rng.normal(size=(24, 12, 3, 3)) * 2.0**i).astype(np.float32)
        for i in range(-3, 3)
    }
    return network | kernels


@cache
def within(limits: str, wish: str) -> bytes:
    """A file of `wide_spread`; decoded and compared with these limits."""
    with lowered(**LIMITS.get(limits, {})):
        return encoded(wide_spread(), WISHES[wish])


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("limits", LIMITS)
def test_encoding_stays_within_lowered_limits(limits: str, wish: str) -> None:
    data = within(limits, wish)
    if "MAX_SYMBOLS" not in LIMITS[limits]:  # it says where blocks end, too
        assert list(tqcodec.decode(data)) == list(wide_spread())  # in C, with all limits


@pytest.mark.parametrize("limits", LIMITS)
def test_these_limits_bite(limits: str) -> None:
    """Otherwise the test above would show nothing: a bitten file has other bytes."""
    wishes = "klt", "default", "dct"
    assert any(within(limits, wish) != within("none", wish) for wish in wishes)


@pytest.mark.parametrize("metadata", [{}, {"notes": "x" * 5000}])
def test_a_directory_that_is_too_large_is_refused_by_name(metadata: dict[str, str]) -> None:
    count = 10 if metadata else 100
    tensors = {f"tensor.{i}": np.full(3, i, np.float32) for i in range(count)}
    settings = Settings(metadata=tuple(metadata.items()))
    assert tqcodec.encode(tensors, settings)
    with lowered(MAX_DIRECTORY=4096), pytest.raises(EncodeError, match="names and metadata"):
        tqcodec.encode(tensors, settings)


def test_metadata_beyond_any_directory_is_refused_before_the_work() -> None:
    def progress(*_: object) -> None:
        raise AssertionError("work has begun")

    settings = Settings(metadata=(("a", "x" * registry.MAX_DIRECTORY),))
    with pytest.raises(EncodeError, match="names and metadata"):
        tqcodec.encode({"w": np.zeros((64, 64))}, settings, progress=progress)


@pytest.mark.parametrize("limit", [{"MAX_DIMENSIONS": 1}, {"MAX_NAME": 3}, {"MAX_ELEMENTS": 99}])
def test_tensors_beyond_the_limits_are_refused_by_name(limit: dict[str, int]) -> None:
    with lowered(**limit), pytest.raises(EncodeError, match="'long'"):
        tqcodec.encode({"long": np.zeros((10, 10))})


# ---- matrices at the edge of what a head may hold ----


def test_a_matrix_of_very_many_columns_has_a_head_that_fits() -> None:
    """Levels and depths of each column are more values than a head may have."""
    rng = np.random.default_rng(0)
    wide = rng.laplace(size=(2, 5000)) * 2.0 ** rng.normal(0, 3, 5000)
    wide[:, ::3] = 0
    with lowered(MAX_HEAD=8000):
        data = tqcodec.encode({"w": wide.astype(np.float32)}, Settings(snr=10))
    assert tqcodec.decode(data)["w"].shape == wide.shape


@pytest.mark.parametrize("transform", ["auto", "dct", "elt"])
def test_kernels_of_many_dimensions_have_no_dct(transform: str) -> None:
    kernels = np.random.default_rng(0).normal(size=(8, 4, 2, 2, 2, 2)).cumsum(axis=-1)
    data = tqcodec.encode({"w": kernels}, Settings(snr=20, transform=transform))
    assert tqcodec.decode(data)["w"].shape == kernels.shape


def test_a_finer_step_than_the_depths_hold_is_made_coarser() -> None:
    """A rule may ask for more bits than an index has."""
    weights = np.random.default_rng(0).normal(size=(64, 64))
    for payload in ("range", "fixed"):
        settings = Settings(snr=20, payload=payload, rules=[("w", "bits:24")])
        data = tqcodec.encode({"w": weights}, settings)
        with tqcodec.open(data) as file:
            assert file.container.record(file.container.directory.entries[0]).depths is not None


# ---- the budget of the tables ----


def random_sets(seed: int, sizes: list[int]) -> list[tables.TableSet]:
    """Sets of clusters of very different histograms, some with low bits."""
    rng = np.random.default_rng(seed)
    out = []
    for contexts, size in enumerate(sizes, 1):
        groups = [
            histograms.count(
                np.rint(rng.laplace(size=2000) * 4.0**k).astype(np.int32),
                np.zeros(2000, np.int64),
                1,
                (np.arange(2000) % 2).astype(np.uint8) if contexts == 2 else None,
            )
            for k in rng.uniform(-1, 6, size)
        ]
        joined = Histograms.join(groups)
        out.append(tables.tables_of(joined, np.arange(size), contexts == 2))
    return out


@pytest.mark.parametrize("most", [60, 30, 8, 4])
def test_merged_tables_code_every_group(most: int) -> None:
    sets = random_sets(most, [20, 12])
    with lowered(MAX_TABLES=most):
        merged = within_limits(sets)
    assert sum(len(one.tables) for one in merged) <= most
    for old, new in zip(sets, merged, strict=True):
        assert new.cluster.shape == old.cluster.shape
        assert 0 <= new.cluster.min() <= new.cluster.max() < new.clusters
        totals = [one.histograms.counts.sum(axis=(1, 2)).tolist() for one in (old, new)]
        assert totals[0] == totals[1]
        lows = np.array([table.low_bits for table in new.tables[:: new.contexts]])
        assert (lows[new.cluster] == new.histograms.low_bits).all()
        assert (new.histograms.low_bits >= old.histograms.low_bits).all()


def test_a_budget_that_is_kept_changes_nothing() -> None:
    sets = random_sets(1, [10, 10])
    assert all(a is b for a, b in zip(within_limits(sets), sets, strict=True))


def test_what_is_merged_first_costs_least() -> None:
    """Two clusters that are alike go before any that differ, whichever set they are in."""
    sets = random_sets(2, [6, 6])
    twin = Histograms.join([sets[1].histograms, sets[1].histograms])
    twins = tables.tables_of(twin, np.arange(12), True)
    with lowered(MAX_TABLES=6 + 12):
        first, second = within_limits([sets[0], twins])
    assert first is sets[0]
    assert second.cluster.tolist()[:6] == second.cluster.tolist()[6:]


def test_more_low_bits_keep_the_values() -> None:
    values = np.arange(-REACH, REACH + 1, dtype=np.int32)
    fine = histograms.count(values, np.zeros(len(values), np.int64), 1)
    coarse = fine.with_low_bits(fine.low_bits + 3)
    symbols = values >> fine.low_bits[0] >> 3
    expected = np.bincount(symbols + REACH, minlength=BINS)
    assert coarse.counts[0, 0].tolist() == expected.tolist()


# ---- what holds by construction ----


def test_what_the_encoder_writes_is_below_the_limits_by_construction() -> None:
    assert 2 * REACH + 1 < registry.MAX_ALPHABET
    assert REACH <= registry.MAX_TABLE_LOW
    assert REACH + 1 << histograms.MOST_LOW_BITS <= registry.MAX_VALUE
    assert histograms.MOST_LOW_BITS <= registry.MAX_LOW_BITS
    most = [Table(-REACH, (1,) * (2 * REACH) + (4096 - 2 * REACH,), 0, 23)]
    assert len(write_tables(most * registry.MAX_TABLES)) < registry.MAX_TABLES_SIZE
    assert 1 << record.SCALE_BITS <= registry.MAX_SCALE_MANTISSA
    for dtype in DTYPES.values():
        assert 1 << dtype.exponent_bits <= registry.MAX_OFFSET
    assert pipeline.PASSES > 0


def test_provenance_takes_eighty_bytes_at_most() -> None:
    sums = np.ones((1, 1, 1))
    images = (1 << 63) - 1
    one = WeightStatistics((1, 1), 0, images, 1, 1, sums, sums[0], sums, sums)
    for wish in ({"max_size": 10**18}, {"bits": 0.123456789}, {"snr": 1e-7}, {"lossless": True}):
        for form in (False, "lossless" not in wish):
            text = provenance(Settings(**wish, inference=form), {"w": one}, tuned=True)
            assert len(text) + len("encoder") + 3 <= 80
            assert text.startswith(f"tqcodec {tqcodec.__version__} {next(iter(wish))}")
            assert text.endswith(" tuned inference" if form else " tuned")
            for made_up in (images, images // 2):
                other = replace(one, synthetic=made_up)
                text = provenance(Settings(**wish, inference=form), {"w": other}, tuned=True)
                assert len(text) + len("encoder") + 3 <= 80
                assert f" synthetic={made_up:.4g}" in text
                assert (" samples=" in text) == (made_up < images)


def test_provenance_is_in_the_file_unless_it_is_left_out() -> None:
    tensors = {"w": np.eye(16)}
    for wish, expected in (
        ({}, "quality=70"),
        ({"bits": 6.5}, "bits=6.5"),
        ({"snr": 20}, "snr=20"),
    ):
        data = tqcodec.encode(tensors, Settings(**wish, effort=3))
        container = Container(lambda o, n: data[o : o + n], len(data))  # noqa: B023
        assert container.directory.provenance == f"tqcodec 0.1.0 {expected} effort=3"
        assert data == tqcodec.encode(tensors, Settings(**wish, effort=3))
    without = tqcodec.encode(tensors, Settings(provenance=False))
    assert Container(lambda o, n: without[o : o + n], len(without)).directory.provenance == ""
