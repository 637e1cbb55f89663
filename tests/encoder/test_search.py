"""The search for the step on curves that are known, and the order of what it tries."""

from __future__ import annotations

import math
from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest

from tqcodec.encoder import rate_control
from tqcodec.encoder.matrix.quantizer import Method
from tqcodec.encoder.rate_control import SEARCHES, Estimate, seek
from tqcodec.encoder.settings import Settings
from tqcodec.encoder.step_search import EXTREME
from tqcodec.encoder.target import Target

WEIGHTS = 100_000
Curve = Callable[[float], tuple[float, float]]  # from a step to distortion and bits


def gaussian(*deviations: float) -> Curve:
    """Equal shares of Gaussian weights: straight at fine steps, bent where they go to zero."""
    count = WEIGHTS / len(deviations)

    def curve(step: float) -> tuple[float, float]:
        error = step**2 / 12
        distortion = sum(count * s**2 * error / (s**2 + error) for s in deviations)
        return distortion, sum(count * 0.5 * math.log2(1 + s**2 / error) for s in deviations)

    return curve


def stepped(curve: Curve, width: float) -> Curve:
    """The same for all steps within so many octaves."""
    return lambda step: curve(2.0 ** (math.floor(math.log2(step) / width) * width))


def flat(curve: Curve, low: float, high: float) -> Curve:
    """A curve that does not change between two steps."""
    return lambda step: curve(step if step < low else max(low, step * low / high))


ENERGY = {"one": 1.0, "scales": (1 + 0.01 + 1e-4) / 3, "rare": (1 + 1e-12) / 2}
CURVES: dict[str, Curve] = {
    "one": gaussian(1.0),
    "scales": gaussian(1.0, 0.1, 0.01),
    "rare": gaussian(1.0, 1e-6),
}
WISHES = [
    *(Settings(snr=snr) for snr in (3, 10, 28, 60, 90)),
    *(Settings(bits=bits) for bits in (0.5, 2, 4, 8)),
    *(Settings(max_size=size) for size in (7_000, 40_000)),
    Settings(quality=50),
]


def sought(curve: Curve, wish: Target, start: float) -> tuple[float, Estimate, int]:
    """Step, what is found there, and number of estimates."""
    asked: list[float] = []

    def estimate(_surveys: object, _method: object, step: float) -> Estimate:
        asked.append(step)
        return Estimate(*curve(step), [])

    def miss(found: Estimate) -> float:
        return wish.octaves(found.distortion, found.bits)

    with mock.patch.object(rate_control, "estimate", estimate):
        step, found = seek([], Method(0, 0.0), start, miss, wish.tolerance)
    assert (found.distortion, found.bits) == curve(step) and step in asked
    assert asked[0] == start and len(asked) <= SEARCHES
    return step, found, len(asked)


def assert_met(wish: Target, found: Estimate) -> None:
    """Within 0.02 dB, or 0.3 % of the bits; five times that in a hurry."""
    slack, settings = wish.slack, wish.settings
    if settings.target_snr is not None:
        reached = 10 * math.log10(wish.energy / found.distortion)
        assert abs(reached - settings.target_snr) <= 0.02 * slack + 1e-9
    elif settings.bits is not None:
        assert abs(found.bits / WEIGHTS - settings.bits) <= 0.003 * slack * settings.bits + 1e-9
    else:
        assert settings.max_size is not None
        limit = 8 * settings.max_size
        # Half a tolerance below the limit is what is aimed at.
        assert abs(found.bits / limit - 1 + 0.0015) <= 0.003 * slack + 1e-9


@pytest.mark.parametrize("slack", [1.0, 5.0])
@pytest.mark.parametrize("wish", WISHES, ids=str)
@pytest.mark.parametrize("name", CURVES)
def test_the_step_meets_the_target(name: str, wish: Settings, slack: float) -> None:
    """From afar, from near, from either side."""
    goal = Target(wish, WEIGHTS, ENERGY[name] * WEIGHTS, slack)
    for octave in (-20, -7.3, -1, 0.0, 0.4, 3):
        _, found, _ = sought(CURVES[name], goal, 2.0**octave)
        assert_met(goal, found)


@pytest.mark.parametrize("wish", [Settings(snr=20), Settings(bits=4)], ids=str)
def test_a_straight_curve_takes_two_tries(wish: Settings) -> None:
    """At high rate an octave of the step is one of the error, and a bit."""

    def straight(step: float) -> tuple[float, float]:
        return WEIGHTS * step**2 / 12, WEIGHTS * (2 - math.log2(step))

    goal = Target(wish, WEIGHTS, float(WEIGHTS))
    for octave in (-5, 0, 5):
        _, found, tries = sought(straight, goal, 2.0**octave)
        assert_met(goal, found)
        assert tries <= 2
        assert sought(straight, goal, sought(straight, goal, 2.0**octave)[0])[2] == 1


@pytest.mark.parametrize("width", [1e-4, 0.003])
@pytest.mark.parametrize("wish", [Settings(snr=28), Settings(bits=3)], ids=str)
def test_small_steps_of_the_curve_do_no_harm(width: float, wish: Settings) -> None:
    goal = Target(wish, WEIGHTS, float(WEIGHTS))
    for octave in (-6, 0, 4):
        _, found, _ = sought(stepped(CURVES["one"], width), goal, 2.0**octave)
        assert_met(goal, found)


