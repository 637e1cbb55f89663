"""The quantizers against exhaustive search over what they may choose."""

from __future__ import annotations

import itertools
import math
from functools import cache
from unittest import mock

import numpy as np
import pytest
from strategies import NEXT_STATE, Array, Rng, coders, trellis_path, using

from tqcodec.encoder.matrix import quantizer
from tqcodec.encoder.matrix.quantizer import Rates, trellis, uniform

LENGTHS = [1, 2, 3, 6]  # magnitudes of a rates table: all others cost as much as the last


def random_rates(rng: Rng, classes: int, quantizers: int, length: int) -> Array:
    """Rates in squared steps that need not rise with the magnitude."""
    return rng.uniform(0, 3, (classes, quantizers, length)).astype(np.float32)


def cost_of(x: float, value: int, index: int, rates: Array) -> float:
    """Squared error of a coefficient and the rate of its index."""
    return (x - value) ** 2 + float(rates[min(abs(index), len(rates) - 1)])


# Trellis


def value_of(index: int, second: int) -> int:
    """Coefficient of an index, by the specification."""
    return 2 * index - ((index > 0) - (index < 0)) * second


def walked(column: Array, classes: Array, scaled: Array, coefficients: Array, steps: int) -> float:
    """Cost of the coefficients of a column; fails where they leave the trellis."""
    total, state = 0.0, 0
    for row, q in enumerate(coefficients.tolist()):
        state = state if row % steps else 0
        second = state & 1
        doubled = q + ((q > 0) - (q < 0)) * second
        assert doubled % 2 == 0, "a coefficient that its quantizer does not have"
        index = doubled // 2
        total += cost_of(float(column[row]), q, index, scaled[classes[row], second])
        state = NEXT_STATE[state][index & 1]
    return total


def considered(x: float, second: int, parity: int) -> list[int]:
    """Indices of one parity that the search looks at: of the nearest coefficient, and 0."""
    near = range(-math.ceil(abs(x)) - 3, math.ceil(abs(x)) + 4)
    mine = [k for k in near if k & 1 == parity]
    nearest = min(mine, key=lambda k: (abs(x - value_of(k, second)), -abs(k)))
    return [nearest, 0] if parity == 0 else [nearest]


def least_of_considered(column: Array, classes: Array, scaled: Array) -> float:
    """Cost of the best of all sequences of considered indices, tried one by one."""

    def rest(row: int, state: int) -> float:
        if row == len(column):
            return 0.0
        x, second = float(column[row]), state & 1
        rates = scaled[classes[row], second]
        return min(
            cost_of(x, value_of(k, second), k, rates) + rest(row + 1, NEXT_STATE[state][k & 1])
            for parity in (0, 1)
            for k in considered(x, second, parity)
        )

    return rest(0, 0)


def segments(rows: int, steps: int) -> list[slice]:
    return [slice(top, min(top + steps, rows)) for top in range(0, rows, steps)]


@coders
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("steps", [8, 5, 3, 1])
def test_the_trellis_finds_the_cheapest_path(coder: str, steps: int, length: int) -> None:
    """Random rates, so that any of the branches may win; magnitudes far beyond the table."""
    rng = np.random.default_rng([steps, length])
    rows, columns = 8, 6
    x = (rng.normal(size=(rows, columns)) * rng.choice([0.5, 2, 9], columns)).astype(np.float32)
    classes = rng.integers(0, 3, x.shape).astype(np.uint8)
    scaled = random_rates(rng, 3, 2, length)
    with using(coder), mock.patch.object(quantizer, "CHUNK", 24):
        found = trellis(x, classes, scaled, steps)
    for c in range(columns):
        cost = walked(x[:, c], classes[:, c], scaled, found[:, c], steps)
        least = sum(
            least_of_considered(x[part, c], classes[part, c], scaled)
            for part in segments(rows, steps)
        )
        assert cost == pytest.approx(least, rel=1e-5)


@cache
def all_sequences(rows: int, reach: int) -> tuple[Array, Array]:
    """Indices of every sequence of magnitudes up to `reach`, and their coefficients."""
    indices = np.array(list(itertools.product(range(-reach, reach + 1), repeat=rows))).T
    return indices, trellis_path(indices, rows)


