"""Files behind `http://` and `https://`, by ranges.

fsspec's own file system for these addresses shows neither the tag of an answer nor its range, by
which a file that has changed and a server without ranges are told. So requests are made here, by
urllib3.
"""

from __future__ import annotations

import errno
import re
import ssl
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPException, IncompleteRead, RemoteDisconnected
from typing import Final, NoReturn
from urllib.parse import unquote, urlsplit, urlunsplit

import urllib3

from tqcodec.common import foreign, urls
from tqcodec.reading.remote.attempts import PassingError, insist
from tqcodec.reading.remote.options import Remote

CHUNK: Final = 1 << 16  # bytes read at a time
REDIRECTS: Final = 10
_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII | re.IGNORECASE)
_LENGTH: Final = re.compile(r"bytes \*/(\d{1,19})", re.ASCII | re.IGNORECASE)
# Some stores say "aws-chunked" of files that came to them so; they send them as they are.
_PLAIN: Final = ("", "identity", "aws-chunked")
_ERRORS: Final = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 410: errno.ENOENT}


@dataclass(frozen=True)
class Identity:
    """What must not change while a file is read.

    Attributes:
        length: in bytes, None where the server does not say it.
        tag: ETag, without the mark of a weak one, which content networks put on and take off.
        date: the time of the last change.
    """

    length: int | None
    tag: str | None
    date: str | None

    def fits(self, other: Identity) -> bool:
        """Whether answers may be of the same file, by what both of them say."""
        pairs = [(self.length, other.length), (self.tag, other.tag)]
        if None in pairs[1]:
            pairs.append((self.date, other.date))
        return all(a == b for a, b in pairs if a is not None and b is not None)


