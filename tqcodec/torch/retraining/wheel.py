"""Wheel: steers the weight of the bits so that the size of the file comes to its target."""

from __future__ import annotations

import math
from dataclasses import dataclass

WIDEST = 0.3  # natural logarithm of a miss of the size that counts
MOST = 5.0  # natural logarithm of the weight over that at first


@dataclass
class Wheel:
    """A proportional and integral controller in logarithms.

    The size answers slowly: the optimizer divides the pull of the bits by the noise of the
    gradients. So the integral is slow, too.

    Attributes:
        start: weight before any answer.
        gain: powers of the size over its target that are answered at once.
        integral: steps after which a miss has been answered twice as much.
        sum: the integral, as a logarithm.
        answer: logarithm of the weight over `start`.
    """

    start: float
    gain: float
    integral: float
    sum: float = 0.0
    answer: float = 0.0

    @property
    def weight(self) -> float:
        """The weight now."""
        return self.start * math.exp(self.answer)

    def turn(self, miss: float) -> float:
        """The weight after a step at which the size was off by `miss`, a natural logarithm."""
        miss = max(-WIDEST, min(WIDEST, miss))
        self.sum = max(-MOST, min(MOST, self.sum + self.gain * miss / self.integral))
        self.answer = max(-MOST, min(MOST, self.gain * miss + self.sum))
        return self.weight