@pytest.mark.parametrize("wish", [Settings(snr=28), Settings(bits=4)], ids=str)
def test_the_best_beside_a_jump_is_taken(wish: Settings) -> None:
    """With jumps of an octave nothing meets the target; what comes out is one of the two beside."""
    goal = Target(wish, WEIGHTS, float(WEIGHTS))
    curve = stepped(CURVES["one"], 1.0)
    nearest = min(abs(goal.octaves(*curve(2.0**x))) for x in range(-30, 10))
    for octave in (-6.2, 0.3, 4.1):
        _, found, tries = sought(curve, goal, 2.0**octave)
        assert abs(goal.octaves(found.distortion, found.bits)) == pytest.approx(nearest)
        assert nearest > goal.tolerance and tries == SEARCHES


@pytest.mark.parametrize("wish", [Settings(snr=28), Settings(bits=4)], ids=str)
def test_a_search_crosses_flat_ground(wish: Settings) -> None:
    """From where the curve is flat, on either side of the target."""
    goal = Target(wish, WEIGHTS, float(WEIGHTS))
    step, _, _ = sought(CURVES["one"], goal, 1.0)
    for low, high in ((1.1 * step, 4 * step), (0.2 * step, 0.7 * step)):
        curve = flat(CURVES["one"], low, high)
        for start in (1.01 * low, math.sqrt(low * high), 0.99 * high):
            _, found, _ = sought(curve, goal, start)
            assert_met(goal, found)


def test_a_curve_without_the_target_ends_at_the_ends() -> None:
    """The step runs to one end without overflow, and what came nearest is taken."""
    goal = Target(Settings(bits=4), WEIGHTS, float(WEIGHTS))
    for bits in (1.0, 7.0):
        asked: list[float] = []

        def level(
            step: float, bits: float = bits, asked: list[float] = asked
        ) -> tuple[float, float]:
            asked.append(math.log2(step))
            return 1.0, bits * WEIGHTS

        _, found, _ = sought(level, goal, 1.0)
        assert found.bits == bits * WEIGHTS
        towards = 1 if bits > 4 else -1
        assert np.all(np.diff(asked[:SEARCHES]) * towards >= 0)
        assert max(map(abs, asked)) <= EXTREME
        assert abs(asked[SEARCHES - 1]) == EXTREME


# Target


def test_octaves_are_those_of_the_step() -> None:
    """Positive where the step is too coarse."""
    snr = Target(Settings(snr=20), 1000, 500.0)
    assert snr.octaves(5.0, 0.0) == pytest.approx(0)
    assert snr.octaves(4 * 5.0, 0.0) == pytest.approx(1)  # twice the step, four times the error
    assert snr.octaves(5.0 / 4, 0.0) == pytest.approx(-1)
    bits = Target(Settings(bits=3), 1000, 500.0)
    assert bits.octaves(0.0, 3000) == 0
    assert bits.octaves(0.0, 2000) == pytest.approx(1)  # a bit less for each weight
    assert bits.octaves(0.0, 4500) == pytest.approx(-1.5)
    assert snr.snr(0.0) == pytest.approx(300) and snr.snr(500.0) == pytest.approx(0)


def test_tolerances() -> None:
    for slack in (1, 5):
        assert Target(Settings(snr=20), 10, 1.0, slack).tolerance == pytest.approx(
            slack * 0.02 / (20 * math.log10(2))
        )
        assert Target(Settings(bits=2), 10, 1.0, slack).tolerance == pytest.approx(
            slack * 0.003 * 2
        )
        assert Target(Settings(max_size=500), 1000, 1.0, slack).tolerance == pytest.approx(
            slack * 0.003 * 4, rel=0.002
        )


def test_files_that_are_too_large() -> None:
    limited = Target(Settings(max_size=1000), 4000, 1.0)
    assert not limited.is_above(1000) and limited.is_above(1001)
    wanted = Target(Settings(bits=2), 5000, 1.0)
    assert not wanted.is_above(1253) and wanted.is_above(1254)


def test_what_meets_the_limit_ranks_before_all_that_does_not() -> None:
    """Below it the largest file, above it the smallest."""
    goal = Target(Settings(max_size=1000), 4000, 1.0)
    sizes = [997, 990, 500, 1, 1001, 1002, 1500, 10**9]
    ranks = [goal.rank(goal.octaves(0.0, 8.0 * size), size) for size in sizes]
    assert ranks == sorted(ranks) and len(set(ranks)) == len(ranks) and math.isfinite(ranks[-1])
    assert ranks[0] <= goal.tolerance < ranks[1]


def test_without_a_limit_the_nearest_size_ranks_first() -> None:
    goal = Target(Settings(bits=2), 4000, 1.0)
    sizes = [1000, 1001, 998, 1010, 980, 1500]
    ranks = [goal.rank(goal.octaves(0.0, 8.0 * size), size) for size in sizes]
    assert ranks == sorted(ranks) and ranks[0] == 0


def test_less_than_the_ratio_ranks_last() -> None:
    """A quarter of a decibel is forgiven."""
    decibels = [0.0, -0.1, 0.2, 0.24, -0.3, -5, -90, 0.26, 1, 90]  # by how much it is missed
    ranks = [Target.rank_of_snr(d / (20 * math.log10(2))) for d in decibels]
    assert ranks == sorted(ranks) and len(set(ranks)) == len(ranks)
