"""Progress on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]  # (stage, done, of)


@contextmanager
def terminal_progress(quiet: bool = False) -> Iterator[Progress | None]:
    """A callback that draws a bar for each stage; None if `quiet`, or without a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    bar = tqdm(disable=True)

    def show(stage: str, done: int, of: int) -> None:
        nonlocal bar
        if bar.disable or bar.desc != f"{stage}: " or done <= bar.n:
            bar.close()
            bar = tqdm(total=of, desc=stage, leave=False, file=sys.stderr)
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        bar.close()
