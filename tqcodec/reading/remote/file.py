"""Files with an address: the directory at once, other bytes when they are asked for."""

from __future__ import annotations

import itertools
import os
import threading
import zlib
from collections import OrderedDict, deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any, Final, Protocol

from tqcodec.common import foreign, urls
from tqcodec.common.arriving import Arriving
from tqcodec.format.header import read_header
from tqcodec.format.registry import HEADER_SIZE
from tqcodec.reading.remote.options import Remote

FIRST: Final = 1 << 16  # bytes of the first request: header and directory, of most files
MARGIN: Final = 0.2  # of the directory, asked for behind it: the tables are there
GAP: Final = 1 << 14  # bytes between two spans that are not worth a request more

Span = tuple[int, int]  # offset, length


class Transport(Protocol):
    """What reads from an address; `http.HTTPFile` describes the methods."""

    @property
    def length(self) -> int | None: ...
    @property
    def identity(self) -> Any: ...
    def chunks(self, start: int, end: int | None) -> Generator[bytes]: ...
    def check(self) -> None: ...
    def close(self) -> None: ...


def transport(url: str, options: Remote, identity: Any = None) -> Transport:
    """What reads from an address.

    Raises:
        OSError: the file cannot be read, or what reads it is not installed.
    """
    try:
        if url.lower().startswith(("http://", "https://")):
            from tqcodec.reading.remote.http import HTTPFile

            return HTTPFile(url, options, identity)
        from tqcodec.reading.remote.filesystem import SystemFile

        return SystemFile(url, options, identity)
    except ModuleNotFoundError as error:
        if error.name not in ("urllib3", "fsspec"):
            raise
        reason = "addresses need more packages: pip install 'tqcodec[remote]'"
        raise OSError(None, reason, urls.shown(url)) from error


@contextmanager
def arriving(url: str, options: Remote) -> Iterator[Arriving]:
    """All bytes of a file in their order, as they come: by one request, if nothing breaks off.

    Raises:
        OSError: they cannot be read.
    """
    source = transport(url, options)
    try:
        # Closed at once, or the server would send on to somebody who has left.
        with closing(source.chunks(0, None)) as coming:
            first = next(coming, b"")  # behind which the length is known
            yield Arriving(itertools.chain([first], coming), source.length)
    finally:
        source.close()


@contextmanager
def first_chunks(url: str, options: Remote) -> Iterator[Iterator[bytes]]:
    """The first 64 KiB of a file as they come.

    Raises:
        OSError: they cannot be read.
    """
    source = transport(url, options)
    try:
        yield source.chunks(0, FIRST)
    finally:
        source.close()


class _Part:
    """Bytes from an offset on, that are coming or have come.

    Attributes:
        users: how many need them now.
    """

    def __init__(self, span: Span, coming: Future[bytes]) -> None:
        self.offset, self.length = span
        self.users = 0
        self._coming = coming

    def data(self) -> bytes:
        """The bytes, waited for."""
        try:
            return self._coming.result()
        except CancelledError as error:
            raise ValueError("tqcodec: the file has been closed, open it again") from error

    def failed(self) -> bool:
        """True if they will not come."""
        future = self._coming
        return future.done() and (future.cancelled() or future.exception() is not None)

    def covers(self, span: Span) -> bool:
        return self.offset <= span[0] and sum(span) <= self.offset + self.length


