"""Progress on a terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tqcodec.cli.messages import complain
from tqcodec.common.progress import Progress

if TYPE_CHECKING:
    from tqcodec.torch import TrainingMoment


class Bar:
    """One bar on a terminal, which each stage begins anew.

    Args:
        of_bytes: what is counted are bytes; those that are there at the start say nothing of speed.
    """

    def __init__(self, of_bytes: bool = False) -> None:
        from tqdm import tqdm

        self._make, self._of_bytes = tqdm, of_bytes
        self._bar, self._stage = tqdm(disable=True), ""

    def show(self, stage: str, done: int, of: int, about: str = "") -> None:
        """Show a stage, as `Progress`, with a text behind it."""
        if stage != self._stage or done <= self._bar.n:
            self._bar.close()
            self._stage = stage
            more = {"unit": "B", "unit_scale": True, "initial": done} if self._of_bytes else {}
            self._bar = self._make(total=of, desc=stage, leave=False, file=sys.stderr, **more)
        if about:
            self._bar.set_postfix_str(about, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Take the bar off the terminal."""
        self._bar.close()


@contextmanager
def terminal_progress(quiet: bool = False, of_bytes: bool = False) -> Iterator[Progress | None]:
    """A callback that draws a bar for each stage; None if `quiet`, or without a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    bar = Bar(of_bytes)
    try:
        yield bar.show
    finally:
        bar.close()


class TrainingProgress:
    """What a training shows: a bar on a terminal, elsewhere a line after each epoch.

    Args:
        epochs: of the training.
        bar: draws stages; None without a terminal.
    """

    def __init__(self, epochs: int, bar: Bar | None) -> None:
        self._epochs, self._bar = epochs, bar
        self._told = 0  # epochs
        self._is_begun = False
        self._moment: TrainingMoment | None = None

    def watch(self, moment: TrainingMoment) -> None:
        """Take a moment; it is shown when its step is counted, as none is of an earlier run."""
        self._moment = moment

    def show(self, stage: str, done: int, of: int) -> None:
        """Show a stage of the work, as `Progress`."""
        moment = self._moment if stage == "retrain" else None
        if moment is None:
            if self._bar is not None:
                self._bar.show(stage, done, of)
            return
        if not self._is_begun and done > 1:
            complain(f"goes on at step {done} of {of}, in epoch {math.ceil(moment.epoch)}")
        self._is_begun = True
        about = f"loss {moment.loss:.4f}, {moment.bits:.3f} bits, {moment.size:.0f} bytes"
        if self._bar is not None:
            self._bar.show(stage, done, of, about)
        elif int(moment.epoch) > self._told:
            self._told = int(moment.epoch)
            minutes, seconds = moment.seconds / 60, moment.seconds
            left = f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"
            complain(f"epoch {self._told} of {self._epochs}: {about}, {left} left")


@contextmanager
def training_progress(epochs: int) -> Iterator[TrainingProgress]:
    """What a training shows on standard error."""
    bar = Bar() if sys.stderr.isatty() else None
    try:
        yield TrainingProgress(epochs, bar)
    finally:
        if bar is not None:
            bar.close()
