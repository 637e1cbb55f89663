"""Step search: the step at which something hits a target, whatever it is that is tried.

The search names a step, is told by how much what came of it missed, and names the next one:

    search = StepSearch(start, tolerance, tries)
    while search.is_open:
        found = attempt(search.step)
        if search.tell(octaves_off(found)):
            best = found
"""

from __future__ import annotations

import math

EXTREME = 64.0  # log2 of the finest and the coarsest step
SLOPES = (0.15, 3.0)  # octaves of the target for one of the step: 1 at high rate
NARROWEST = 0.003  # octaves between two steps with nothing between them: sizes may jump


class StepSearch:
    """Steps that close in on a target: regula falsi, with the high-rate slope to begin with.

    Args:
        start: first step.
        tolerance: largest distance that will do.
        tries: most steps that are tried.
        narrowest: octaves between two steps on either side of the target at which it ends.
        coarsest: largest step.

    Attributes:
        step: to be tried next.
        best_step: the one that came closest, of those tried.
    """

    def __init__(
        self,
        start: float,
        tolerance: float,
        tries: int,
        narrowest: float = 0.0,
        coarsest: float = math.inf,
    ) -> None:
        self.step = self.best_step = start
        self._least = math.inf
        self._tolerance, self._tries = tolerance, tries
        self._narrowest, self._coarsest = narrowest, coarsest
        self._tried: list[tuple[float, float]] = []  # log2 of the step, octaves

    def tell(self, octaves: float, distance: float | None = None) -> bool:
        """By how much the step was too coarse; True where it is the best one so far.

        Args:
            octaves: negative where it was too fine.
            distance: from the target, where it is not the magnitude of `octaves`.
        """
        distance = abs(octaves) if distance is None else distance
        best = distance < self._least
        if best:
            self._least, self.best_step = distance, self.step
        self._tried.append((math.log2(self.step), octaves))
        self.step = min(self._next(), self._coarsest)
        return best

    @property
    def is_open(self) -> bool:
        """False once a step is close enough, or no better one is to be expected."""
        return not self._is_done and len(self._tried) < self._tries

    @property
    def is_spent(self) -> bool:
        """True where it is not open for the number of tries alone."""
        return not self._is_done and len(self._tried) >= self._tries

    def reopen(self, step: float, tries: int) -> None:
        """Go on with a step of the caller's choice, for so many tries more."""
        self.step, self._tries = step, len(self._tried) + tries

    def _next(self) -> float:
        """A better step than the last one."""
        x, octaves = self._tried[-1]
        if (ends := self._ends()) is not None:
            (x0, y0), (x1, y1) = ends
            # Not closer to either end than a tenth: a bent curve must not stall the search.
            part = min(max(-y0 / (y1 - y0), 0.1), 0.9)
            return float(2.0 ** (x0 + (x1 - x0) * part))
        slope = 1.0
        if len(self._tried) > 1:
            (x0, y0), (x1, y1) = self._tried[-2:]
            if x0 != x1:
                slope = min(max((y1 - y0) / (x1 - x0), SLOPES[0]), SLOPES[1])
        return float(2.0 ** min(max(x - octaves / slope, -EXTREME), EXTREME))

    @property
    def _is_done(self) -> bool:
        """True for a step that is close enough, or a target between two that are nearly alike."""
        ends = self._ends()
        narrow = ends is not None and ends[1][0] - ends[0][0] < self._narrowest
        return narrow or self._least <= self._tolerance

    def _ends(self) -> tuple[tuple[float, float], tuple[float, float]] | None:
        """The nearest tries on either side of the target, where there are some."""
        below = [point for point in self._tried if point[1] <= 0]
        above = [point for point in self._tried if point[1] > 0]
        if below and above and max(below)[0] < min(above)[0]:
            return max(below), min(above)
        return None
