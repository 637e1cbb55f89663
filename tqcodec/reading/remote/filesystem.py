"""Files of the file systems of fsspec: `s3://`, `hf://`, `memory://` and many others."""

from __future__ import annotations

import errno
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final

import fsspec

from tqcodec.common import foreign, urls
from tqcodec.reading.remote.attempts import PassingError, insist
from tqcodec.reading.remote.options import Remote

CHUNK: Final = 1 << 22  # bytes of a request where the file's end is not near
# What file systems call the tag of a file's content, or the time of its last change.
_TAGS: Final = ("ETag", "etag", "blob_id", "LastModified", "last_modified", "mtime", "created")

Identity = tuple[int, str]


class SystemFile:
    """A file of one of fsspec's file systems; arguments and methods as of `http.HTTPFile`.

    Whether it has changed is asked for by `check` alone: answers do not say it.
    """

    def __init__(self, url: str, options: Remote, identity: Identity | None = None) -> None:
        self._name, self._options = urls.shown(url), options
        self._closed = threading.Event()
        with self._naming():
            storage = {**options.storage, "skip_instance_cache": True}
            self._system, self._path = fsspec.core.url_to_fs(url, **storage)
            found = self._found()
        self.identity = identity if identity is not None else found
        self._compare(found)

    @property
    def length(self) -> int:
        """Bytes of the file."""
        return self.identity[0]

    def chunks(self, start: int, end: int | None) -> Generator[bytes]:
        """As of `HTTPFile`."""
        last = self.length if end is None else min(end, self.length)

        def ask(at: int) -> Iterator[bytes]:
            while at < last:
                part = self._read(at, min(at + CHUNK, last))
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

    def _read(self, start: int, end: int) -> bytes:
        try:
            with self._naming():
                data = bytes(self._system.cat_file(self._path, start=start, end=end))
        except (ConnectionError, TimeoutError) as error:
            raise PassingError(foreign.message(error)) from error
        except OSError:  # perhaps as it is a shorter file by now
            self.check()
            raise
        if len(data) != end - start:
            self.check()
            raise PassingError(f"{len(data)} bytes in place of {end - start}")
        return data

    def _found(self) -> Identity:
        about: dict[str, Any] = self._system.info(self._path)
        if about.get("type") == "directory":
            raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", self._name)
        tags = (about.get(key) for key in _TAGS)
        return int(about["size"]), str(next((tag for tag in tags if tag), ""))

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
            if number == errno.ENOENT:
                reason = "no such file"
            raise OSError(number, reason, self._name) from error
