"""File bytes at equal error: finds the knobs around an error and interpolates between them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.compare.contenders import Contender
from benchmarks.compare.network import Network
from benchmarks.workers.process import Process


@dataclass(frozen=True)
class Sample:
    """One file, encoded and decoded again."""

    knob: int
    bytes: int
    mse: float
    vector_mse: float


@dataclass(frozen=True)
class Point:
    """A contender at an error: the bytes interpolated, the rest of the nearest sample."""

    bytes: int
    nearest: Sample


class Curve:
    """Bytes against error of one contender on one network, sampled where it is asked for."""

    def __init__(self, contender: Contender, network: Network, process: Process) -> None:
        self._contender = contender
        self._network = network
        self._process = process
        self._samples: dict[int, Sample] = {}
        process.order("warm_up", settings=contender.settings(self._guess(1e-2)))
        process.order("load", path=str(network.path))

    def at(self, mse: float) -> Point:
        """Interpolate the bytes between the two neighbouring knobs around `mse`.

        Bytes are taken as linear in the logarithm of the error.
        """
        low, high = self._bracket(mse)
        share = math.log(mse / low.mse) / math.log(high.mse / low.mse)
        nearest = low if share < 0.5 else high
        return Point(round(low.bytes + share * (high.bytes - low.bytes)), nearest)

    def _bracket(self, mse: float, tries: int = 20) -> tuple[Sample, Sample]:
        for _ in range(tries):
            knob = self._guess(mse)
            low = self._sample(knob)
            high = self._sample(knob + 1 if low.mse <= mse else knob - 1)
            if high.knob < low.knob:
                low, high = high, low
            if low.mse <= mse < high.mse:
                return low, high
        raise RuntimeError(f"{self._contender.name} does not reach a relative error of {mse:g}")

    def _guess(self, mse: float) -> int:
        """Return the knob whose error should be just below `mse`, from the nearest sample."""
        wanted, step, offset = _decibels(mse), self._contender.decibels, self._contender.offset
        if self._samples:
            near = min(self._samples.values(), key=lambda s: abs(_decibels(s.mse) - wanted))
            offset = _decibels(near.mse) - step * near.knob
        return math.floor((wanted - offset) / step)

    def _sample(self, knob: int) -> Sample:
        if knob not in self._samples:
            file = self._network.scratch
            settings = self._contender.settings(knob)
            encoded = self._process.order("encode", settings=settings, path=file)
            decoded = self._process.order("decode", path=file)
            self._samples[knob] = Sample(
                knob, encoded["bytes"], decoded["mse"], decoded["vector_mse"]
            )
        return self._samples[knob]


def _decibels(ratio: float) -> float:
    return 10 * math.log10(ratio)
