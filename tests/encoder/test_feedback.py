"""Error feedback and the metric against the formulas of their descriptions, element by element."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from strategies import Array, Rng, coders, using

from tqcodec.encoder.effort import Tools
from tqcodec.encoder.matrix import feedback
from tqcodec.encoder.matrix import metric as metrics
from tqcodec.encoder.matrix.feedback import Fed, quantize_with_feedback
from tqcodec.encoder.matrix.metric import Metric, assumed_metric
from tqcodec.encoder.matrix.quantizer import Method

ROWS = 12
Assume = Callable[[int, tuple[int, ...]], Metric]


def correlated(rng: Rng, blocks: int, n: int) -> Array:
    """Positive definite matrices with strong correlations of either sign."""
    mixed = rng.normal(size=(blocks, n, n)) + 2 * rng.normal(size=(blocks, n, 1))
    return mixed @ mixed.swapaxes(1, 2) / n + 0.1 * np.eye(n)


def narrow(channels: int, taps: tuple[int, ...], widest: int) -> Metric:
    """An assumed metric with blocks of so many columns."""
    assume: Assume = assumed_metric.__wrapped__  # nothing of this may stay in the cache
    with mock.patch.object(metrics, "WIDEST", widest):
        return assume(channels, taps)


def metric_of_kind(kind: str) -> Metric:
    rng = np.random.default_rng(1)
    if kind == "one":
        return Metric(correlated(rng, 1, 20), np.zeros((1, 20)), 1, 20, 0.8)
    if kind == "grouped":  # three groups of rows with all columns
        return Metric(correlated(rng, 3, 9), np.zeros((3, 9)), 3, 9, 0.6)
    if kind == "padded":  # three blocks of columns, the last of them not full
        return Metric(correlated(rng, 3, 8), np.zeros((3, 8)), 1, 21, 0.9)
    if kind == "assumed":
        return assumed_metric(6, (3,))
    assert kind == "assumed in blocks"
    return narrow(7, (2, 2), 16)


KINDS = ["one", "grouped", "padded", "assumed", "assumed in blocks"]
kinds = pytest.mark.parametrize("kind", KINDS)


def parts_of(found: Metric) -> list[tuple[slice, slice]]:
    """Rows and columns of each block."""
    count, n = found.blocks.shape[:2]
    if n == found.columns:
        height = ROWS // count
        return [(slice(b * height, (b + 1) * height), slice(None)) for b in range(count)]
    return [(slice(None), slice(b * n, min((b + 1) * n, found.columns))) for b in range(count)]


def test_these_kinds_are_what_they_should_be() -> None:
    shapes = {kind: metric_of_kind(kind).blocks.shape for kind in KINDS}
    assert shapes["assumed in blocks"] == (2, 16, 16)
    assert metric_of_kind("assumed in blocks").columns == 28
    assert [k for k in KINDS if metric_of_kind(k).by_rows] == ["one", "grouped", "assumed"]


def quantized(found: Metric, weights: Array, step: float, segment: int = 0) -> Fed:
    """By the encoder, with rates that are all zero."""
    method = Method(segment, 0.0)
    classes = np.zeros(weights.shape, np.uint8)
    free = np.zeros((1, method.contexts, 1), np.float32)
    cube = weights.reshape(len(weights), -1, found.taps)
    return quantize_with_feedback(cube, found, classes, method, step, free)


def upper_factor(block: Array) -> Array:
    """Upper R with A = R R^T, column by column from the last."""
    n, left = len(block), block.copy()
    out = np.zeros((n, n))
    for j in reversed(range(n)):
        out[: j + 1, j] = left[: j + 1, j] / math.sqrt(left[j, j])
        left = left - np.outer(out[:, j], out[:, j])
    return out


def half_up(value: float) -> int:
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


# Feedback


@kinds
def test_what_is_rounded_makes_up_for_the_errors_before_it(kind: str) -> None:
    """x'_j by its formula is what is rounded, and D = |E R|^2 = SUM R_jj^2 (x'_j - q_j)^2."""
    found = metric_of_kind(kind)
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(ROWS, found.columns)).astype(np.float32)
    step = 0.5 * math.sqrt(found.power)
    result = quantized(found, weights, step)
    decoded = result.coefficients * (step * result.grid.steps)
    total = white = 0.0
    for (rows, columns), block in zip(parts_of(found), found.blocks, strict=True):
        x, q = weights[rows, columns].astype(np.float64), decoded[rows, columns]
        integers = result.coefficients[rows, columns]
        steps = step * result.grid.steps[rows, columns]
        used = x.shape[1]
        # The first columns of R do not depend on those that are padded; the others do.
        R = upper_factor(block)
        assert np.allclose(R @ R.T, block)
        for r in range(len(x)):
            for j in range(used):
                fed = sum((x[r, i] - q[r, i]) * R[i, j] / R[j, j] for i in range(j))
                wanted = x[r, j] + fed
                assert integers[r, j] == half_up(wanted / steps[r, j])
                total += (R[j, j] * (wanted - q[r, j])) ** 2
        # Columns beyond the matrix have errors of 0, but the errors before them add up there.
        error = np.pad(x - q, ((0, 0), (0, len(block) - used)))
        white += float(((error @ R) ** 2)[:, used:].sum())
    assert found.error(weights - decoded) == pytest.approx(total + white)


@kinds
@pytest.mark.parametrize("relative", [0.3, 1.0])
def test_feedback_beats_rounding(kind: str, relative: float) -> None:
    found = metric_of_kind(kind)
    rng = np.random.default_rng(3)
    step = relative * math.sqrt(found.power)
    for _ in range(3):
        weights = rng.normal(size=(ROWS, found.columns)).astype(np.float32)
        result = quantized(found, weights, step)
        steps = step * result.grid.steps
        plain = found.error(weights - np.rint(weights / steps) * steps)
        assert found.error(weights - result.coefficients * steps) < 0.8 * plain


def row_by_row(
    found: Metric, x: Array, steps: Array, classes: Array, scaled: Array
) -> list[list[int]]:
    """Integers of a matrix over a step, each the cheapest of the candidates for its x'."""
    out = [[0] * found.columns for _ in range(ROWS)]
    for (rows, columns), block in zip(parts_of(found), found.blocks, strict=True):
        R, first = upper_factor(block), columns.start or 0
        for r in range(ROWS)[rows]:
            errors: list[float] = []
            for j, c in enumerate(range(found.columns)[columns]):
                fed = sum(e * R[i, j] for i, e in enumerate(errors)) / R[j, j]
                wanted = (x[r, c] + fed) / steps[r, c]
                sign, up = (-1 if wanted < 0 else 1), half_up(abs(wanted))
                rates = scaled[classes[r, c], 0]
                q = min(
                    (up, max(up - 1, 0), 0),
                    key=lambda k: (abs(wanted) - k) ** 2 + rates[min(k, len(rates) - 1)],
                )
                out[r][first + j] = sign * q
                errors.append(x[r, c] - sign * q * steps[r, c])
    return out


