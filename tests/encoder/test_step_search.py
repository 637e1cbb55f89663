"""The steps that a search names, whatever it is that is tried at them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest

from tqcodec.encoder.step_search import EXTREME, NARROWEST, SLOPES, StepSearch

Try = tuple[float, float]  # log2 of a step, octaves by which it missed


def told(tries: Sequence[Try], tolerance: float = -1.0) -> StepSearch:
    """A search after these tries; by default nothing is close enough for it."""
    search = StepSearch(1.0, tolerance, 999, NARROWEST)
    for x, octaves in tries:
        search.step = 2.0**x
        search.tell(octaves)
    return search


def test_without_two_sides_the_next_step_is_on_the_other_one() -> None:
    for octaves in (-30.0, -2.0, -0.01, 0.01, 2.0, 30.0):
        # slope 1 to begin with
        assert math.log2(told([(3, octaves)]).step) == pytest.approx(3 - octaves)
    assert told([(0, 1e6)]).step == 2.0**-EXTREME
    assert told([(0, -1e6)]).step == 2.0**EXTREME


def test_the_slope_is_that_of_the_last_two_within_bounds() -> None:
    for slope, used in ((0.5, 0.5), (2.0, 2.0), (0.01, SLOPES[0]), (9.0, SLOPES[1])):
        search = told([(2, 1.0 + slope), (1, 1.0)])
        assert math.log2(search.step) == pytest.approx(1 - 1 / used)


def test_between_two_sides_the_next_step_is_between_them() -> None:
    """Where the line between them crosses the target, but no closer to an end than a tenth."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        x0, width = rng.uniform(-9, 9), rng.uniform(0.01, 5)
        below, above = -(10.0 ** rng.uniform(-4, 2)), 10.0 ** rng.uniform(-4, 2)
        for order in itertools.permutations([(x0, below), (x0 + width, above)]):
            part = (math.log2(told(order).step) - x0) / width
            assert part == pytest.approx(min(max(below / (below - above), 0.1), 0.9))


def test_the_nearest_tries_on_either_side_count() -> None:
    search = told([(-3.0, -3.0), (4.0, 6.0), (-1.0, -1.0), (2.0, 1.0)])
    assert math.log2(search.step) == pytest.approx(0.5)


@pytest.mark.parametrize("jump", [-0.7, 0.0, 1.3])
@pytest.mark.parametrize("sides", [(-1.0, 1.0), (-1e-3, 2.0), (-3.0, 0.01)])
def test_a_jump_ends_the_search(jump: float, sides: tuple[float, float]) -> None:
    """The steps close in on it until nothing is worth trying between them, and not before."""
    search = StepSearch(2.0 ** (jump + 1.7), 0.0, 60, NARROWEST)
    tries = []
    while search.is_open:
        x = math.log2(search.step)
        tries.append((x, sides[0] if x < jump else sides[1]))
        search.tell(tries[-1][1])
        below = max((x for x, y in tries if y <= 0), default=-math.inf)
        above = min((x for x, y in tries if y > 0), default=math.inf)
        assert search.is_open == (above - below >= NARROWEST)
    assert below < jump <= above
    assert not search.is_spent


def test_narrow_is_what_has_the_target_inside() -> None:
    """Near steps on one side of it end nothing, nor do tries in the wrong order."""
    for tries in (
        [(0.0, 1.0), (0.001, 1.1)],
        [(0.0, -1.0), (0.001, -0.9)],
        [(0.0, 1.0), (0.001, -1.0)],
        [(0.0, -1.0), (0.004, 1.0)],
    ):
        assert told(tries).is_open
    assert not told([(0.0, -1.0), (5.0, 3.0), (0.002, 1.0)]).is_open
    assert not told([(0.0, 0.0), (0.002, 1.0)]).is_open


def test_it_ends_when_close_and_knows_the_best_step() -> None:
    search = StepSearch(4.0, 0.1, 9)
    assert search.tell(2.0) and search.is_open
    close = search.step
    assert search.tell(-0.1)
    assert not search.is_open and not search.is_spent
    assert search.best_step == close


def test_another_distance_than_the_octaves_says_what_is_best() -> None:
    search = StepSearch(4.0, 0.1, 3)
    assert search.tell(0.05, distance=100.0) and search.is_open
    assert not search.tell(-9.0, distance=100.0)
    second = search.step
    assert search.tell(-1.0, distance=1.0)
    assert search.best_step == second
    assert search.is_spent and not search.is_open


def test_a_spent_search_goes_on_from_another_step() -> None:
    search = StepSearch(1.0, 0.01, 2, coarsest=8.0)
    for _ in range(2):
        search.tell(-5.0)  # too fine, whatever the step
    assert search.step == 8.0 and search.is_spent
    search.reopen(0.5, 1)
    assert search.step == 0.5 and search.is_open
    search.tell(-0.5)
    assert search.is_spent and search.best_step == 0.5
    search.reopen(8.0, 0)
    assert not search.is_open