class RemoteFile:
    """A `.tqc` file with an address; threads and forked processes may share it.

    Its first bytes, with the directory, are held for good; others as long as they are used, and
    then those used last, as many as `Remote.memory` allows.

    Args:
        url: its address.
        options: how it is read.
        head: header and directory, or the start of them, as they were read before; not asked for
            where the header is still the same.

    Attributes:
        length: its bytes, None where the server does not say it.

    Raises:
        DecodeError: it does not begin as a `.tqc` file.
        OSError: it cannot be read.
    """

    def __init__(self, url: str, options: Remote, head: bytes | None = None) -> None:
        self.url, self.options = url, options
        self._transport = transport(url, options)
        self._begin()
        try:
            self._head = self._first(head)
            self.length: int | None = self._transport.length
        except BaseException:
            self.close()
            raise

    def _first(self, known: bytes | None) -> bytes:
        """First bytes of the file, to the end of the directory at least."""
        found = self._read(0, FIRST if known is None else HEADER_SIZE)
        if known is not None and known.startswith(found):
            found = known
        header = read_header(found[:HEADER_SIZE])
        end = HEADER_SIZE + header.stored
        if end > len(found):
            found += self._read(len(found), int(end * (1 + MARGIN)))
        if known is not None and zlib.crc32(found[HEADER_SIZE:end]) != header.crc:
            return self._first(None)
        return found

    def _begin(self) -> None:
        """What processes do not share."""
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._parts: OrderedDict[int, _Part] = OrderedDict()  # those used last at the end
        self._threads = ThreadPoolExecutor(self.options.connections, "tqcodec-remote")

    def _in_this_process(self) -> None:
        if self._process != os.getpid():
            self._transport = transport(self.url, self.options, self._transport.identity)
            self._begin()

    def fetch(self, offset: int, length: int) -> bytes:
        """Bytes of the file; fewer at its end.

        Raises:
            OSError: they cannot be had.
        """
        known = len(self._head)
        if offset + length <= known:
            return self.at_hand(offset, length)
        if offset < known:
            return self._head[offset:] + self.fetch(known, offset + length - known)
        span = (offset, length)
        with self.holding([span]):
            with self._lock:
                part = next(p for p in self._parts.values() if p.covers(span))
            at = offset - part.offset
            return part.data()[at : at + length]

    def at_hand(self, offset: int, length: int) -> bytes:
        """Those bytes at the start of a span that the first ones of the file hold."""
        return self._head[offset : offset + length]

    @contextmanager
    def holding(self, spans: Iterable[Span]) -> Iterator[None]:
        """Spans are at hand while the caller works; those that are neighbours come together.

        Raises:
            OSError: they cannot be had.
        """
        for _ in self.in_turn([spans]):
            yield

    def in_turn(self, groups: Iterable[Iterable[Span]]) -> Iterator[None]:
        """For each group, its spans are at hand until the next is asked for; those come meanwhile.

        Raises:
            OSError: they cannot be had.
        """
        self._in_this_process()
        left = iter(groups)
        coming: deque[list[_Part]] = deque()
        group: list[_Part] = []
        try:
            while True:
                while not coming or self._size(coming) < self.options.memory // 2:
                    spans = next(left, None)
                    if spans is None:
                        break
                    coming.append(self._asked(spans))
                if not coming:
                    return
                group = coming.popleft()
                for part in group:
                    part.data()
                yield
                self._release(group)
                group = []
        finally:
            for parts in (group, *coming):
                self._release(parts)

    def chunks(self, start: int, end: int) -> Iterator[bytes]:
        """Bytes as they come, none of which is held; errors as of `fetch`."""
        return self._transport.chunks(start, end)

    def check(self) -> None:
        """Raise OSError if it is another file by now."""
        self._in_this_process()
        self._transport.check()

    def close(self) -> None:
        """Give up what is being read, and read no more."""
        if self._process == os.getpid():
            self._transport.close()
            self._threads.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def _size(groups: Iterable[Iterable[_Part]]) -> int:
        return sum({part.offset: part.length for g in groups for part in g}.values())

    def _asked(self, spans: Iterable[Span]) -> list[_Part]:
        """Parts that cover spans, those not at hand being asked for; each has a user more."""
        found: list[_Part] = []
        known = len(self._head)
        with self._lock:
            missing = []
            for offset, length in spans:
                if offset + length <= known:
                    continue
                start = max(offset, known)
                span = (start, offset + length - start)
                part = next((p for p in self._parts.values() if p.covers(span)), None)
                if part is None:
                    missing.append(span)
                elif part not in found:
                    found.append(part)
            for span in joined(missing):
                part = _Part(span, self._submit(*span))
                self._parts[span[0]] = part
                found.append(part)
            for part in found:
                part.users += 1
                self._parts.move_to_end(part.offset)
        return found

    def _submit(self, offset: int, length: int) -> Future[bytes]:
        try:
            return self._threads.submit(self._read, offset, offset + length)
        except RuntimeError as error:  # no thread can be started
            raise OSError(None, foreign.message(error), urls.shown(self.url)) from error

    def _release(self, parts: Iterable[_Part]) -> None:
        """Parts have a user less; what is used by none goes, the longest unused first."""
        with self._lock:
            for part in parts:
                part.users -= 1
            held = sum(part.length for part in self._parts.values())
            for part in list(self._parts.values()):
                if part.users == 0 and (held > self.options.memory or part.failed()):
                    del self._parts[part.offset]
                    held -= part.length

    def _read(self, start: int, end: int) -> bytes:
        return b"".join(self._transport.chunks(start, end))


def joined(spans: Iterable[Span]) -> list[Span]:
    """Spans in the order of their offsets, neighbours as one."""
    found: list[Span] = []
    for offset, length in sorted(spans):
        if found and offset - sum(found[-1]) <= GAP:
            first = found[-1][0]
            found[-1] = (first, max(sum(found[-1]), offset + length) - first)
        else:
            found.append((offset, length))
    return found
