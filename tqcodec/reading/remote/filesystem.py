"""Files of the file systems of fsspec: `s3://`, `hf://`, `memory://` and many others."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Final

import fsspec
from fsspec.spec import AbstractFileSystem

from tqcodec.common import foreign, urls
from tqcodec.reading.remote.attempts import PassingError, insist
from tqcodec.reading.remote.options import Remote

CHUNK: Final = 1 << 22  # bytes of a request where the file's end is not near
# What file systems call the tag of a file's content, or the time of its last change.
_TAGS: Final = ("ETag", "etag", "blob_id", "LastModified", "last_modified", "mtime", "created")
# What is raised by file systems that can only read a file from its start.
_NO_RANGES: Final = (NotImplementedError, TypeError, ValueError)

Identity = tuple[int | None, str]


class SystemFile:
    """A file of one of fsspec's file systems; arguments and methods as of `http.HTTPFile`.

    Whether it has changed is asked for by `check` alone: answers do not say it. A file system that
    does not know the length of a file, or cannot begin in its midst, has it copied once, into a
    temporary file.
    """

    def __init__(self, url: str, options: Remote, identity: Identity | None = None) -> None:
        self._name, self._options = urls.shown(url), options
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._copy: BinaryIO | None = None
        with self._naming():
            storage = {**options.storage, "skip_instance_cache": True}
            self._system, self._path = fsspec.core.url_to_fs(url, **storage)
            found = self._found()
        self.identity = identity if identity is not None else found
        self._compare(found)
        size = self.identity[0]
        self.length = size if size is not None else self._copied()

    def chunks(self, start: int, end: int | None) -> Generator[bytes]:
        """As of `HTTPFile`."""
        last = self.length if end is None else min(end, self.length)

        def ask(at: int) -> Iterator[bytes]:
            while at < last:
                stop = min(at + CHUNK, last)
                part = self._read(at, stop) if self._copy is None else None
                if part is None:
                    part = self._of_copy(at, stop)
                if not part:
                    self.check()
                    raise PassingError(f"no bytes in place of {stop - at}")
                at += len(part)
                yield part

        return insist(ask, start, self._name, self._options, self._closed)

    def check(self) -> None:
        """Raise OSError if it is another file by now."""
        with self._naming():
            self._system.invalidate_cache()
            found = self._found()
        self._compare(found)

    def close(self) -> None:
        """Ask for nothing more."""
        self._closed.set()
        with self._lock:
            if self._copy is not None:
                self._copy.close()

    def _read(self, start: int, end: int) -> bytes | None:
        """Bytes of the file, perhaps fewer; None where the file system knows no ranges."""
        try:
            with self._naming():
                data = bytes(self._part(start, end))
        except (ConnectionError, TimeoutError) as error:
            raise PassingError(foreign.message(error)) from error
        except OSError as error:  # perhaps as it is a shorter file by now
            self.check()
            if not isinstance(error.__cause__, _NO_RANGES):
                raise
            data = None
        if data is None or len(data) > end - start:
            self._copied()
            return None
        return data

    def _part(self, start: int, end: int) -> Any:
        if type(self._system).cat_file is not AbstractFileSystem.cat_file:
            return self._system.cat_file(self._path, start=start, end=end)
        # The common way would read some MiB ahead, which nobody has asked for.
        with self._system.open(self._path, "rb", cache_type="none") as file:
            file.seek(start)
            return file.read(end - start)

    def _copied(self) -> int:
        """Copy the file, if that has not been done; gives its length."""
        with self._lock:
            if self._copy is None and not self._closed.is_set():
                copy = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
                with self._naming(), self._system.open(self._path, "rb") as source:
                    shutil.copyfileobj(source, copy, CHUNK)
                self._copy = copy
            return 0 if self._copy is None else self._copy.seek(0, os.SEEK_END)

    def _of_copy(self, start: int, end: int) -> bytes:
        with self._lock:
            if self._copy is None or self._copy.closed:
                raise PassingError("closed")
            self._copy.seek(start)
            return self._copy.read(end - start)

    def _found(self) -> Identity:
        try:
            about: dict[str, Any] = self._system.info(self._path)
        except NotImplementedError:
            about = {}
        if about.get("type") == "directory":
            raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", self._name)
        tags = (about.get(key) for key in _TAGS)
        size = about.get("size")
        return None if size is None else int(size), str(next((tag for tag in tags if tag), ""))

    def _compare(self, found: Identity) -> None:
        if found != self.identity:
            raise OSError(errno.ESTALE, "has changed since it was opened", self._name)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Errors of file systems, which may be any, become such of the system with the address."""
        try:
            yield
        except Exception as error:
            number = errno.EIO
            if isinstance(error, OSError) and error.errno is not None:
                number = error.errno
            elif isinstance(error, FileNotFoundError):
                number = errno.ENOENT
            elif isinstance(error, PermissionError):
                number = errno.EACCES
            elif isinstance(error, (ConnectionError, TimeoutError)):
                raise
            reason = getattr(error, "strerror", None) or foreign.described(error)
            if isinstance(error, ImportError) and error.__cause__ is not None:
                reason += f" ({foreign.message(error.__cause__)})"
            if number == errno.ENOENT:
                reason = "no such file"
            raise OSError(number, reason, self._name) from error