@coders
@kinds
@pytest.mark.parametrize(("width", "at_once"), [(64, 1 << 21), (5, 1), (64, 40), (3, 70)])
def test_feedback_with_rates_row_by_row(kind: str, width: int, at_once: int, coder: str) -> None:
    """Classes with rates of their own, in panels and in groups of rows of any size."""
    found = metric_of_kind(kind)
    rng = np.random.default_rng(4)
    weights = rng.normal(size=(ROWS, found.columns)).astype(np.float32)
    step = 0.4 * math.sqrt(found.power)
    classes = rng.integers(0, 3, weights.shape).astype(np.uint8)
    scaled = (0.3 * rng.uniform(0, 2, (3, 1, 4)).cumsum(axis=2)).astype(np.float32)
    cube = weights.reshape(ROWS, -1, found.taps)
    lowered = mock.patch.multiple(feedback, WIDTH=width, AT_ONCE=at_once)
    with lowered, using(coder):
        result = quantize_with_feedback(cube, found, classes, Method(0, 0.3), step, scaled)
    steps = step * result.grid.steps
    wanted = np.array(row_by_row(found, weights.astype(np.float64), steps, classes, scaled))
    assert np.array_equal(result.coefficients, wanted)
    both = found.products(weights, wanted * steps)[0].sum()
    gain = np.clip(both / found.error(wanted * steps), *feedback.GAINS)
    assert result.step == pytest.approx(step * gain)


