"""Target: how far a file is from what the user asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tqcodec.encoder.settings import Settings

SNR_TOLERANCE = 0.02  # dB
BITS_TOLERANCE = 0.003  # relative
SNR_MISS = 0.25  # dB below the target that are worth a word
FAR = 1e3  # octaves
DECIBELS_PER_OCTAVE = 20 * math.log10(2)


@dataclass(frozen=True)
class Target:
    """What the user asked for, as a distance in octaves of the step.

    Attributes:
        settings: with the target.
        weights: elements of all weight matrices.
        energy: of all weight matrices, weighed as their error is.
        slack: how far from it will do, in tolerances.
    """

    settings: Settings
    weights: int
    energy: float
    slack: float = 1.0

    @property
    def tolerance(self) -> float:
        """Distance that will do: 0.02 dB or 0.3 % of the bits, times the slack."""
        if self.settings.target_snr is not None:
            return self.slack * SNR_TOLERANCE / DECIBELS_PER_OCTAVE
        return self.slack * BITS_TOLERANCE * self._wanted / self.weights

    @property
    def _wanted(self) -> float:
        if self.settings.bits is not None:
            return self.settings.bits * self.weights
        # Below the limit by half the tolerance: nothing above it will do.
        return 8 * (self.settings.max_size or 1) * (1 - BITS_TOLERANCE / 2)

    def octaves(self, distortion: float, bits: float) -> float:
        """By how much the step is too coarse; negative where it is too fine."""
        wanted = self.settings.target_snr
        if wanted is not None:
            return (wanted - self.snr(distortion)) / DECIBELS_PER_OCTAVE
        return (self._wanted - bits) / self.weights

    def snr(self, distortion: float) -> float:
        """Signal-to-noise ratio in dB; 300 where there is no noise."""
        return 10 * math.log10(self.energy / max(distortion, 1e-30 * self.energy))

    def is_above(self, size: int) -> bool:
        """True for a file of so many bytes that is larger than what was asked for."""
        if self.settings.max_size is not None:
            return size > self.settings.max_size
        return 8 * size > self._wanted * (1 + BITS_TOLERANCE)

    @staticmethod
    def rank_of_snr(octaves: float) -> float:
        """Distance from a signal-to-noise ratio; far where less than it comes out."""
        return abs(octaves) + (FAR if octaves * DECIBELS_PER_OCTAVE > SNR_MISS else 0.0)

    def rank(self, octaves: float, size: int) -> float:
        """Distance from the target; infinitely far where a hard limit is broken."""
        limit = self.settings.max_size
        return abs(octaves) + (1e6 * size if limit is not None and size > limit else 0)
