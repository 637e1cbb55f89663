"""Progress on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqcodec.common.progress import Progress


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