def costs_of_all(column: Array, classes: Array, scaled: Array, every: tuple[Array, Array]) -> Array:
    """Cost of every sequence for one column."""
    indices, coefficients = every
    second = 2 * np.abs(indices) != np.abs(coefficients)  # 0 costs by the state, not by its value
    state = np.zeros(indices.shape[1], np.int64)
    table, total = np.array(NEXT_STATE), np.zeros(indices.shape[1])
    for row, index in enumerate(indices):
        own = state & 1
        assert (own[index != 0] == second[row][index != 0]).all()
        rates = scaled[classes[row]].astype(np.float64)
        total += (column[row] - coefficients[row]) ** 2
        total += rates[own, np.minimum(np.abs(index), rates.shape[1] - 1)]
        state = table[state, index & 1]
    return total


def fair_rates(rng: Rng, length: int) -> Array:
    """Random rates, of 3 classes, that depend on parity only, besides that of zero."""
    scaled = random_rates(rng, 3, 2, length)
    for magnitude in range(3, length):
        scaled[:, :, magnitude] = scaled[:, :, magnitude - 2]
    return scaled


@coders
@pytest.mark.parametrize(
    ("rows", "reach", "length"), [(8, 1, 2), (7, 1, 1), (5, 3, 2), (5, 3, 5), (4, 5, 7)]
)
def test_no_sequence_of_all_is_cheaper(coder: str, rows: int, reach: int, length: int) -> None:
    """With such rates the nearest coefficient, or zero, is the best of its parity."""
    rng = np.random.default_rng([rows, reach, length])
    every = all_sequences(rows, reach)
    limit = 2 * reach - 1  # so that the sequences hold all that are near
    x = rng.uniform(-limit, limit, (rows, 12)).astype(np.float32)
    classes = rng.integers(0, 3, x.shape).astype(np.uint8)
    scaled = fair_rates(rng, length)
    with using(coder):
        found = trellis(x, classes, scaled, rows)
    for c in range(x.shape[1]):
        cost = walked(x[:, c], classes[:, c], scaled, found[:, c], rows)
        least = costs_of_all(x[:, c], classes[:, c], scaled, every).min()
        assert cost == pytest.approx(least, rel=1e-5)


def laplacian_rates(scale: float, length: int, lam: float) -> Array:
    """Code lengths of the indices of a Laplacian source, for both quantizers, times lambda."""
    share = np.exp(-np.abs(np.arange(-length, length + 1)) / scale)
    bits = -np.log2(share / share.sum())[length : 2 * length]
    return np.tile((lam * bits).astype(np.float32), (1, 2, 1))


@coders
@pytest.mark.parametrize("lam", [quantizer.TRELLIS_LAMBDA, quantizer.TRELLIS_FEEDBACK_LAMBDA])
@pytest.mark.parametrize("scale", [0.3, 0.7, 2.0])
def test_no_sequence_is_cheaper_under_code_lengths(coder: str, scale: float, lam: float) -> None:
    """Lengths as they are rise too slowly for a coefficient that is not the nearest of its kind."""
    rng = np.random.default_rng(5)
    rows, reach = 4, 4
    x = rng.laplace(0, 2 * scale, (rows, 25)).clip(-6, 6).astype(np.float32)
    classes = np.zeros(x.shape, np.uint8)
    scaled = laplacian_rates(scale, 6, lam)
    with using(coder):
        found = trellis(x, classes, scaled, rows)
    for c in range(x.shape[1]):
        cost = walked(x[:, c], classes[:, c], scaled, found[:, c], rows)
        least = costs_of_all(x[:, c], classes[:, c], scaled, all_sequences(rows, reach)).min()
        assert cost == pytest.approx(least, rel=1e-5)


@coders
def test_large_coefficients_stay_on_the_cheapest_path(coder: str) -> None:
    """float32 sums of costs must not drown in the squares of large coefficients."""
    rng = np.random.default_rng(6)
    x = (rng.uniform(-1, 1, (7, 8)) * 2.0 ** rng.integers(8, 20, 8)).astype(np.float32)
    x[::2] /= np.float32(1 << 12)
    classes = np.zeros(x.shape, np.uint8)
    scaled = random_rates(rng, 1, 2, 4)
    with using(coder):
        found = trellis(x, classes, scaled, 7)
    table = np.array(NEXT_STATE)
    for c in range(x.shape[1]):
        cost = walked(x[:, c], classes[:, c], scaled, found[:, c], 7)
        costs = {0: 0.0}  # cheapest way to each state, in float64
        for value in x[:, c].astype(np.float64):
            fresh: dict[int, float] = {}
            for state, before in costs.items():
                second = state & 1
                for parity in (0, 1):
                    # Indices around x/2, so that huge ones need no list of all smaller.
                    middle = round(abs(value) / 2)
                    near = [k for k in range(max(0, middle - 3), middle + 4) if k & 1 == parity]
                    k = min(near, key=lambda k: abs(abs(value) - value_of(k, second)))
                    for index in {k, 0} if parity == 0 else {k}:
                        own = cost_of(abs(value), value_of(index, second), index, scaled[0, second])
                        after = int(table[state, parity])
                        fresh[after] = min(fresh.get(after, math.inf), before + own)
            costs = fresh
        assert cost == pytest.approx(min(costs.values()), rel=1e-4)


