"""The one door through which files are read: `TensorFile`."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, BinaryIO

from tqcodec.arrays import Array, numpy_dtype
from tqcodec.common import streams
from tqcodec.common.checks import PathLike, need_options, path_of
from tqcodec.format.container import Container
from tqcodec.format.header import Header

BYTES = (bytes, bytearray, memoryview)
_SEEKING = threading.Lock()  # only where a file cannot be read at a position


class TensorFile(Mapping[str, Array]):
    """Read-only mapping from names to arrays, each decoded when it is asked for.

    Threads and forked processes may share it: reads have positions of their own. It is pickled (and
    copied) as the path of the file, which is opened again there, or as the bytes that it was made
    of. Once it is closed, names and metadata are still there, tensors are not (ValueError).

    Attributes:
        container: the file as the format layer sees it.
    """

    def __init__(self, source: bytes | PathLike, limit: int | None = None) -> None:
        need_options(limit, 1, None)
        self._limit = limit
        self._closed = False
        self._path: str | None = None
        self._file: BinaryIO | None = None
        self._data = memoryview(b"")
        if isinstance(source, BYTES):
            self._data = memoryview(source).cast("B")
        else:
            source = path_of(source)
            with streams.naming(source):
                file = open(source, "rb", buffering=0)  # noqa: PTH123, SIM115
                if streams.is_file(file):
                    # Opened again by another process, perhaps one in another folder.
                    self._path, self._file = os.path.abspath(source), file  # noqa: PTH100
                else:
                    with file:
                        self._data = memoryview(file.read())
        try:
            self.container = Container(self._fetch, self._size(), limit)
        except BaseException:
            self.close()
            raise

    def _size(self) -> int:
        return len(self._data) if self._file is None else os.fstat(self._file.fileno()).st_size

    def _fetch(self, offset: int, length: int) -> bytes:
        self._check_open()
        if self._file is None:
            return bytes(self._data[offset : offset + length])
        data = _read_at(self._file, offset, length)
        self._check_open()  # else the bytes may be those of a file opened meanwhile
        return data

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"tqcodec: {self._path or 'the file'} is closed, open it again")

    def metadata(self) -> dict[str, str]:
        """The file's free strings."""
        return dict(self.container.directory.metadata)

    def __getitem__(self, name: str) -> Array:
        entry = self.container.directory.entries[self.container.index[name]]
        self._check_open()
        return self.container.decode(entry).view(numpy_dtype(entry.dtype))

    def __contains__(self, name: object) -> bool:
        return name in self.container.index

    def __iter__(self) -> Iterator[str]:
        return iter(self.container.index)

    def __len__(self) -> int:
        return len(self.container.index)

    def __reduce__(self) -> tuple[Any, ...]:
        self._check_open()
        if self._path is None:
            return TensorFile, (bytes(self._data), self._limit)
        return _reopened, (self._path, self._limit, self.container.header)

    def close(self) -> None:
        """Close the file; arrays already decoded stay."""
        self._closed = True
        self._data = memoryview(b"")
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _read_at(file: BinaryIO, offset: int, length: int) -> bytes:
    """Bytes of a file, fewer at its end; no position is shared with other readers of it."""
    if not hasattr(os, "pread"):  # where there is none, processes cannot share an open file either
        with _SEEKING:
            file.seek(offset)
            return _all(file.read, length)
    descriptor, done = file.fileno(), 0

    def more(wanted: int) -> bytes:
        nonlocal done
        part = os.pread(descriptor, wanted, offset + done)
        done += len(part)
        return part

    return _all(more, min(length, max(0, os.fstat(descriptor).st_size - offset)))


def _all(read: Callable[[int], bytes], length: int) -> bytes:
    """As many bytes, where each call may give fewer; fewer only at the end of the file."""
    parts: list[bytes] = []
    while length and (part := read(length)):
        parts.append(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _reopened(path: str, limit: int | None, header: Header) -> TensorFile:
    """An opened file in another process.

    Raises:
        OSError: it is gone, or another file than the one that was opened.
    """
    file = TensorFile(path, limit)
    if file.container.header != header:
        file.close()
        raise OSError(errno.ESTALE, "has been replaced since it was opened", path)
    return file
