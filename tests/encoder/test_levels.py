"""Class levels by which given integers take fewer bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tqcodec.encoder import tables
from tqcodec.encoder.matrix import levels
from tqcodec.encoder.matrix.classes import Levels, class_count, class_of, fit_levels
from tqcodec.encoder.matrix.quantizer import UNIFORM, Rates
from tqcodec.encoder.rate_control import rates_of

Shape = tuple[int, int, int]


def made(shape: Shape, seed: int, spread: float = 1.0) -> NDArray[np.int32]:
    """Integers (rows, columns) whose size depends on row, channel in and tap."""
    rng = np.random.default_rng(seed)
    scales = [np.exp(spread * rng.normal(size=n)) for n in shape]
    x = rng.laplace(size=shape) * np.einsum("o,i,t->oit", *scales)
    return np.rint(x).astype(np.int32).reshape(shape[0], -1)


def drawn(shape: Shape, number: int, rng: np.random.Generator) -> Levels:
    """Levels at random."""
    out, inn, taps = (rng.integers(0, number, n).astype(np.uint8) for n in shape)
    return out, inn, taps


def rates(q: NDArray[np.int32], found: Levels) -> tuple[Rates, float]:
    """Code lengths of tables that are fitted to the columns of a file, and the integers' bits."""
    columns = np.flatnonzero(q.any(axis=0))
    classes = class_of(found, columns)
    counted = UNIFORM.count(q[:, columns], classes, class_count(found))
    fitted = tables.fit(counted, 16, True, (4, 8))
    return rates_of(fitted, [counted])[0], float(tables.group_bits(counted, fitted).sum())


def bits(q: NDArray[np.int32], found: Levels, known: Rates) -> float:
    """Of the integers, one by one."""
    columns = np.flatnonzero(q.any(axis=0))
    classes = class_of(found, columns)
    lengths = known.lengths[known.cluster, 0]
    magnitudes = np.minimum(np.abs(q[:, columns]), lengths.shape[1] - 1)
    return float(lengths[classes, magnitudes].sum(dtype=np.float64))


shapes = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 9))
absent = st.sampled_from(["none", "columns", "channels", "taps", "all but one", "all"])


@settings(max_examples=150, deadline=None)
@given(shapes, st.integers(0, 1000), st.floats(0, 1.5), absent)
@example((9, 6, 5), 3, 1.0, "channels")
def test_never_more_bits_nor_classes(shape: Shape, seed: int, spread: float, zero: str) -> None:
    q = made(shape, seed, spread)
    rng = np.random.default_rng(seed)
    by_axis = q.reshape(shape)
    if zero == "columns":
        q[:, rng.random(q.shape[1]) < 0.5] = 0
    elif zero == "channels":
        by_axis[:, rng.random(shape[1]) < 0.6] = 0
    elif zero == "taps":
        by_axis[:, :, rng.random(shape[2]) < 0.6] = 0
    elif zero != "none":
        q[:, int(zero == "all but one") :] = 0
    found = drawn(shape, 5, rng)
    for _ in range(3):
        known, _ = rates(q, found)
        better = levels.refitted(found, q, known)
        assert [len(level) for level in better] == list(shape)
        assert class_count(better) <= class_count(found)
        assert all(level.min() == 0 for level in better)
        # By the same code lengths, but for where the classes begin; levels cost bits as well.
        lifts = range(1 + class_count(found) - class_count(better))
        least = min(bits(q, (better[0] + np.uint8(lift), *better[1:]), known) for lift in lifts)
        price = sum(np.log2(2 * n + 10) * n for n in shape) + 3 * levels.VECTOR_BITS
        assert least <= bits(q, found, known) + price
        found = better


@pytest.mark.parametrize("is_random", [False, True])
def test_integers_of_several_sizes_are_told_apart(is_random: bool) -> None:
    shape = 64, 32, 9
    q = made(shape, 1)
    usual = fit_levels(np.abs(q).reshape(shape).astype(np.float32))
    found = drawn(shape, 6, np.random.default_rng(0)) if is_random else usual
    known, first = rates(q, found)
    for _ in range(6):
        found = levels.refitted(found, q, known)
        known, now = rates(q, found)
    assert now < (0.9 if is_random else 0.998) * first


def test_levels_that_say_nothing_are_left_out() -> None:
    q = np.random.default_rng(2).integers(-2, 3, (30, 20)).astype(np.int32)
    start = drawn((30, 5, 4), 3, np.random.default_rng(3))
    known, _ = rates(q, start)
    assert class_count(levels.refitted(start, q, known)) == 1


def test_what_is_one_class_stays_so() -> None:
    q = made((8, 4, 3), 4)
    flat = drawn((8, 4, 3), 1, np.random.default_rng(0))
    known, _ = rates(q, flat)
    assert class_count(levels.refitted(flat, q, known)) == 1
    some = drawn((8, 4, 3), 3, np.random.default_rng(0))
    known, _ = rates(q, some)
    assert class_count(levels.refitted(some, np.zeros_like(q), known)) == 1


@pytest.mark.parametrize("limit", [1, 300, 5000])
def test_channels_and_rows_may_come_in_parts(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q = made((40, 24, 4), 5)
    start = fit_levels(np.abs(q).reshape(40, 24, 4).astype(np.float32))
    known, _ = rates(q, start)
    whole = levels.refitted(start, q, known)
    monkeypatch.setattr(levels, "MOST_COUNTS", limit)
    monkeypatch.setattr(levels, "row_blocks", lambda *size, block: iter_rows(size[0]))
    for one, other in zip(levels.refitted(start, q, known), whole, strict=True):
        np.testing.assert_array_equal(one, other)
    assert class_count(whole) > 1


def iter_rows(rows: int) -> list[slice]:
    """Blocks of three rows."""
    return [slice(start, start + 3) for start in range(0, rows, 3)]


def test_what_levels_cost() -> None:
    flat = drawn((8, 4, 3), 1, np.random.default_rng(0))
    assert levels.level_bits(flat) == levels.CLASS_BITS
    two = np.array([0, 1] * 4, np.uint8)
    price = 2 * levels.CLASS_BITS + levels.VECTOR_BITS + 8
    assert levels.level_bits((two, *flat[1:])) == price
