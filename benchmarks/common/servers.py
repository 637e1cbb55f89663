"""A server on the loopback that counts what it sends, and fails in the ways of real ones."""

from __future__ import annotations

import gzip
import re
import socket
import threading
import time
import zlib
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CHUNK = 1 << 14  # bytes sent at a time
LATE = 0.05  # seconds


@dataclass
class Faults:
    """What is wrong with a server; nothing by default.

    Attributes:
        ranges: whether it knows ranges.
        tag: whether it sends an ETag; `date` likewise for the time of the last change.
        length: whether it says the length of a body.
        statuses: answers of these codes come first.
        wait: what such an answer says in Retry-After.
        cut: body bytes after which a connection is reset; `cuts` times, None for ever.
        short: bytes that a body lacks, where its length says otherwise; `long`: bytes too many.
        claimed: bytes that the length of the file is too long.
        compress: send gzip.
        flip: a byte of the file, of which a bit arrives wrong.
        moved: bytes by which an answer begins too late.
        stall: seconds before an answer.
        rate: bytes a second, of all connections together.
        most: bytes of a range at most.
        redirect: paths that lead to others.
        headers: sent in place of others of their names, {range} being what is sent, {total} of how
            many bytes.
    """

    ranges: bool = True
    tag: bool = True
    date: bool = True
    length: bool = True
    statuses: list[int] = field(default_factory=list)
    wait: str = "0"
    cut: int | None = None
    cuts: int | None = None
    short: int = 0
    long: int = 0
    claimed: int = 0
    compress: bool = False
    flip: int | None = None
    moved: int = 0
    stall: float = 0
    rate: float | None = None
    most: int | None = None
    redirect: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


class _Threads(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Clients may go as they like."""


class Server:
    """Files by their paths, over HTTP/1.1.

    Attributes:
        files: bytes by path, such as ``/m.tqc``; they may be changed at any time.
        faults: what is wrong.
        requests: method, path and range of each request.
        headers: those of each request.
        sent: bytes of all bodies that were sent.
    """

    def __init__(self, files: dict[str, bytes], faults: Faults | None = None) -> None:
        self.files = dict(files)
        self.faults = faults if faults is not None else Faults()
        self.requests: list[tuple[str, str, str | None]] = []
        self.headers: list[dict[str, str]] = []
        self.sent = 0
        self._lock = threading.Lock()
        self._free = time.monotonic()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = _Threads(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def reset(self) -> None:
        """Count from nothing."""
        self.requests, self.headers, self.sent = [], [], 0

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        faults = self.faults
        with self._lock:
            wanted = request.headers.get("Range")
            self.requests.append((request.command, request.path, wanted))
            self.headers.append(dict(request.headers))
            status = faults.statuses.pop(0) if faults.statuses else 0
        if faults.stall:
            time.sleep(faults.stall)
        if status:
            _head(request, status, {"Content-Length": "0", "Retry-After": faults.wait})
            return
        if request.path in faults.redirect:
            place = faults.redirect[request.path]
            _head(request, 302, {"Content-Length": "0", "Location": place})
            return
        data = self.files.get(request.path)
        if data is None:
            _head(request, 404, {"Content-Length": "0"})
            return
        self._file(request, data, wanted if faults.ranges else None)

    def _file(self, request: BaseHTTPRequestHandler, data: bytes, wanted: str | None) -> None:
        faults, headers, code = self.faults, {}, 200
        headers["Accept-Ranges"] = "bytes" if faults.ranges else "none"
        if faults.tag:
            headers["ETag"] = f'"{zlib.crc32(data):x}"'
        if faults.date:
            headers["Last-Modified"] = f"day {zlib.crc32(data)}"
        total, sent = len(data) + faults.claimed, ""
        if faults.flip is not None:
            data = data[: faults.flip] + bytes([data[faults.flip] ^ 4]) + data[faults.flip + 1 :]
        body = data
        if wanted is not None:
            found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
            assert found is not None, wanted
            start = int(found[1])
            end = min(int(found[2]) + 1 if found[2] else len(data), len(data))
            if faults.most is not None:
                end = min(end, start + faults.most)
            if start >= len(data):
                _head(request, 416, {"Content-Length": "0", "Content-Range": f"bytes */{total}"})
                return
            code, body = 206, data[start + faults.moved : end + faults.moved]
            sent = f"{start + faults.moved}-{end + faults.moved - 1}"
            headers["Content-Range"] = f"bytes {sent}/{total}"
        if faults.compress:
            body = gzip.compress(body)
            headers["Content-Encoding"] = "gzip"
        if faults.length:
            headers["Content-Length"] = str(len(body))
        else:
            headers["Connection"] = "close"
        headers |= {k: v.format(range=sent, total=total) for k, v in faults.headers.items()}
        body = body[: len(body) - faults.short] + bytes(faults.long)
        _head(request, code, headers)
        self._send(request, body)
        if faults.short or faults.long or not faults.length:
            request.close_connection = True

    def _send(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        rate = self.faults.rate
        # What is sent in two milliseconds, as more of it would be lost when a client goes.
        size = CHUNK if rate is None else min(CHUNK, int(rate / 500) + 1)
        for start in range(0, len(body), size):
            part = body[start : start + size]
            cut = self.faults.cut
            if cut is not None and start + len(part) > cut and self.faults.cuts != 0:
                self._push(request, part[: max(0, cut - start)])
                if self.faults.cuts is not None:
                    self.faults.cuts -= 1
                _reset(request)
                return
            if not self._push(request, part):
                return

    def _push(self, request: BaseHTTPRequestHandler, part: bytes) -> bool:
        if self.faults.rate is not None:
            with self._lock:
                now = time.monotonic()
                # What a busy machine sleeps too long is made up for.
                self._free = max(now - LATE, self._free) + len(part) / self.faults.rate
                wait = self._free - now
            time.sleep(max(0.0, wait))
        with self._lock:  # before: a client that has all of it may look at once
            self.sent += len(part)
        try:
            request.wfile.write(part)
        except OSError:
            request.close_connection = True
            return False
        return True


def _head(request: BaseHTTPRequestHandler, code: int, headers: dict[str, str]) -> None:
    request.send_response(code)
    for key, value in headers.items():
        request.send_header(key, value)
    request.end_headers()


def _reset(request: BaseHTTPRequestHandler) -> None:
    """End a connection by a reset, what was sent before it included."""
    request.close_connection = True
    linger = b"\1\0\0\0\0\0\0\0"
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    request.connection.shutdown(socket.SHUT_RDWR)
