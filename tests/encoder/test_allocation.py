"""The step to start from and the weights of errors: equal slope against a convex solver."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import optimize
from strategies import Array, Rng

from tqcodec.encoder import weighing
from tqcodec.encoder.matrix.metric import Metric
from tqcodec.encoder.settings import Settings
from tqcodec.encoder.weighing import (
    LEAST_COST,
    first_step,
    in_scale,
    plain_weights,
    sensitivities,
    trusted,
)

# Sizes, deviations and weights of the errors of some Gaussian matrices.
NETWORKS: dict[str, tuple[list[int], list[float], list[float]]] = {
    "alike": ([1000, 1000, 1000], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]),
    "scales": ([4000, 500, 9000], [1.0, 0.05, 0.3], [1.0, 1.0, 1.0]),
    "weighed": ([300, 7000, 2000, 2000], [0.02, 0.7, 3.0, 0.4], [900.0, 1.0, 0.1, 4.0]),
    "one": ([5000], [0.03], [7.0]),
}
networks = pytest.mark.parametrize("name", NETWORKS)


def problem(name: str) -> tuple[Array, Array, Array]:
    sizes, deviations, weights = NETWORKS[name]
    return np.array(sizes, float), np.array(deviations), np.array(weights)


def started(name: str, settings: Settings) -> Array:
    """Step of each matrix at the first step of the network."""
    n, deviations, weights = problem(name)
    factors = 1 / np.sqrt(weights)
    energies, sizes = (n * deviations**2).tolist(), NETWORKS[name][0]
    return first_step(energies, sizes, factors.tolist(), settings) * factors


def model_bits(steps: Array, deviations: Array) -> Array:
    """Bits a weight of a Gaussian at the error step^2 / (2 pi e), as of the module."""
    return np.asarray(0.5 * np.log2(1 + 2 * math.pi * math.e * deviations**2 / steps**2))


def best_rates(n: Array, deviations: Array, weights: Array, bits: float) -> Array:
    """Bits a weight of each matrix with the least weighed error, D = s^2 2^(-2 R), R >= 0."""
    powers = weights * deviations**2 * n

    def error(rates: Array) -> tuple[float, Array]:
        each = powers * 4.0**-rates / powers.sum() * 4.0**bits
        return float(each.sum()), -2 * math.log(2) * each

    kept = {
        "type": "eq",
        "fun": lambda r: float(n @ r / n.sum() - bits),
        "jac": lambda r: n / n.sum(),
    }
    found = optimize.minimize(
        error,
        np.full(len(n), bits),
        jac=True,
        method="SLSQP",
        bounds=[(0, None)] * len(n),
        constraints=[kept],
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert found.success, found.message
    rates: Array = found.x
    return rates


@networks
@pytest.mark.parametrize(
    ("settings", "bits"),
    [
        (Settings(bits=0.05), 0.05),
        (Settings(bits=2), 2.0),
        (Settings(bits=7.5), 7.5),
        (Settings(max_size=600), None),
    ],
)
def test_the_rate_is_met_at_equal_slope(name: str, settings: Settings, bits: float | None) -> None:
    n, deviations, weights = problem(name)
    steps = started(name, settings)
    wanted = bits * n.sum() if bits is not None else 8 * 600
    assert n @ model_bits(steps, deviations) == pytest.approx(wanted, rel=1e-6)
    # At high rate dD/dR = -2 ln 2 step^2 / (2 pi e): weighed, the same for all.
    slopes = weights * steps**2
    np.testing.assert_allclose(slopes, slopes[0], rtol=1e-12)


@networks
@pytest.mark.parametrize("bits", [5.0, 8.0])
def test_no_allocation_of_the_convex_solver_is_better(name: str, bits: float) -> None:
    """The same rate, an error within 0.1 %, and about the same bits for each matrix."""
    n, deviations, weights = problem(name)
    own = model_bits(started(name, Settings(bits=bits)), deviations)
    assert n @ own == pytest.approx(n.sum() * bits)
    best = best_rates(n, deviations, weights, bits)
    powers = weights * deviations**2 * n
    errors = [float((powers * 4.0**-rates).sum()) for rates in (own, best)]
    assert errors[1] * (1 - 1e-6) <= errors[0] <= errors[1] * 1.001
    np.testing.assert_allclose(own, best, atol=0.05)


@networks
def test_at_low_rate_the_allocation_is_not_far_off(name: str) -> None:
    """Where matrices go to zero the slopes are not equal any more: within a decibel."""
    n, deviations, weights = problem(name)
    for bits in (0.3, 1.0, 2.0):
        own = model_bits(started(name, Settings(bits=bits)), deviations)
        best = best_rates(n, deviations, weights, bits)
        powers = weights * deviations**2 * n
        errors = [float((powers * 4.0**-rates).sum()) for rates in (own, best)]
        assert errors[1] * (1 - 1e-6) <= errors[0] <= errors[1] * 10**0.1


def entropy(q: Array) -> float:
    """Bits a number under their own counts."""
    counts = np.unique(q, return_counts=True)[1]
    return -float((counts * np.log2(counts / len(q))).sum()) / len(q)


def rounded(rng: Rng, name: str, steps: Array) -> tuple[float, float]:
    """Bits a weight and weighed error of Gaussian matrices that are rounded at these steps."""
    n, deviations, weights = problem(name)
    rates, errors = [], []
    for s, step in zip(deviations, steps, strict=True):
        x = rng.normal(0, s, 60_000)
        q = np.rint(x / step)
        rates.append(entropy(q))
        errors.append(float(((x - q * step) ** 2).mean()))
    return float(n @ rates / n.sum()), float((n * weights) @ errors / n.sum())


@networks
def test_gaussian_weights_take_what_the_model_says(name: str) -> None:
    """Rounded at the first step they have its bits, and no other steps do better with as many."""
    bits = 5.0
    steps = started(name, Settings(bits=bits))
    found, error = rounded(np.random.default_rng(0), name, steps)
    assert found == pytest.approx(bits, abs=0.02)
    rng = np.random.default_rng(1)
    n = problem(name)[0]
    for _ in range(4):
        moved = rng.choice([-0.5, 0.5], len(n))
        moved -= n @ moved / n.sum()  # at high rate the bits stay
        others, worse = rounded(np.random.default_rng(0), name, steps * 2.0**moved)
        assert others == pytest.approx(found, abs=0.02)
        same = np.abs(moved).max() < 0.05
        assert worse > error * (0.99 if same else 1.0)


@networks
@pytest.mark.parametrize("snr", [20.0, 40.0])
def test_gaussian_weights_have_the_ratio_asked_for(name: str, snr: float) -> None:
    n, deviations, weights = problem(name)
    for settings in (Settings(snr=snr), Settings(quality=snr / 0.4)):
        steps = started(name, settings)
        powers = (n * weights) @ deviations**2 / n.sum()
        ratio = 10 * math.log10(powers / ((weights * steps**2) @ n / n.sum() / 12))
        assert ratio == pytest.approx(snr)
    if (steps < deviations).all():
        _, error = rounded(np.random.default_rng(2), name, steps)
        assert 10 * math.log10(powers / error) == pytest.approx(snr, abs=0.1)


def test_first_steps_that_no_rate_has() -> None:
    """The ends of what is searched; 1 where there is nothing to code."""
    assert first_step([], [], [], Settings(bits=2)) == 1.0
    assert first_step([0.0], [10], [1.0], Settings(snr=20)) == 1.0
    assert first_step([1e40], [10], [1.0], Settings(bits=0.01)) == 2.0**weighing.FARTHEST
    assert first_step([1e-40], [10], [1.0], Settings(bits=32)) == 2.0**-weighing.FARTHEST
    with_nothing = first_step([0.0, 10.0], [10, 10], [1.0, 1.0], Settings(bits=2))
    assert 10 * model_bits(np.array([with_nothing]), np.array([1.0]))[0] == pytest.approx(40)


# Weights of errors


def relative_steps(energies: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """Step over the root mean square of each matrix, by the description of `sensitivities`."""
    found = []
    for energy, size in zip(energies, sizes, strict=True):
        rms = math.sqrt(energy / size) if energy > 0 else 1.0
        found.append(rms**0.25 * size**0.375 / rms)
    ordered = sorted(zip(found, sizes, strict=True))
    below = np.cumsum([size for _, size in ordered])
    middle = next(r for (r, _), b in zip(ordered, below, strict=True) if b >= sum(sizes) / 2)
    return [min(r, 2 * middle) for r in found]


def test_sensitivities_by_their_description() -> None:
    rng = np.random.default_rng(3)
    capped = 0
    for count in (1, 2, 5, 20):
        for _ in range(10):
            sizes = [int(s) for s in 2 ** rng.uniform(6, 20, count)]
            energies = [n * 4.0 ** rng.uniform(-9, 3) for n in sizes]
            found = sensitivities(energies, sizes, Settings(bits=3))
            relative = relative_steps(energies, sizes)
            for weight, energy, size, r in zip(found, energies, sizes, relative, strict=True):
                assert weight**-0.5 == pytest.approx(r * math.sqrt(energy / size))
            capped += sum(r == max(relative) for r in relative) > 1
            same = sensitivities(energies, sizes, Settings(quality=40))
            assert same == found == sensitivities(energies, sizes, Settings(max_size=99))
    assert capped  # the bound has been of use


def test_no_matrix_starves() -> None:
    """6 dB at most, in relative error, behind the matrix at which half of all weights lie."""
    sizes, rms = [10_000, 10_000, 10_000, 100, 10_000], [1.0, 0.9, 1.1, 1e-9, 1e-6]
    energies = [n * r**2 for n, r in zip(sizes, rms, strict=True)]
    steps = [w**-0.5 for w in sensitivities(energies, sizes, Settings(bits=3))]
    relative = [s / r for s, r in zip(steps, rms, strict=True)]
    middle = relative[1]  # of 40100 weights, 20000 have finer steps for their size
    assert max(relative) == pytest.approx(2 * middle)
    assert relative[3] == relative[4] == max(relative)


def test_for_a_ratio_all_weights_count_alike() -> None:
    assert sensitivities([1.0, 9.0], [4, 900], Settings(snr=20)) == [1.0, 1.0]
    assert sensitivities([], [], Settings(bits=2)) == []
    zeros = sensitivities([0.0, 100.0], [100, 100], Settings(bits=2))
    assert zeros[0] == zeros[1]  # as if its deviation were 1


def test_plain_weights_judge_relative_errors_by_size() -> None:
    energies, sizes = [1e-8, 5.0, 0.0, 3e7], [100, 20, 7, 9000]
    found = plain_weights(energies, sizes)
    assert found[2] == 1.0
    for weight, energy, size in zip(found, energies, sizes, strict=True):
        # An error of a hundredth of the energy counts a hundredth of the elements.
        assert energy == 0 or weight * energy / 100 == pytest.approx(size / 100)


def test_guesses_on_the_scale_of_what_is_known() -> None:
    """The ratios of the known ones to their guesses are 1 in the geometric mean."""
    guesses, powers = [2.0, 5.0, 0.3, 7.0], [40.0, None, 0.6, 0.0]
    found = in_scale(guesses, powers)
    np.testing.assert_allclose(np.array(found) / guesses, found[0] / guesses[0])
    ratios = [p / f for p, f in zip(powers, found, strict=True) if p]
    assert math.prod(ratios) == pytest.approx(1)
    assert in_scale(guesses, [None] * 4) == guesses


def metric(power: float) -> Metric:
    """Of four columns that count alike."""
    return Metric(power * np.eye(4)[None], np.zeros((1, 4)), 1, 4, 1.0)


def test_made_up_inputs_take_no_matrix_for_nothing() -> None:
    powers, sizes = [1.0, 1e-6, 0.7, 2.0], [16] * 4
    given, settings = [metric(power) for power in powers], Settings(bits=3)
    energies = [16.0] * 4
    found = trusted(given, [1.0] * 4, energies, sizes, settings)
    assert [one is other for one, other in zip(given, found, strict=True)] == [1, 0, 1, 1]
    assert found[1] is not None
    assert found[1].power == pytest.approx(LEAST_COST * 0.85)
    # In shares, where the rest is real; and not at all.
    quarter = trusted(given, [0, 0.25, 0, 0], energies, sizes, settings)[1]
    assert quarter is not None
    assert quarter.power == pytest.approx(found[1].power / 4)
    assert trusted(given, [0.0] * 4, energies, sizes, settings) == given
    assert trusted(given, [1.0] * 4, energies, sizes, Settings(snr=20)) == given
    assert trusted([None], [1.0], [16.0], [16], settings) == [None]
