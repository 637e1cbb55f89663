"""Class levels by which given integers take fewer bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tqcodec.encoder import tables
from tqcodec.encoder.matrix import levels
from tqcodec.encoder.matrix.classes import class_of, fit_levels
from tqcodec.encoder.matrix.quantizer import UNIFORM, Rates
from tqcodec.encoder.rate_control import rates_of

Array = NDArray[np.generic]


def made(shape: tuple[int, int, int], seed: int, spread: float = 1.0) -> NDArray[np.int32]:
    """Integers (rows, columns) whose size depends on row, channel in and tap."""
    rng = np.random.default_rng(seed)
    scales = [np.exp(spread * rng.normal(size=n)) for n in shape]
    x = rng.laplace(size=shape) * np.einsum("o,i,t->oit", *scales)
    return np.rint(x).astype(np.int32).reshape(shape[0], -1)


def drawn(shape: tuple[int, int, int], number: int, rng: np.random.Generator) -> levels.Levels:
    """Levels at random."""
    out, inn, taps = (rng.integers(0, number, n).astype(np.uint8) for n in shape)
    return out, inn, taps


def rates(q: NDArray[np.int32], found: levels.Levels) -> tuple[Rates, float]:
    """Code lengths of tables that are fitted to the classes, and the bits of all integers."""
    columns = np.flatnonzero(q.any(axis=0))
    classes = class_of(found, np.arange(q.shape[1]))
    counted = UNIFORM.count(q[:, columns], classes[:, columns], int(classes.max()) + 1)
    fitted = tables.fit(counted, 16, True, (4, 8))
    return rates_of(fitted, [counted])[0], float(tables.group_bits(counted, fitted).sum())


def bits(q: NDArray[np.int32], found: levels.Levels, given: Rates) -> float:
    """Of the integers, one by one."""
    columns = np.flatnonzero(q.any(axis=0))
    classes = class_of(found, columns)
    lengths = given.lengths[given.cluster, 0]
    magnitudes = np.minimum(np.abs(q[:, columns]), lengths.shape[1] - 1)
    return float(lengths[classes, magnitudes].sum(dtype=np.float64))


shapes = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 9))


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(0, 1000), st.floats(0, 1.5), st.booleans())
def test_never_more_bits(
    shape: tuple[int, int, int], seed: int, spread: float, is_empty: bool
) -> None:
    q = made(shape, seed, spread)
    if is_empty:
        q[:, ::2] = 0
    rng = np.random.default_rng(seed)
    start = drawn(shape, 4, rng)
    known, _ = rates(q, start)
    found = levels.refitted(start, q, known)
    assert [len(level) for level in found] == list(shape)
    assert sum(int(level.max()) for level in found) < len(known.cluster)
    assert all(level.min() == 0 for level in found)
    # By the same code lengths, but for where the classes begin; a level costs bits as well.
    lifts = range(len(known.cluster) - sum(int(level.max()) for level in found))
    least = min(bits(q, (found[0] + np.uint8(lift), *found[1:]), known) for lift in lifts)
    price = sum(np.log2((n + 4 * levels.UNSEEN) / levels.UNSEEN) * n for n in shape)
    assert least <= bits(q, start, known) + price + 3 * levels.VECTOR_BITS


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
    assert not any(level.any() for level in levels.refitted(start, q, known))


def test_one_class_stays_one() -> None:
    q = made((8, 4, 3), 4)
    flat = drawn((8, 4, 3), 1, np.random.default_rng(0))
    known, _ = rates(q, flat)
    assert not any(level.any() for level in levels.refitted(flat, q, known))
    nothing = np.zeros_like(q)
    some = drawn((8, 4, 3), 3, np.random.default_rng(0))
    lengths = Rates(np.ones((1, 1, 4), np.float32), np.zeros(7, np.int64))
    assert [len(level) for level in levels.refitted(some, nothing, lengths)] == [8, 4, 3]


@pytest.mark.parametrize("limit", [1, 300, 5000])
def test_channels_may_come_in_parts(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q = made((40, 24, 4), 5)
    start = fit_levels(np.abs(q).reshape(40, 24, 4).astype(np.float32))
    known, _ = rates(q, start)
    whole = levels.refitted(start, q, known)
    monkeypatch.setattr(levels, "MOST_COUNTS", limit)
    monkeypatch.setattr("tqcodec.encoder.matrix.blocks.BLOCK", 64)
    for one, other in zip(levels.refitted(start, q, known), whole, strict=True):
        np.testing.assert_array_equal(one, other)
    assert any(level.any() for level in whole)