class HTTPFile:
    """A file behind a URL; threads may share it, processes may not.

    A server that knows no ranges sends the file once; its bytes are kept in a temporary file, as
    far as they are asked for.

    Args:
        url: of the file.
        options: how it is read.
        identity: that of the file opened before, None to take the first that comes.
    """

    def __init__(self, url: str, options: Remote, identity: Identity | None = None) -> None:
        self._name, self._options = urls.shown(url), options
        try:
            self._url, self._headers = _with_headers(url, options)
            self._pool = _pool(self._url, options)
        except ValueError as error:
            self._fail(foreign.message(error), errno.EINVAL)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._reading: set[urllib3.BaseHTTPResponse] = set()
        self._spool: _Spool | None = None
        self.identity = identity

    @property
    def length(self) -> int | None:
        """Bytes of the file, once something has been read; None where the server did not say."""
        return None if self.identity is None else self.identity.length

    def chunks(self, start: int, end: int | None) -> Generator[bytes]:
        """Bytes from `start` to `end`, or all that follow, as they come; fewer at the file's end.

        Raises:
            OSError: they cannot be had; FileNotFoundError, PermissionError among others.
        """
        return insist(lambda at: self._ask(at, end), start, self._name, self._options, self._closed)

    def check(self) -> None:
        """Raise OSError if it is another file by now."""
        for _ in self.chunks(0, 1):
            pass

    def close(self) -> None:
        """Give up what is being read."""
        self._closed.set()
        with self._lock:
            for response in self._reading:
                with suppress(Exception):  # it may end by itself just now
                    response.shutdown()
        self._pool.clear()
        if self._spool is not None:
            self._spool.close()

    def _ask(self, start: int, end: int | None) -> Iterator[bytes]:
        while True:
            if self._spool is not None:
                yield from self._spool.chunks(start, end)
                return
            last = self.length if end is None else _least(end, self.length)
            if last is not None and start >= last:
                return
            for part in self._range(start, last):
                start += len(part)
                yield part

    def _range(self, start: int, end: int | None) -> Iterator[bytes]:
        """Bytes of one answer, which may be fewer; none where the whole file comes instead."""
        wanted = f"bytes={start}-{'' if end is None else end - 1}"
        response = self._request({"Range": wanted})
        if response.status == 200:
            with self._lock:
                if self._spool is None:
                    self._spool = _Spool(self, response)
                else:  # another thread was told so as well
                    response.close()
            return
        with closing(response):
            said = response.headers.get("Content-Range", "")
            if response.status == 416:  # it ends before `start`
                of = _LENGTH.fullmatch(said)
                if start == 0 and (of is None or int(of[1])):
                    self._fail("the server answers 416: it refuses the first bytes of the file")
                self._pin(start if of is None else int(of[1]), response)
                return
            found = _RANGE.fullmatch(said)
            if found is None:
                self._fail("the server does not say which bytes it sends (Content-Range)")
            first, last = int(found[1]), int(found[2])
            length = None if found[3] == "*" else int(found[3])
            self._pin(length, response)
            size = last + 1 - first
            beyond = length is not None and last >= length
            if first != start or size < 1 or beyond or _size(response) not in (None, size):
                raise PassingError("the server sends other bytes than those asked for")
            yield from self._body(response, size if end is None else min(size, end - start))

    def _request(self, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        """The answer to a request, its body not yet read.

        Raises:
            OSError: there is none, and there will be none.
            PassingError: there is none now.
        """
        try:
            response = self._pool.request(
                "GET",
                self._url,
                headers={**self._headers, **headers},
                preload_content=False,
                enforce_content_length=False,  # `_body` does
            )
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            # ValueError: of addresses to which the server leads.
            if _is_final(error):
                raise OSError(errno.EIO, _reason(error), self._name) from error
            raise PassingError(_reason(error)) from error
        status = response.status
        good = status in (200, 206, 416)
        if good and response.headers.get("Content-Encoding", "").strip().lower() in _PLAIN:
            if status == 200:
                self._pin(_size(response), response)
            return response
        wait = response.headers.get("Retry-After", "")
        response.close()
        said = f"the server answers {status} {response.reason or ''}".rstrip()
        if status in (408, 429) or status >= 500:
            raise PassingError(said, float(wait) if wait.isdecimal() else None)
        if good:
            said = "the server compresses the file, which takes its ranges away"
        raise OSError(_ERRORS.get(status, errno.EIO), said, self._name)

    def _pin(self, length: int | None, response: urllib3.BaseHTTPResponse) -> None:
        tag = response.headers.get("ETag", "").removeprefix("W/") or None
        found = Identity(length, tag, response.headers.get("Last-Modified"))
        with self._lock:
            known = self.identity
            if known is None:
                self.identity = found
            elif known.length is None:
                self.identity = replace(known, length=length)
        if known is not None and not known.fits(found):
            response.close()
            self._fail("has changed since it was opened", errno.ESTALE)

    def _body(self, response: urllib3.BaseHTTPResponse, size: int | None) -> Iterator[bytes]:
        """Bytes of an answer; all of it where no size is given.

        Raises:
            PassingError: they are fewer.
        """
        with self._lock:
            self._reading.add(response)
        try:
            left = size
            while left is None or left > 0:
                most = CHUNK if left is None else min(CHUNK, left)
                part = response.read1(most, decode_content=False)
                if not part:
                    break
                left = None if left is None else left - len(part)
                yield part
            if left:
                raise PassingError(f"the answer ends {left} bytes early")
            if left == 0 and _size(response) == size:
                response.drain_conn()  # so that the connection can be used again
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            # ValueError: what http.client and urllib3 make of lines that are none.
            raise PassingError(_reason(error)) from error
        finally:
            with self._lock:
                self._reading.discard(response)

    def _fail(self, reason: str, number: int = errno.EIO) -> NoReturn:
        raise OSError(number, reason, self._name)


class _Spool:
    """The bytes of a server that sends the whole file only, as far as they have come."""

    def __init__(self, file: HTTPFile, response: urllib3.BaseHTTPResponse) -> None:
        self._lock = threading.Lock()
        self._kept = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        self._size = 0
        self._file = file
        self._first: urllib3.BaseHTTPResponse | None = response
        self._coming: Iterator[bytes] | None = None

    def chunks(self, start: int, end: int | None) -> Iterator[bytes]:
        while end is None or start < end:
            wanted = start + CHUNK if end is None else min(start + CHUNK, end)
            with self._lock:
                self._until(wanted)
                self._kept.seek(start)
                part = self._kept.read(wanted - start)
            if not part:
                return
            start += len(part)
            yield part

    def close(self) -> None:
        with self._lock:
            if isinstance(self._coming, Generator):
                self._coming.close()
            if self._first is not None:
                self._first.close()
            self._kept.close()

    def _until(self, end: int) -> None:
        file = self._file
        while self._size < end:
            if self._coming is None:
                options, closed = file._options, file._closed
                self._coming = insist(self._ask, self._size, file._name, options, closed)
            try:
                part = next(self._coming, b"")
            except BaseException:  # after which nothing comes of it: who asks again begins anew
                self._coming = None
                raise
            if not part:
                return
            self._kept.seek(self._size)
            self._kept.write(part)
            self._size += len(part)

    def _ask(self, start: int) -> Iterator[bytes]:
        """The file from a position on: it is sent from its start again."""
        response, self._first = self._first or self._file._request({}), None
        with closing(response):
            passed = 0
            for part in self._file._body(response, self._file.length):
                yield part[max(0, start - passed) :]
                passed += len(part)


def _with_headers(url: str, options: Remote) -> tuple[str, dict[str, str]]:
    """The address without name and password, and the headers of all requests."""
    parts = urlsplit(url)
    headers = {"Accept-Encoding": "identity", "User-Agent": "tqcodec"}
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers |= urllib3.make_headers(basic_auth=login)
    place = parts.netloc.rpartition("@")[2]
    headers |= options.storage.get("headers", {})
    return urlunsplit((parts.scheme, place, parts.path, parts.query, "")), headers


def _pool(url: str, options: Remote) -> urllib3.PoolManager:
    """Connections, by the proxies of the environment."""
    # No retries by urllib3: it would ask for bytes again that have come.
    retries = urllib3.Retry(None, connect=0, read=0, redirect=REDIRECTS, status=0, other=0)
    timeout = urllib3.Timeout(connect=options.timeout, read=options.timeout)
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    make: Callable[..., urllib3.PoolManager] = urllib3.PoolManager
    if proxy is not None and not urllib.request.proxy_bypass(parts.hostname or ""):
        make = partial(urllib3.ProxyManager, proxy)
    return make(retries=retries, timeout=timeout, maxsize=options.connections)


def _least(end: int, length: int | None) -> int:
    return end if length is None else min(end, length)


def _size(response: urllib3.BaseHTTPResponse) -> int | None:
    """Bytes of a body as its header says."""
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was made of: urllib3 hides that in several places."""
    inner: BaseException | None = error
    while inner is not None:
        yield inner
        held = (getattr(inner, "reason", None), *reversed(inner.args), inner.__cause__)
        inner = next((found for found in held if isinstance(found, BaseException)), None)


def _is_final(error: BaseException) -> bool:
    """Whether another attempt would end in the same way."""
    if not isinstance(error, urllib3.exceptions.HTTPError):
        return True
    kinds = urllib3.exceptions
    final = (kinds.LocationValueError, kinds.ResponseError, ssl.SSLCertVerificationError)
    return any(isinstance(found, final) for found in _causes(error))


def _reason(error: BaseException) -> str:
    """What went wrong, without what urllib3 puts around it, such as the address, which may sign."""
    causes = list(_causes(error))
    for found in causes:
        if isinstance(found, (TimeoutError, urllib3.exceptions.ReadTimeoutError)):
            return "no answer in time"
        if isinstance(found, ssl.SSLCertVerificationError):
            return f"the server's certificate is not to be trusted: {found.verify_message}"
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        if isinstance(found, urllib3.exceptions.LocationValueError):
            return "is no address of http, or leads to one that is none"
        if isinstance(found, (RemoteDisconnected, IncompleteRead)):
            return "the connection ended before the answer did"
        if isinstance(found, HTTPException):
            return f"the answer is not HTTP as it should be: {foreign.described(found)[:80]}"
    return foreign.message(causes[-1])
