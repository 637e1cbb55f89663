"""Rate controller: steers the weight of the bits so that the file comes to its size."""

from __future__ import annotations

import math
from dataclasses import dataclass

WIDEST = 0.3  # natural logarithm of a miss of the size that counts
MOST = 5.0  # natural logarithm of an answer


@dataclass
class RateController:
    """A proportional and integral controller in logarithms.

    Before any answer the weight is a multiple of what the loss still is above its least: a bit
    for all weights changes a distance by about this much, as errors go with 2^-2R (the derivative
    is 2 ln 2). The size answers slowly, since the optimizer divides the pull of the bits by the
    noise of the gradients. So the integral is slow, too.

    Attributes:
        pull: the multiple.
        gain: powers of the size over its target that are answered at once.
        integral: steps after which a miss has been answered twice as much.
        sum: the integral, as a logarithm.
        weight: of the last step.
    """

    pull: float
    gain: float
    integral: float
    sum: float = 0.0
    weight: float = 0.0

    def update(self, excess: float, miss: float) -> float:
        """The weight for a step.

        Args:
            excess: what the loss is above its least, smoothed.
            miss: natural logarithm of the size over its target.
        """
        miss = max(-WIDEST, min(WIDEST, miss))
        self.sum = max(-MOST, min(MOST, self.sum + self.gain * miss / self.integral))
        answer = max(-MOST, min(MOST, self.gain * miss + self.sum))
        self.weight = self.pull * excess * math.exp(answer)
        return self.weight
