"""Files from an address onto disk, whole or in part, resumed from what is there."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from types import NoneType
from typing import BinaryIO, Final

from tqcodec.common import streams, urls
from tqcodec.common.atomic import check_writable
from tqcodec.common.checks import PathLike, need, need_function, path_of
from tqcodec.common.progress import Progress
from tqcodec.errors import DecodeError, MalformedError
from tqcodec.format.container import EVERYTHING, Container
from tqcodec.format.entries import Segment
from tqcodec.format.header import read_header
from tqcodec.format.registry import HEADER_SIZE
from tqcodec.reading import selection
from tqcodec.reading.remote.file import RemoteFile, first_chunks
from tqcodec.reading.remote.options import Remote
from tqcodec.reading.selection import Copy

try:
    import fcntl
except ImportError:  # no Unix
    fcntl = None  # type: ignore[assignment]

_BINARY: Final = getattr(os, "O_BINARY", 0)
PART: Final = ".part"  # suffix of a file that is not all there
TOGETHER: Final = 1 << 22  # bytes of a request, but for longer segments
BLOCK: Final = 1 << 20  # bytes read from disk at a time


def fetch(
    url: str,
    path: PathLike,
    *,
    only: str | Sequence[str] = (),
    remote: Remote | None = None,
    progress: Progress | None = None,
) -> None:
    """Copy a `.tqc` file from an address; a file that is left over from before is gone on with.

    Until all of it is right its bytes are in `path` with the suffix ``.part``. Whoever begins
    again, after whatever end, asks for what is missing there: which segments are right their
    checksums say, and of one that broke off only the rest is asked for. Two copies to one path at
    once are refused where the system has locks on files (`fcntl`).

    Args:
        url: of the file.
        path: of the copy; one that exists is replaced at the end.
        only: patterns of names, as in `fnmatch`: the copy has the tensors that match one. It is a
            file like any other; its provenance says ``part=K/N``, K of N tensors.
        remote: how the file is read; None for `Remote()`.
        progress: called with ("fetch", bytes done, of how many).

    Raises:
        DecodeError: the file is malformed, or some of its bytes are wrong each time.
        EncodeError: no tensor matches.
        OSError: it cannot be read, or has changed, or the copy cannot be written.
    """
    need("the address", url, str, "a string")
    need("remote", remote, (Remote, NoneType), "tqcodec.Remote")
    need_function("progress", progress)
    if not urls.is_url(url):
        raise OSError(errno.EINVAL, "is not an address such as https://HOST/FILE", url)
    if not isinstance(only, str):
        need("only", only, Iterable, "a pattern or some of them")
    patterns = [only] if isinstance(only, str) else list(only)
    for pattern in patterns:
        need("a pattern of only", pattern, str, "a string")
    path = path_of(path)
    check_writable(path)
    if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113 - paths as given
        reason = "is a device or a pipe, and a copy is a file: what has come is read again"
        raise OSError(errno.EINVAL, reason, path)
    options = remote if remote is not None else Remote()
    name = Path(path + PART)
    with streams.naming(path), _begun(name, path) as part:  # a full disk has no name of its own
        source = RemoteFile(url, options, None if patterns else _head(part, url, options))
        try:
            container = Container(source.fetch, source.length, EVERYTHING)
            if patterns:
                copy = selection.copy_of(container, source, patterns, partial(_read, part))
            else:
                segments = container.directory.segments()
                copy = Copy(source.fetch(0, container.start), [(s, s.offset) for s in segments])
            _complete(part, copy, source, progress)
        except DecodeError:
            source.check()
            raise
        finally:
            source.close()
        part.flush()
        os.fsync(part.fileno())
        if fcntl is not None:  # while it is locked: who waits for it must not write into the copy
            name.replace(os.path.realpath(path))
    if fcntl is None:  # such systems rename no open file
        name.replace(os.path.realpath(path))


@contextmanager
def _begun(name: Path, path: str) -> Iterator[BinaryIO]:
    """The file of what has come, opened for this copy alone; the lock ends with the process.

    Raises:
        OSError: another copy is being made to the same place, or it cannot be opened.
    """
    while True:
        if name.is_symlink() or (name.exists() and not name.is_file()):
            reason = "holds what has come, and is no regular file: move it away"
            raise OSError(errno.EEXIST, reason, str(name))
        with os.fdopen(os.open(name, os.O_RDWR | os.O_CREAT | _BINARY, 0o666), "r+b") as part:
            try:
                if fcntl is not None:
                    fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                reason = "is being fetched already: wait for that to end, or name another file"
                raise OSError(errno.EBUSY, reason, path) from error
            except OSError:  # some file systems have no locks
                pass
            # Whoever had the lock may have finished just now: then this is the copy, or nothing.
            if name.exists() and os.path.samestat(name.stat(), os.fstat(part.fileno())):
                yield part
                return


@dataclass
class _Missing:
    """A segment that is not, or not all, on disk.

    Attributes:
        segment: of the copy.
        source: its offset in the source.
        done: bytes at its start that seem to be there.
    """

    segment: Segment
    source: int
    done: int

    @property
    def left(self) -> int:
        """Bytes that are missing."""
        return self.segment.length - self.done


def _head(part: BinaryIO, url: str, options: Remote) -> bytes:
    """Header and directory as far as they are on disk, where they come first of all.

    Raises:
        DecodeError: the file does not begin as a `.tqc` file.
        OSError: it cannot be read.
    """
    header = _read(part, 0, HEADER_SIZE)
    try:
        stored = read_header(header).stored
    except DecodeError:
        part.truncate(0)
        with first_chunks(url, options) as chunks:
            for chunk in chunks:
                _write(part, part.seek(0, os.SEEK_END), chunk)
        stored = read_header(_read(part, 0, HEADER_SIZE)).stored
    return _read(part, 0, HEADER_SIZE + stored)


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _write(file: BinaryIO, offset: int, data: bytes) -> None:
    file.seek(offset)
    file.write(data)
    file.flush()  # all that has come outlives the process


def _complete(part: BinaryIO, copy: Copy, source: RemoteFile, progress: Progress | None) -> None:
    """Make a file on disk the copy.

    Raises:
        MalformedError: a segment is wrong each time.
        OSError: its bytes cannot be had, or not be written.
    """
    length = len(copy.head) + sum(segment.length for segment, _ in copy.segments)
    if _read(part, 0, len(copy.head)) != copy.head:
        part.truncate(0)
        _write(part, 0, copy.head)
    part.truncate(length)
    missing = []
    for segment, found in copy.segments:
        if isinstance(found, bytes):
            _write(part, segment.offset, found)
        elif not _is_right(part, segment):
            one = _Missing(segment, found, _done(part, segment))
            known = source.at_hand(one.source + one.done, one.left)
            _write(part, segment.offset + one.done, known)
            one.done += len(known)
            missing.append(one)
    have = length - sum(one.left for one in missing)
    if progress is not None:
        progress("fetch", have, length)
    for count in _download(part, missing, source):
        have += count
        if progress is not None:
            progress("fetch", have, length)
    wrong = [one for one in missing if not _is_right(part, one.segment)]
    for one in wrong:  # what seemed to be there was not
        one.done = 0
    for _ in _download(part, wrong, source):
        pass
    for one in wrong:
        if not _is_right(part, one.segment):
            raise MalformedError("segment.crc", "damaged segment", one.source)


def _blocks(part: BinaryIO, segment: Segment) -> Iterator[bytes]:
    end = segment.offset + segment.length
    for offset in range(segment.offset, end, BLOCK):
        yield _read(part, offset, min(BLOCK, end - offset))


def _is_right(part: BinaryIO, segment: Segment) -> bool:
    check = 0
    for block in _blocks(part, segment):
        check = zlib.crc32(block, check)
    return check == segment.crc


def _done(part: BinaryIO, segment: Segment) -> int:
    """Bytes at the start of a segment that seem to be on disk.

    The file has its length from the start, and what was not written reads as zeros: all behind the
    last byte that is not zero is taken as missing. Nothing is, where that is the last one: the
    segment is damaged, and all of it is wanted.
    """
    done = start = 0
    for block in _blocks(part, segment):
        kept = len(block.rstrip(b"\0"))
        done = start + kept if kept else done
        start += len(block)
    return done if done < segment.length else 0


def _download(part: BinaryIO, missing: Sequence[_Missing], source: RemoteFile) -> Iterator[int]:
    """Write what is missing to its place as it comes; gives how many bytes have been written."""
    came: SimpleQueue[int | BaseException | None] = SimpleQueue()
    lock = Lock()

    def bring(run: Sequence[_Missing]) -> None:
        at, shift = run[0].source + run[0].done, run[0].segment.offset - run[0].source
        try:
            for chunk in source.chunks(at, run[-1].source + run[-1].segment.length):
                with lock:
                    _write(part, at + shift, chunk)
                at += len(chunk)
                came.put(len(chunk))
            came.put(None)
        except BaseException as error:
            came.put(error)

    with ThreadPoolExecutor(source.options.connections) as pool:
        running = [pool.submit(bring, run) for run in _runs([m for m in missing if m.left])]
        left = len(running)
        try:
            while left:
                count = came.get()
                if isinstance(count, BaseException):
                    raise count
                if count is None:
                    left -= 1
                else:
                    yield count
        except BaseException:
            for future in running:
                future.cancel()
            source.close()
            raise


def _runs(missing: Sequence[_Missing]) -> list[list[_Missing]]:
    """Missing segments by requests: neighbours together, up to `TOGETHER` bytes.

    A segment is never cut, so that what is on disk of it is its start.
    """
    runs: list[list[_Missing]] = []
    size = 0
    for one in sorted(missing, key=lambda m: m.source):
        last = runs[-1][-1] if runs else None
        follows = last is not None and one.done == 0 and size < TOGETHER
        if last is not None and follows:
            follows = last.source + last.segment.length == one.source
            follows = follows and last.segment.offset + last.segment.length == one.segment.offset
        if follows:
            runs[-1].append(one)
            size += one.left
        else:
            runs.append([one])
            size = one.left
    return runs
