"""Bytes that come in one after the other, of which only a part is held."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from tqcodec.common.checks import need

BYTES: Final = (bytes, bytearray, memoryview)
PIECE: Final = 1 << 20  # bytes asked for at a time


class Arriving:
    """A window on bytes that can be read once, addressed by their offset from the start.

    Args:
        source: an object with a method `read` (a file, a pipe, a response), or an iterable of
            bytes. It is asked for what is needed and no more, and stays open.
        length: of all bytes, where it is known.
    """

    def __init__(self, source: Any, length: int | None = None) -> None:
        self.length = length
        self._more = _of_file(source.read) if hasattr(source, "read") else _of_chunks(source)
        self._kept = b""
        self._held = bytearray()
        self._start = 0

    def hold(self, start: int, end: int) -> int:
        """Move the window, forwards: what lies before it is let go, what lacks is read.

        Returns:
            bytes in the window, fewer than it is long where the source ends.

        Raises:
            TypeError: the source gives something else than bytes.
            OSError: of the source.
        """
        self._let_go(start)
        while (missing := end - self._start - len(self._held)) > 0:
            part = self._more(min(missing, PIECE))
            if not part:
                break
            self._held += part
            self._let_go(start)
        return len(self._held) if self._start == start else 0

    def _let_go(self, start: int) -> None:
        gone = min(start - self._start, len(self._held))
        del self._held[:gone]
        self._start += gone

    def keep(self) -> None:
        """Hold what is in the window, at the start of the source, for good."""
        self._kept = bytes(self._held)

    def fetch(self, offset: int, length: int) -> bytes:
        """Bytes of the window or of what is kept; fewer where it ends."""
        if offset < len(self._kept):
            return self._kept[offset : offset + length]
        at = offset - self._start
        return bytes(self._held[at : at + length]) if at >= 0 else b""


def _of_file(read: Callable[[int], Any]) -> Callable[[int], Any]:
    def more(wanted: int) -> Any:
        part = read(wanted)
        need("what the source gives", part, BYTES, "bytes")
        return part

    return more


def _of_chunks(chunks: Iterable[Any]) -> Callable[[int], Any]:
    coming: Iterator[Any] = iter(chunks)
    left = memoryview(b"")

    def more(wanted: int) -> memoryview:
        nonlocal left
        while not left:
            chunk = next(coming, None)
            if chunk is None:
                break
            need("what the source gives", chunk, BYTES, "bytes")
            left = memoryview(chunk).cast("B")
        part, left = left[:wanted], left[wanted:]
        return part

    return more
