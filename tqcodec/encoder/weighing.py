"""Weighing: how much an error of each matrix counts, and the step from which the search starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tqcodec.encoder.matrix.metric import Metric
from tqcodec.encoder.matrix.survey import CONVERT
from tqcodec.encoder.matrix.transform import HIGH_RATE
from tqcodec.encoder.settings import Settings
from tqcodec.encoder.tensor import Source
from tqcodec.errors import EncodeError
from tqcodec.format.dtypes import to_float

# Step of a matrix without statistics: rms ** RMS_EXPONENT * size ** SIZE_EXPONENT, but at most
# MOST_BEHIND times the relative step at which half of all weights lie.
RMS_EXPONENT, SIZE_EXPONENT, MOST_BEHIND = 0.25, 0.375, 2.0
# Least cost of a matrix by statistics of made-up inputs, over its cost without statistics.
LEAST_COST = 0.25
FARTHEST = 60.0  # octaves of the first step
LEAST_POWER = 2.0**-110  # of gradients times inputs, so that float32 holds what follows from it


@dataclass(frozen=True)
class Weighing:
    """How much an error of one matrix counts.

    Attributes:
        sensitivity: what a squared error of its weights costs, the inverse square of its step; 1
            where a metric is in units of the logits.
        judged: weight of the squared error where the target is judged; None where the metric says.
        cost: of a squared error of its weights, by statistics or without.
    """

    sensitivity: float
    judged: float | None
    cost: float


def weigh(
    names: Sequence[str],
    energies: Sequence[float],
    sizes: Sequence[int],
    metrics: Sequence[Metric | None],
    settings: Settings,
) -> list[Weighing]:
    """How much errors of the matrices count, beside each other.

    Args:
        names: of the matrices.
        energies: sum of squares of each.
        sizes: elements of each.
        metrics: what an error does, measured or assumed; None where all weights count alike.
        settings: the target.

    Raises:
        EncodeError: statistics that are beyond float32.
    """
    powers = _measured_powers(metrics)
    _check_powers(names, powers, energies)
    guessed = sensitivities(energies, sizes, settings)
    if settings.snr is not None:
        errors: Sequence[float] = guessed
        judged: list[float | None] = list(guessed)
    else:
        guessed = errors = in_scale(guessed, powers)
        # Beside matrices with statistics, those without are judged on the scale of these.
        if not any(p is not None for p in powers):
            errors = plain_weights(energies, sizes)
        judged = [w if p is None else None for w, p in zip(errors, powers, strict=True)]
    return [
        Weighing(g if p is None else 1.0, j, g if p is None else p)
        for g, p, j in zip(guessed, powers, judged, strict=True)
    ]


def trusted(
    metrics: Sequence[Metric | None],
    made_up: Sequence[float],
    energies: Sequence[float],
    sizes: Sequence[int],
    settings: Settings,
) -> list[Metric | None]:
    """Metrics in which no matrix counts for nothing because made-up inputs never woke it.

    The head of a detector gives nothing but zeros where nothing is to be found, and its matrices
    would lose most of their bits. So they cost at least `LEAST_COST` times what they would without
    statistics, on the scale of the middle one. Measured in docs/encoder.md.

    Args:
        metrics: what an error does, measured or assumed.
        made_up: for each matrix the part of its statistics that comes from made-up inputs.
        energies: sum of squares of each.
        sizes: elements of each.
        settings: the target; where all weights count alike, metrics stay as they are.
    """
    if settings.snr is not None or not any(made_up):
        return list(metrics)
    powers = _measured_powers(metrics)
    guesses = sensitivities(energies, sizes, settings)
    ratios = [p / g for p, g in zip(powers, guesses, strict=True) if p is not None]
    scale = float(np.median(ratios)) if ratios else 1.0
    found: list[Metric | None] = []
    for metric, power, guess, part in zip(metrics, powers, guesses, made_up, strict=True):
        least = LEAST_COST * part * scale * guess
        if metric is not None and power is not None and 0 < power < least:
            metric = metric.scaled(least / power)
        found.append(metric)
    return found


def _measured_powers(metrics: Sequence[Metric | None]) -> list[float | None]:
    """What a unit of squared error costs by each metric; None where none was measured."""
    return [None if m is None or m.assumed is not None else m.power for m in metrics]


def _check_powers(
    names: Sequence[str], powers: Sequence[float | None], energies: Sequence[float]
) -> None:
    for name, power, energy in zip(names, powers, energies, strict=True):
        products = [] if power is None else [x for x in (power, power * energy) if x != 0]
        if not all(LEAST_POWER < x < 1 / LEAST_POWER for x in products):
            raise EncodeError(
                f"statistics of {name!r}: gradients and inputs of such a size ({power:.3g}) "
                "cannot be weighed; scale the network's outputs"
            )


def sensitivities(
    energies: Sequence[float], sizes: Sequence[int], settings: Settings
) -> list[float]:
    """Weight of each matrix's squared error in the distortion, without statistics: 1 / step^2.

    For a signal-to-noise ratio all weights count alike. For an accuracy at a size they do not. What
    a matrix adds to the network's output error goes with its relative error, so the step grows with
    the root mean square of the weights, though more slowly. Small matrices (depthwise kernels, the
    first layer) get finer steps: their bits are few, and their weights are used at many places. No
    matrix gets a relative error more than 6 dB above the one at which half of all weights lie, so
    that none starves beside others of another scale. Measured in docs/encoder.md.
    """
    if settings.snr is not None or not energies:
        return [1.0] * len(energies)
    elements = np.array(sizes, np.float64)
    powers = np.array(energies) / elements
    rms = np.sqrt(np.where(powers > 0, powers, 1.0))
    relative = rms ** (RMS_EXPONENT - 1) * elements**SIZE_EXPONENT
    order = np.argsort(relative)
    half = np.searchsorted(np.cumsum(elements[order]), elements.sum() / 2)
    relative = np.minimum(relative, MOST_BEHIND * relative[order[half]])
    weights: list[float] = ((rms * relative) ** -2).tolist()
    return weights


def plain_weights(energies: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """Weights by which a target judges the error of all matrices: their relative errors, by size.

    Whatever the steps are, no matrix of many times the energy of all others hides what they lose.
    """
    return [n / e if e > 0 else 1.0 for e, n in zip(energies, sizes, strict=True)]


def in_scale(guesses: Sequence[float], powers: Sequence[float | None]) -> list[float]:
    """Sensitivities of matrices without statistics on the scale of those with.

    Args:
        guesses: as of `sensitivities`.
        powers: squared error of the logits for a unit of squared error of each matrix, where known.
    """
    ratios = [p / g for p, g in zip(powers, guesses, strict=True) if p is not None and p > 0]
    scale = math.exp(float(np.mean(np.log(ratios)))) if ratios else 1.0
    return [scale * g for g in guesses]


def first_step(
    energies: Sequence[float], sizes: Sequence[int], factors: Sequence[float], settings: Settings
) -> float:
    """Step from which the rate control starts, by high-rate theory for Gaussian matrices.

    Args:
        energies: sum of squares of each matrix.
        sizes: elements of each matrix.
        factors: of each matrix's step to that of the network.
        settings: the target.
    """
    total, count = sum(energies), sum(sizes)
    if not count or total <= 0:
        return 1.0
    scaled = [e / f**2 for e, f in zip(energies, factors, strict=True)]
    if settings.target_snr is not None:
        return math.sqrt(12 * sum(scaled) / count * 10 ** (-settings.target_snr / 10))
    from scipy import optimize  # slow to import; lossless files and ratios do without

    wanted = settings.bits if settings.bits is not None else 8 * (settings.max_size or 1) / count

    def too_many(octave: float) -> float:
        bits = (
            n * 0.5 * math.log2(1 + HIGH_RATE * e / n / 4**octave)
            for e, n in zip(scaled, sizes, strict=True)
        )
        return sum(bits) - wanted * count

    if too_many(FARTHEST) >= 0:
        return 2.0**FARTHEST
    if too_many(-FARTHEST) <= 0:
        return 2.0**-FARTHEST
    return float(2 ** optimize.brentq(too_many, -FARTHEST, FARTHEST))


def energy_of(source: Source) -> float:
    """Sum of the squares of a tensor, in blocks."""
    flat = source.patterns.reshape(-1)
    blocks = (to_float(flat[i : i + CONVERT], source.dtype) for i in range(0, len(flat), CONVERT))
    return float(sum(np.dot(block, block) for block in blocks))
