"""Rate curves of the calibrated benchmark: interpolation between files, and the best of several.

Between files the logarithm of the divergence and the drop in top-1 are taken as linear in the bits
per weight. Both fall as files grow, but for noise (10,000 images tell top-1 within 0.2 points or
so): each is first replaced by the nearest sequence that never rises (isotonic regression by squared
error).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log, nan

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibrated.points import Point

Values = NDArray[np.float64]

SLACK = 1.005
"""How far beyond its ends a curve still holds: a file asked for 4 bits may have 3.99."""


class Curve:
    """Divergence and drop of one contender against its bits per weight."""

    def __init__(self, points: Sequence[Point]) -> None:
        ordered = sorted(points, key=lambda p: p.bits)
        self._bits = np.array([p.bits for p in ordered])
        self.most = float(self._bits[-1])
        self._kl = falling(np.log([max(p.kl, 1e-12) for p in ordered]))
        self._drop = falling(np.array([p.drop for p in ordered]))

    def kl_at(self, bits: float) -> float:
        """Divergence of a file of so many bits per weight; not a number beyond the ends."""
        return float(np.exp(self._at(bits, self._kl)))

    def drop_at(self, bits: float) -> float:
        """Points of top-1 lost, likewise."""
        return self._at(bits, self._drop)

    def _at(self, bits: float, values: Values) -> float:
        ends = float(self._bits[0]), self.most
        if not ends[0] / SLACK <= bits <= ends[1] * SLACK:
            return nan
        return float(np.interp(bits, self._bits, values))

    def bits_at_kl(self, kl: float) -> float:
        """Bits per weight of the smallest file of at most this divergence."""
        return _first(self._bits, self._kl, log(kl))

    def bits_at_drop(self, drop: float) -> float:
        """Bits per weight of the smallest file that loses at most so many points."""
        return _first(self._bits, self._drop, drop)


class Best:
    """The best of several contenders at each rate or below: the lower envelope of their curves."""

    def __init__(self, curves: Sequence[Curve]) -> None:
        self._curves = curves
        self._most = max(curve.most for curve in curves)

    def kl_at(self, bits: float) -> float:
        """As of a single curve; one that ends before `bits` counts as at its end."""
        return self._least(lambda curve: curve.kl_at(min(bits, curve.most)), bits)

    def drop_at(self, bits: float) -> float:
        """Points of top-1 lost, likewise."""
        return self._least(lambda curve: curve.drop_at(min(bits, curve.most)), bits)

    def bits_at_kl(self, kl: float) -> float:
        """As of a single curve."""
        return self._least(lambda curve: curve.bits_at_kl(kl))

    def bits_at_drop(self, drop: float) -> float:
        """As of a single curve."""
        return self._least(lambda curve: curve.bits_at_drop(drop))

    def _least(self, value: Callable[[Curve], float], bits: float = 0.0) -> float:
        known = [value(curve) for curve in self._curves] if bits <= self._most * SLACK else []
        return min((v for v in known if v == v), default=nan)


def falling(values: Values) -> Values:
    """The sequence that never rises and is nearest to `values` in squared error."""
    runs: list[tuple[float, int]] = []  # mean and length; pooled while one rises over the last
    for value in values:
        mean, length = float(value), 1
        while runs and runs[-1][0] < mean:
            other, more = runs.pop()
            mean = (mean * length + other * more) / (length + more)
            length += more
        runs.append((mean, length))
    return np.concatenate([np.full(length, mean) for mean, length in runs])


def _first(bits: Values, values: Values, wanted: float) -> float:
    """Where `values`, which never rise, come down to `wanted`; not a number if they never do.

    If the first is already below, the smallest file measured is the answer.
    """
    below = np.flatnonzero(values <= wanted)
    if not len(below):
        return nan
    i = int(below[0])
    if i == 0:
        return float(bits[0])
    share = (values[i - 1] - wanted) / (values[i - 1] - values[i])
    return float(bits[i - 1] + share * (bits[i] - bits[i - 1]))