@coders
@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (1, 1)])
def test_matrices_of_hardly_any_coefficient(coder: str, shape: tuple[int, int]) -> None:
    x, classes = np.full(shape, 1.9, np.float32), np.zeros(shape, np.uint8)
    free = np.zeros((1, 2, 1), np.float32)
    with using(coder):
        assert trellis(x, classes, free, 3).tolist() == np.full(shape, 2).tolist()
        assert uniform(x, classes, free).tolist() == np.full(shape, 2).tolist()


# Uniform


@coders
@pytest.mark.parametrize("length", LENGTHS)
def test_uniform_takes_the_cheapest_candidate(coder: str, length: int) -> None:
    """Of the nearest integer, the next one to zero, and zero, by rates in any order."""
    rng = np.random.default_rng(length)
    x = rng.laplace(0, 3, (40, 7)).astype(np.float32)
    classes = rng.integers(0, 3, x.shape).astype(np.uint8)
    scaled = 3 * random_rates(rng, 3, 1, length)
    scaled[0, :, 1:] += 6  # zero may be best from far away
    with using(coder), mock.patch.object(quantizer, "CHUNK", 50):
        found = uniform(x, classes, scaled)
    taken = set()
    for value, group, q in zip(x.ravel(), classes.ravel(), found.ravel().tolist(), strict=True):
        rates = scaled[group, 0]
        sign, up = (-1 if value < 0 else 1), math.floor(abs(float(value)) + 0.5)
        candidates = [sign * up, sign * max(up - 1, 0), 0]
        assert q in candidates
        taken.add(candidates.index(q))
        least = min(cost_of(float(value), k, k, rates) for k in candidates)
        assert cost_of(float(value), q, q, rates) == pytest.approx(least, rel=1e-5)
    assert taken == ({0, 1, 2} if length > 1 else {0})


@coders
def test_no_integer_is_cheaper(coder: str) -> None:
    """Nothing but the candidates can be best where rates rise by less than 2 each."""
    rng = np.random.default_rng(3)
    x = rng.laplace(0, 3, (50, 6)).clip(-20, 20).astype(np.float32)
    classes = rng.integers(0, 3, x.shape).astype(np.uint8)
    scaled = rng.uniform(0, 2, (3, 1, 9)).cumsum(axis=2).astype(np.float32)
    with using(coder):
        found = uniform(x, classes, scaled)
    every = np.arange(-25, 26)
    for value, group, q in zip(x.ravel(), classes.ravel(), found.ravel().tolist(), strict=True):
        rates = scaled[group, 0].astype(np.float64)
        costs = (float(value) - every) ** 2 + rates[np.minimum(np.abs(every), 8)]
        assert cost_of(float(value), q, q, rates) == pytest.approx(costs.min(), rel=1e-5)


# Both, and the rates


def test_the_native_loops_choose_what_numpy_chooses() -> None:
    rng = np.random.default_rng(4)
    x = (rng.normal(size=(70, 9)) * 3).astype(np.float32)
    x[:4] = np.arange(-18, 18).reshape(4, 9) / 2  # ties
    classes = rng.integers(0, 3, x.shape).astype(np.uint8)
    for length in LENGTHS:
        scaled = random_rates(rng, 3, 2, length)
        flat = np.zeros_like(scaled)
        for rates in (scaled, flat):
            found = []
            for coder in ("native", "portable"):
                with using(coder):
                    one = rates[:, :1]
                    found.append([trellis(x, classes, rates, 16), uniform(x, classes, one)])
            for native, portable in zip(*found, strict=True):
                assert native.dtype == portable.dtype == np.int32
                assert np.array_equal(native, portable)


def test_rates_are_scaled_by_lambda_and_class() -> None:
    rng = np.random.default_rng(7)
    rates = Rates(random_rates(rng, 2, 2, 4), np.array([1, 0, 1]))
    scaled = rates.scaled(0.3)
    assert scaled.dtype == np.float32 and scaled.shape == (3, 2, 4)
    for group, cluster in enumerate((1, 0, 1)):
        np.testing.assert_allclose(scaled[group], 0.3 * rates.lengths[cluster], rtol=1e-6)
