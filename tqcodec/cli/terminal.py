"""Progress on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tqcodec.common.progress import Progress

if TYPE_CHECKING:
    from tqcodec.torch import TrainingMoment


@contextmanager
def terminal_progress(quiet: bool = False, of_bytes: bool = False) -> Iterator[Progress | None]:
    """A callback that draws a bar for each stage; None if `quiet`, or without a terminal.

    What is counted are bytes if `of_bytes`; those that are there at the start say nothing of speed.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    bar, shown = tqdm(disable=True), ""

    def show(stage: str, done: int, of: int) -> None:
        nonlocal bar, shown
        if stage != shown or done <= bar.n:
            bar.close()
            shown = stage
            bytes_ = {"unit": "B", "unit_scale": True, "initial": done} if of_bytes else {}
            bar = tqdm(total=of, desc=stage, leave=False, file=sys.stderr, **bytes_)
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        bar.close()


@contextmanager
def training_progress(shown: bool) -> Iterator[Callable[[TrainingMoment], None]]:
    """A callback that draws a bar with loss, bits per weight and size; nothing if not `shown`."""
    if not shown:
        yield lambda _: None
        return
    from tqdm import tqdm

    bar = tqdm(desc="retrain", leave=False, file=sys.stderr)

    def show(moment: TrainingMoment) -> None:
        bar.total = moment.steps
        about = f"loss {moment.loss:.4f}, {moment.bits:.3f} bits, {moment.size:.0f} bytes"
        bar.set_postfix_str(about, refresh=False)
        bar.update(moment.step - bar.n)

    try:
        yield show
    finally:
        bar.close()