@coders
@kinds
@pytest.mark.parametrize("at_once", [1, 60, 200])
def test_groups_of_rows_change_nothing_on_the_trellis(kind: str, at_once: int, coder: str) -> None:
    """They are whole segments."""
    found = metric_of_kind(kind)
    weights = np.random.default_rng(5).normal(size=(ROWS, found.columns)).astype(np.float32)
    step = 0.3 * math.sqrt(found.power)
    with using(coder):
        whole = quantized(found, weights, step, 4)
        with mock.patch.object(feedback, "AT_ONCE", at_once):
            apart = quantized(found, weights, step, 4)
    assert np.array_equal(apart.coefficients, whole.coefficients)
    assert apart.step == pytest.approx(whole.step)


def test_large_integers_are_not_cut_off() -> None:
    found = assumed_metric(4, ())
    weights = np.random.default_rng(6).normal(size=(ROWS, 4)).astype(np.float32)
    small, large = (quantized(found, weights, step) for step in (1e-3, 1e-5))
    assert small.coefficients.dtype == np.int16 and large.coefficients.dtype == np.int32
    np.testing.assert_allclose(
        large.coefficients * large.grid.steps * large.step, weights, atol=1e-3
    )


# What is assumed


@pytest.mark.parametrize("taps_shape", [(), (3,), (2, 3), (3, 2, 2), (1, 4)])
@pytest.mark.parametrize("channels", [1, 4])
def test_assumed_metric_by_its_formula(channels: int, taps_shape: tuple[int, ...]) -> None:
    found = assumed_metric(channels, taps_shape)
    places = list(itertools.product(*(range(n) for n in taps_shape)))
    columns = [(c, s) for c in range(channels) for s in places]
    wanted = np.full((len(columns),) * 2, metrics.MEAN)
    for i, (c, s) in enumerate(columns):
        for j, (d, t) in enumerate(columns):
            if c == d:
                away = sum(abs(a - b) for a, b in zip(s, t, strict=True))
                wanted[i, j] += (1 - metrics.MEAN) * metrics.NEIGHBOURS**away
    np.testing.assert_allclose(found.blocks, wanted[None], rtol=1e-12)
    assert (found.columns, found.taps, found.share) == (len(columns), len(places), 0.0)
    assert found.power == pytest.approx(1.0) and not found.means.any()
    diagonal, filters = found.factor()
    R = upper_factor(wanted)
    np.testing.assert_allclose(diagonal[0], np.diag(R), rtol=1e-9)
    np.testing.assert_allclose(filters[0] * diagonal[0], R, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("taps_shape", [(), (3,), (2, 2)])
@pytest.mark.parametrize("channels", [5, 8, 9, 17, 40])
def test_wide_matrices_come_in_blocks(channels: int, taps_shape: tuple[int, ...]) -> None:
    """As few as hold all columns, of whole channels, and all the same."""
    widest, taps = 16, math.prod(taps_shape)
    found = narrow(channels, taps_shape, widest)
    count, n = found.blocks.shape[:2]
    assert n <= widest and n % taps == 0
    assert (count - 1) * n < channels * taps <= count * n
    assert count == math.ceil(channels / (widest // taps)) or n < widest - taps
    one = narrow(n // taps, taps_shape, widest)
    diagonal, filters = found.factor()
    for b in range(count):
        assert np.array_equal(found.blocks[b], one.blocks[0])
        assert np.array_equal(diagonal[b], one.factor()[0][0])
        assert np.array_equal(filters[b], one.factor()[1][0])
    # Errors of columns in different blocks do not add up.
    error = np.random.default_rng(7).normal(size=(3, channels * taps))
    apart = 0.0
    for row in error:
        for start in range(0, len(row), n):
            part = row[start : start + n]
            apart += part @ found.blocks[0][: len(part), : len(part)] @ part
    assert found.error(error) == pytest.approx(apart)


def test_blocks_are_no_wider_than_the_limit() -> None:
    for channels, taps_shape in ((100, ()), (1025, ()), (3, (20, 20))):
        found = assumed_metric(channels, taps_shape)
        count, n = found.blocks.shape[:2]
        assert n <= metrics.WIDEST and count * n >= found.columns
        assert (count == 1) == (found.columns <= metrics.WIDEST)
        assert found.blocks.strides[0] == 0  # one block in memory, however many there are


def test_pickled_metrics() -> None:
    """One that is assumed is made once in each process; a measured one is sent."""
    found = assumed_metric(5, (2,))
    data = pickle.dumps(found)
    assert len(data) < 200 and pickle.loads(data) is found is assumed_metric(5, (2,))
    measured = metric_of_kind("padded")
    again = pickle.loads(pickle.dumps(measured))
    assert again is not measured and np.array_equal(again.blocks, measured.blocks)
    assert (again.taps, again.columns, again.share) == (1, 21, 0.9)


@pytest.mark.parametrize("make", [lambda: assumed_metric(4, (3,)), lambda: narrow(8, (2,), 8)])
def test_noise_gain_is_what_feedback_does_to_the_error(make: Callable[[], Metric]) -> None:
    """Fine steps make rounding errors that are white: their power comes out noise_gain times."""
    found = make()
    rng = np.random.default_rng(8)
    weights = rng.normal(size=(6000, found.columns)).astype(np.float32)
    step = 0.05
    result = quantized(found, weights, step)
    assert (result.grid.columns.codes == 1).all()  # else the noise has not the same power
    steps = step * result.grid.steps
    error = ((weights - result.coefficients * steps) ** 2).mean()
    assert error / (steps**2 / 12).mean() == pytest.approx(found.noise_gain, rel=0.02)


def test_noise_gain_of_measured_metrics() -> None:
    """E with (E R)_j = R_jj n_j for white n, by solving for it."""
    found = metric_of_kind("grouped")
    rng = np.random.default_rng(9)
    power = []
    for block in found.blocks:
        R = upper_factor(block)
        noise = rng.normal(size=(len(R), 60_000)) * np.diag(R)[:, None]
        power.append((np.linalg.solve(R.T, noise) ** 2).mean())
    assert found.noise_gain == pytest.approx(np.mean(power), rel=0.02)


def test_noise_gain_of_white_inputs_is_one() -> None:
    white = Metric(np.eye(5)[None], np.zeros((1, 5)), 1, 5, 1.0)
    assert white.noise_gain == pytest.approx(1.0)
    assert assumed_metric(8, (3,)).noise_gain > 1.05


# ---- parts that are off ----


@kinds
def test_without_feedback_each_coefficient_is_rounded_alone(kind: str) -> None:
    found = replace(metric_of_kind(kind), tools=Tools(feedback=False))
    weights = np.random.default_rng(6).normal(size=(ROWS, found.columns)).astype(np.float32)
    result = quantized(found, weights, step := 0.3 * math.sqrt(found.power))
    assert np.array_equal(result.coefficients, np.rint(weights / (step * result.grid.steps)))


def test_without_gains_the_step_stays() -> None:
    found = metric_of_kind("grouped")
    weights = np.random.default_rng(6).normal(size=(ROWS, found.columns)).astype(np.float32)
    step = 0.9 * math.sqrt(found.power)
    assert quantized(found, weights, step).step != step
    assert quantized(replace(found, tools=Tools(gains=False)), weights, step).step == step


def test_without_steps_by_column_there_are_those_by_row() -> None:
    found = metric_of_kind("grouped")
    scale = 8.0 ** np.arange(found.columns)
    found = replace(found, blocks=found.blocks * np.outer(scale, scale), share=1.0)
    weights = np.random.default_rng(6).normal(size=(ROWS, found.columns)).astype(np.float32)
    assert len(set(quantized(found, weights, 1.0).grid.columns.codes)) > 1
    off = replace(found, tools=Tools(column_steps=False))
    assert set(quantized(off, weights, 1.0).grid.columns.codes) == {1}


def test_parts_stay_off_in_other_processes_and_behind_bases() -> None:
    off = replace(assumed_metric(6, (3,)), tools=Tools(feedback=False))
    assert pickle.loads(pickle.dumps(off)).tools == off.tools
    assert off.transformed([None, np.eye(6), np.eye(3)]).tools == off.tools
