"""Reading on after what may pass. Standard library only, besides the layers below."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Final

from tqcodec.reading.remote.options import Remote

FIRST_WAIT: Final = 0.5  # seconds; doubled after each attempt
LONGEST_WAIT: Final = 60.0  # also where the server wishes for a longer one
PROGRESS: Final = 1 << 16  # bytes after which attempts are counted anew


class PassingError(Exception):
    """What another attempt may do away with.

    Attributes:
        wait: seconds that the server wishes for, or None.
    """

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


def insist(
    ask: Callable[[int], Iterator[bytes]],
    start: int,
    name: str,
    options: Remote,
    closed: threading.Event,
) -> Generator[bytes]:
    """Bytes from a position on; what fails in passing is asked for again, from where it broke off.

    Args:
        ask: gives bytes from a position on, empty ones too.
        start: the first position.
        name: of the file, for messages.
        options: how many attempts.
        closed: set by who wants no more bytes.

    Raises:
        OSError: too many attempts failed, or what `ask` raises.
    """
    failed, since = 0, 0
    while True:
        try:
            for part in ask(start):
                start += len(part)
                since += len(part)
                if part:
                    yield part
            return
        except PassingError as error:
            if closed.is_set():
                raise ValueError(f"tqcodec: {name} has been closed, open it again") from error
            failed = 1 if since >= PROGRESS else failed + 1
            since = 0
            if failed >= options.attempts:
                tries = f"after {failed} attempts" if failed > 1 else "at the only attempt"
                raise OSError(errno.EIO, f"{error}, {tries}", name) from error
            wait = error.wait if error.wait is not None else FIRST_WAIT * 2 ** (failed - 1)
            closed.wait(min(wait, LONGEST_WAIT))
