"""Files with an address: the right data or a clear error, few requests, no wrong data, no hang."""

from __future__ import annotations

import copy
import gc
import io
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.spec import AbstractFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import coders, using

import tqcodec
import tqcodec.torch
from benchmarks.common.servers import Faults, Server
from tqcodec.cli.commands import main
from tqcodec.common import urls
from tqcodec.errors import DecodeError, MalformedError
from tqcodec.reading.remote import file as remote_file
from tqcodec.reading.remote.file import GAP, joined
from tqcodec.reading.remote.http import Identity

Arrays = dict[str, Any]
QUICK = tqcodec.Remote(timeout=0.5, attempts=3)


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    rng = np.random.default_rng(0)
    out: Arrays = {}
    for i in range(12):
        out[f"layer{i}.weight"] = rng.normal(size=(64, 64, 3, 3)).astype(np.float32)
        out[f"layer{i}.bias"] = rng.normal(size=64).astype(np.float32)
    out["tied"] = out["layer3.weight"]
    out["exact"] = rng.integers(0, 1 << 30, 2000, np.int64)
    return out


@pytest.fixture(scope="module")
def data(arrays: Arrays) -> bytes:
    return tqcodec.encode(arrays, tqcodec.Settings(snr=15, effort=1))


@pytest.fixture(scope="module")
def decoded(data: bytes) -> Arrays:
    return tqcodec.decode(data)


@pytest.fixture
def server(data: bytes) -> Iterator[Server]:
    with Server({"/m.tqc": data}) as running:
        yield running


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tqcodec.reading.remote.attempts.FIRST_WAIT", 0.01)


def same(found: Arrays, expected: Arrays) -> bool:
    alike = all(found[name].tobytes() == array.tobytes() for name, array in expected.items())
    return sorted(found) == sorted(expected) and alike


def in_order(url: str, remote: tqcodec.Remote = QUICK) -> Arrays:
    with tqcodec.open(url, remote=remote) as file:
        return {name: file[name] for name in file}


def streamed(url: str, remote: tqcodec.Remote = QUICK) -> Arrays:
    return dict(tqcodec.stream(url, remote=remote))


def loaded(url: str, remote: tqcodec.Remote = QUICK) -> Arrays:
    return tqcodec.load(url, remote=remote)


WAYS = [in_order, streamed, loaded]
ways = pytest.mark.parametrize("way", WAYS)


@coders
@ways
def test_the_data(
    coder: str, way: Callable[[str], Arrays], server: Server, decoded: Arrays
) -> None:
    with using(coder):
        assert same(way(f"{server.url}/m.tqc"), decoded)


@coders
def test_requests(coder: str, server: Server, decoded: Arrays, data: bytes) -> None:
    """The directory by one, a tensor by one more; what is held is not asked for again."""
    with using(coder), tqcodec.open(f"{server.url}/m.tqc") as file:
        assert (len(server.requests), server.sent) == (1, 1 << 16)
        name = "layer11.weight"
        entry = file.container.directory.entries[file.container.index[name]]
        server.reset()
        assert file[name].tobytes() == decoded[name].tobytes()
        assert len(server.requests) == 1
        assert server.sent == sum(segment.length for segment in entry.segments)
        server.reset()
        assert file[name].tobytes() == decoded[name].tobytes()
        assert file.transform(name).weights().tobytes() == decoded[name].tobytes()
        assert file["layer0.bias"].tobytes() == decoded["layer0.bias"].tobytes()
        assert not server.requests
    server.reset()
    loaded(f"{server.url}/m.tqc")
    assert (len(server.requests), server.sent) == (2, len(data))
    server.reset()
    streamed(f"{server.url}/m.tqc")
    assert (len(server.requests), server.sent) == (1, len(data))
    assert all(headers["Accept-Encoding"] == "identity" for headers in server.headers)


def test_a_large_directory_takes_two_requests() -> None:
    arrays = {f"tensor.{os.urandom(40).hex()}": np.arange(3, dtype=np.int16) for _ in range(4000)}
    data = tqcodec.encode(arrays)
    with Server({"/m.tqc": data}) as server, tqcodec.open(f"{server.url}/m.tqc") as file:
        size = file.container.directory_size
        assert size > 1 << 17
        assert len(server.requests) == 2
        assert server.sent <= 1.2 * (size + 28)
        assert list(file) == list(arrays)


@pytest.mark.parametrize("memory", [0, 20_000, 1 << 30])
@ways
def test_memory_and_connections(
    way: Any, memory: int, server: Server, decoded: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tqcodec.reading.file.TOGETHER", 10_000)
    most, release = 0, remote_file.RemoteFile._release

    def watched(self: Any, parts: Any) -> None:
        nonlocal most
        most = max(most, sum(part.length for part in self._parts.values()))
        release(self, parts)
        assert sum(part.length for part in self._parts.values()) <= max(memory, 3 * 45_000)

    monkeypatch.setattr(remote_file.RemoteFile, "_release", watched)
    remote = tqcodec.Remote(connections=3, memory=memory)
    assert same(way(f"{server.url}/m.tqc", remote), decoded)
    if way is not streamed:
        assert most > 0


def test_what_is_not_in_use_is_let_go(server: Server) -> None:
    remote = tqcodec.Remote(memory=0)
    with tqcodec.open(f"{server.url}/m.tqc", remote=remote) as file:
        for name in ("layer10.weight", "layer11.weight", "layer10.weight"):
            server.reset()
            assert file[name] is not None
            assert len(server.requests) == 1
        assert not file._remote._parts  # type: ignore[union-attr]


RIGHT = [
    {"ranges": False},
    {"ranges": False, "length": False},
    {"ranges": False, "cut": 150_000, "cuts": 2},
    {"cut": 20_000, "cuts": 2},
    {"statuses": [503, 429]},
    {"statuses": [500, 408]},
    {"most": 7_000},
    {"long": 10},
    {"tag": False},
    {"tag": False, "date": False},
    {"redirect": {"/m.tqc": "/other", "/other": "/third"}},
    {"stall": 0.02, "rate": 5e6},
    {"headers": {"Content-Range": "Bytes {range}/*"}},
    {"headers": {"Content-Encoding": "Identity"}},
    {"headers": {"Content-Encoding": "aws-chunked", "ETag": 'W/"a"'}},
]


@pytest.mark.parametrize("faults", RIGHT, ids=str)
@ways
def test_servers_that_can_be_put_up_with(
    way: Any, faults: dict[str, Any], server: Server, decoded: Arrays, data: bytes
) -> None:
    server.files["/third"] = data
    server.faults = copy.deepcopy(Faults(**faults))
    assert same(way(f"{server.url}/m.tqc"), decoded)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"cut": 100}, OSError, "after 3 attempts"),
    ({"ranges": False, "cut": 100}, OSError, "after 3 attempts"),
    ({"ranges": False, "short": 7}, OSError, "ends 7 bytes early, after 3 attempts"),
    ({"ranges": False, "length": False, "short": 7}, DecodeError, "malformed"),
    ({"short": 7}, OSError, "ends 7 bytes early"),
    ({"claimed": 5}, (OSError, DecodeError), "container.length|ends 5 bytes|other bytes"),  # type: ignore[list-item]
    ({"compress": True}, OSError, "compresses the file"),
    ({"moved": 1}, OSError, "other bytes than those asked for"),
    ({"flip": 30}, MalformedError, "directory"),
    ({"flip": 150_000}, MalformedError, "segment.crc"),
    ({"statuses": [500] * 99}, OSError, "500 Internal Server Error, after 3 attempts"),
    ({"statuses": [429] * 99}, OSError, "429 Too Many Requests, after 3 attempts"),
    ({"statuses": [400]}, OSError, "answers 400"),
    ({"statuses": [401]}, PermissionError, "answers 401"),
    ({"statuses": [403]}, PermissionError, "answers 403"),
    ({"statuses": [404]}, FileNotFoundError, "answers 404"),
    ({"statuses": [204]}, OSError, "answers 204"),
    ({"stall": 1.0}, OSError, "no answer in time, after 3 attempts"),
    ({"redirect": {"/m.tqc": "/m.tqc"}}, OSError, "too many redirects"),
    ({"headers": {"Content-Range": ""}}, OSError, "does not say which bytes"),
    ({"headers": {"Content-Range": f"bytes 0-{'9' * 5000}/*"}}, OSError, "which bytes"),
]


@pytest.mark.parametrize(("faults", "kind", "message"), WRONG, ids=str)
@ways
def test_servers_that_cannot(
    way: Any, faults: dict[str, Any], kind: Any, message: str, server: Server
) -> None:
    server.faults = copy.deepcopy(Faults(**faults))
    with pytest.raises(kind, match=message) as caught:
        way(f"{server.url}/m.tqc")
    if not isinstance(caught.value, DecodeError):
        assert caught.value.filename == f"{server.url}/m.tqc"
    codes, places = faults.get("statuses", []), faults.get("redirect", {})
    if (codes and codes[0] < 429) or "headers" in faults or places:
        most = 11 if "/m.tqc" in places.values() else 1
        assert len(server.requests) <= most, "asked again although no other answer can come"


@ways
def test_what_is_not_http(way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages say what came, and never the part of an address that signs it."""
    answers = [b"", b"\x16\x03\x01" * 90, b"HTTP/1.1 206 ok\r\n" + b"a: b\r\n" * 500 + b"\r\n"]
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(10_000)
                    connection.sendall(answers[0])

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    with listener:
        for message in ("connection ended", "not HTTP as it should be", "more than 100 headers"):
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/m.tqc?signature=abc"
            with pytest.raises(OSError, match=f"{message}.*after 3 attempts") as caught:
                way(url)
            assert "signature" not in str(caught.value)
            answers.pop(0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("place", ["http://[x/m", "file:///etc/hostname", "ftp://127.0.0.1/m"])
def test_redirects_that_lead_nowhere(place: str, server: Server) -> None:
    server.faults = Faults(redirect={"/m.tqc": place})
    with pytest.raises(OSError, match=r"no address of http|Invalid IPv6"):
        loaded(f"{server.url}/m.tqc")
    assert len(server.requests) == 1
    gc.collect()  # urllib3 leaves the connection to it


def test_what_is_the_same_file() -> None:
    """Answers are compared by what both of them say."""
    one = Identity(5, '"a"', "Monday")
    same = [(5, '"a"', "Tuesday"), (None, '"a"', None), (5, None, "Monday"), (None, None, None)]
    for found in same:
        assert one.fits(Identity(*found)) and Identity(*found).fits(one)
    for other in [(6, '"a"', "Monday"), (5, '"b"', "Monday"), (5, None, "Tuesday")]:
        assert not one.fits(Identity(*other)) and not Identity(*other).fits(one)


@pytest.mark.parametrize(
    "url",
    ["http://[bad/m", "http://ex\u2100.com/m", "http://h:99999/m", "http:///m", "http://a..b"],
)
@ways
def test_what_is_no_address(way: Any, url: str) -> None:
    with pytest.raises(OSError, match=r"Invalid|NFKC|no address of http") as caught:
        way(url)
    assert "attempts" not in str(caught.value)
    with pytest.raises(OSError, match=r"Invalid|NFKC|no address of http"):
        tqcodec.fetch(url, os.devnull + "s")


def test_nobody_there(server: Server) -> None:
    with Server({}) as other:
        port = other.port
    with pytest.raises(OSError, match="Connection refused, after 3 attempts"):
        loaded(f"http://127.0.0.1:{port}/m.tqc")
    with pytest.raises(FileNotFoundError):
        loaded(f"{server.url}/n.tqc")


def test_waits_as_the_server_wishes(server: Server) -> None:
    server.faults = Faults(statuses=[429], wait="1")
    start = time.monotonic()
    loaded(f"{server.url}/m.tqc")
    assert time.monotonic() - start >= 1


def test_broken_off_answers_are_read_on(server: Server, data: bytes) -> None:
    """Only what is missing is asked for again."""
    server.faults = Faults(cut=100_000, cuts=1)
    assert streamed(f"{server.url}/m.tqc")
    assert [wanted for _, _, wanted in server.requests] == [
        "bytes=0-",
        f"bytes=100000-{len(data) - 1}",
    ]
    assert server.sent == len(data)


@pytest.mark.parametrize("faults", [{}, {"tag": False}, {"ranges": False}], ids=str)
def test_a_file_that_changes(faults: dict[str, Any], server: Server, arrays: Arrays) -> None:
    server.faults = Faults(**faults)
    other = tqcodec.encode(arrays, tqcodec.Settings(snr=10, effort=1))
    with tqcodec.open(f"{server.url}/m.tqc", remote=QUICK) as file:
        before = server.files["/m.tqc"]
        server.files["/m.tqc"] = other
        if faults.get("ranges", True):
            for _ in range(2):
                with pytest.raises(OSError, match="has changed since it was opened"):
                    file["layer11.weight"]
            with pytest.raises(OSError, match="has changed"):
                file.decode_all()
        server.files["/m.tqc"] = before
        assert file["layer11.weight"].shape == (64, 64, 3, 3)


def test_a_file_that_changes_in_the_midst(server: Server, arrays: Arrays) -> None:
    """A connection breaks off, and the next one leads to another file."""
    other = tqcodec.encode(arrays, tqcodec.Settings(snr=10, effort=1))
    server.faults = Faults(cut=100_000, cuts=1)
    stream = tqcodec.stream(f"{server.url}/m.tqc", remote=QUICK)
    next(stream)
    server.files["/m.tqc"] = other
    with pytest.raises(OSError, match="has changed since it was opened"):
        list(stream)


def test_one_that_changes_without_a_sign(server: Server, data: bytes) -> None:
    """The bytes themselves show it."""
    server.faults = Faults(tag=False, date=False)
    with tqcodec.open(f"{server.url}/m.tqc", remote=QUICK) as file:
        server.files["/m.tqc"] = data[:100] + bytes(len(data) - 100)
        with pytest.raises(MalformedError, match="damaged segment"):
            file["layer11.weight"]


def test_what_is_no_file_of_ours(server: Server) -> None:
    server.files |= {"/page": b"<!doctype html><title>m.tqc</title>" * 20, "/empty": b""}
    for faults in (Faults(), Faults(ranges=False)):
        server.faults = faults
        for way in WAYS:
            with pytest.raises(MalformedError, match=r"not a \.tqc file"):
                way(f"{server.url}/page")
            with pytest.raises(MalformedError):
                way(f"{server.url}/empty")


def test_threads_share_requests(server: Server, decoded: Arrays) -> None:
    server.faults = Faults(stall=0.05)
    with tqcodec.open(f"{server.url}/m.tqc") as file:
        server.reset()
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: file["layer9.weight"], range(8)))
        assert len(server.requests) == 1
        names = list(file) * 3
        with ThreadPoolExecutor(8) as pool:
            for name, array in zip(names, pool.map(file.__getitem__, names), strict=True):
                assert array.tobytes() == decoded[name].tobytes()
    assert all(array.tobytes() == decoded["layer9.weight"].tobytes() for array in found)


@pytest.mark.parametrize("ranges", [True, False])
def test_other_processes(ranges: bool, server: Server, decoded: Arrays) -> None:
    """A pickle is opened again; a forked process has connections of its own."""
    server.faults = Faults(ranges=ranges)
    with tqcodec.open(f"{server.url}/m.tqc") as file:
        again = pickle.loads(pickle.dumps(file))
        assert again["tied"].tobytes() == decoded["tied"].tobytes()
        again.close()
        file["layer7.weight"]
        child = os.fork()
        if child == 0:
            names = ["layer7.weight", "layer8.weight", "exact"]
            good = all(file[name].tobytes() == decoded[name].tobytes() for name in names)
            os._exit(0 if good else 1)
        assert file["layer6.weight"].tobytes() == decoded["layer6.weight"].tobytes()
        assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(ValueError, match="closed"):
        file["layer7.weight"]


def test_closing_ends_what_is_read(server: Server) -> None:
    """Another thread may wait for a server that does not answer."""
    file = tqcodec.open(f"{server.url}/m.tqc", remote=tqcodec.Remote(timeout=60))
    server.faults = Faults(rate=1000.0)
    errors = []

    def read() -> None:
        try:
            file["layer11.weight"]
        except (ValueError, OSError) as error:
            errors.append(str(error))

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.3)
    file.close()
    thread.join(5)
    assert not thread.is_alive()
    assert "closed" in errors[0]


def test_who_leaves_a_stream_ends_the_answer(server: Server) -> None:
    server.faults = Faults(rate=100_000.0)
    stream = tqcodec.stream(f"{server.url}/m.tqc")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    time.sleep(0.2)
    sent = server.sent
    time.sleep(0.3)
    assert server.sent == sent < 100_000


def test_headers_and_logins(server: Server, decoded: Arrays) -> None:
    remote = tqcodec.Remote(storage={"headers": {"X-Token": "secret"}})
    place = server.url.replace("http://", "http://us%40er:pass@")
    assert same(loaded(f"{place}/m.tqc", remote), decoded)
    assert all(headers["X-Token"] == "secret" for headers in server.headers)
    assert all(headers["authorization"] == "Basic dXNAZXI6cGFzcw==" for headers in server.headers)
    with pytest.raises(FileNotFoundError) as caught:
        loaded(f"{place}/n.tqc?signature=abc")
    assert caught.value.filename == f"{server.url}/n.tqc"


def test_proxies_of_the_environment(
    server: Server, decoded: Arrays, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["http://example.org/m.tqc"] = data
    monkeypatch.setenv("http_proxy", server.url)
    assert same(loaded("http://example.org/m.tqc"), decoded)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert same(loaded(f"{server.url}/m.tqc"), decoded)


@settings(max_examples=40)
@given(
    spans=st.lists(st.tuples(st.integers(0, 10 * GAP), st.integers(0, 3 * GAP)), max_size=8),
)
def test_joined_spans_cover_what_is_asked_for(spans: list[tuple[int, int]]) -> None:
    found = joined(spans)
    for offset, length in spans:
        assert any(start <= offset and offset + length <= start + size for start, size in found)
    for (start, size), (following, _) in pairwise(found):
        assert following - (start + size) > GAP


# Addresses of fsspec


@coders
@ways
def test_file_systems(coder: str, way: Any, data: bytes, decoded: Arrays) -> None:
    system = fsspec.filesystem("memory")
    system.pipe_file("/folder/m.tqc", data)
    with using(coder):
        assert same(way("memory://folder/m.tqc"), decoded)
    with pytest.raises(FileNotFoundError) as caught:
        way("memory://folder/n.tqc")
    assert caught.value.filename == "memory://folder/n.tqc"
    with pytest.raises(OSError, match="folder"):
        way("memory://folder")
    with pytest.raises(OSError, match="Protocol not known"):
        way("nothing://folder/m.tqc")


def test_file_systems_whose_files_change(data: bytes, arrays: Arrays) -> None:
    system = fsspec.filesystem("memory")
    system.pipe_file("/m.tqc", data)
    with tqcodec.open("memory://m.tqc") as file:
        again = pickle.dumps(file)
        system.pipe_file("/m.tqc", tqcodec.encode(arrays, tqcodec.Settings(snr=10, effort=1)))
        with pytest.raises(OSError, match="has changed since it was opened"):
            file["layer11.weight"]
        with pytest.raises(OSError, match="replaced since it was opened"):
            pickle.loads(again)
        system.pipe_file("/m.tqc", data[:1000])
        with pytest.raises(OSError, match="has changed since it was opened"):
            file["layer10.weight"]


def _refuse(*_: Any) -> int:
    raise ValueError("this file cannot be sought in")


class Poor(AbstractFileSystem):  # type: ignore[misc]
    """A file system that is told what it cannot do."""

    protocol = "poor"
    file = b""
    size: int | None = None
    ranges = "seeking"

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "type": "file", "size": self.size}

    def _open(self, path: str, *_: Any, **__: Any) -> Any:
        found = io.BytesIO(self.file)
        if self.ranges == "none":
            found.seek = _refuse  # type: ignore[method-assign]
        return found

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        if self.ranges == "unknown" and (start or end):
            raise NotImplementedError
        if self.ranges == "ignored":
            return self.file
        if self.ranges == "short":
            end = min(end, start + 50_000)
        return self.file[start:end]


@pytest.mark.parametrize("ranges", ["seeking", "none", "unknown", "ignored", "short"])
@pytest.mark.parametrize("known", [True, False])
@ways
def test_file_systems_that_can_little(
    way: Any, known: bool, ranges: str, data: bytes, decoded: Arrays, tmp_path: Path
) -> None:
    size = len(data) if known else None
    common = {"cat_file": AbstractFileSystem.cat_file} if ranges in ("seeking", "none") else {}
    kind = type("Poor", (Poor,), {"file": data, "size": size, "ranges": ranges, **common})
    fsspec.register_implementation("poor", kind, clobber=True)
    assert same(way("poor://folder/m.tqc"), decoded)
    tqcodec.fetch("poor://folder/m.tqc", tmp_path / "m.tqc", remote=QUICK)
    assert (tmp_path / "m.tqc").read_bytes() == data


def test_file_systems_that_lack_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the package."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    registry: Any = sys.modules["fsspec.registry"]
    monkeypatch.delitem(registry._registry, "hf", raising=False)
    with pytest.raises(OSError, match="huggingface_hub"):
        tqcodec.open("hf://name/model@v1/m.tqc")


def test_chains_of_file_systems(data: bytes, decoded: Arrays, tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("m.tqc", data)
    assert same(loaded(f"zip://m.tqc::file://{tmp_path}/a.zip"), decoded)


def test_local_files(
    data: bytes, decoded: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths with colons and `file://` are files on disk, as ever."""
    monkeypatch.chdir(tmp_path)
    for name in ("model:v2.tqc", "c:m.tqc", "a b%20.tqc"):
        Path(name).write_bytes(data)
        assert not urls.is_url(name)
        for way in WAYS:
            assert same(way(name), decoded)
            assert same(way((tmp_path / name).as_uri()), decoded)
    for name in ("model.tqc", "./model.tqc"):
        Path(name).write_bytes(data)
        for scheme in ("file://", "FILE://", "local://"):
            assert same(in_order(scheme + name), decoded)
    for name in ("C://m.tqc", "://x", "a/b://c", "file:///tmp/x", "local:///tmp/x"):
        assert not urls.is_url(name), name
    for name in ("https://a/b", "s3://b/k", "HTTP://a", "zip://m::https://a/b", "git+ssh://x"):
        assert urls.is_url(name), name


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, url in (("urllib3", "https://example.org/m.tqc"), ("fsspec", "memory://m.tqc")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            for module in ("tqcodec.reading.remote.http", "tqcodec.reading.remote.filesystem"):
                patch.delitem(sys.modules, module, raising=False)
            with pytest.raises(OSError, match=r"pip install 'tqcodec\[remote\]'"):
                tqcodec.open(url)


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"timeout": "1"}, {"attempts": 0}, {"connections": 0}, {"memory": -1}],
    ids=str,
)
def test_options_that_are_none(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        tqcodec.Remote(**options)
    with pytest.raises(TypeError, match="remote"):
        tqcodec.open("https://example.org/m.tqc", remote=options)  # type: ignore[arg-type]


# The command line and PyTorch


def test_commands(
    server: Server,
    data: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        assert main(list(arguments)) == code
        out, err = capsys.readouterr()
        return out if code == 0 else err

    monkeypatch.chdir(tmp_path)
    url = f"{server.url}/m.tqc"
    (tmp_path / "m.tqc").write_bytes(data)
    whole = json.loads(run("info", str(tmp_path / "m.tqc"), "--json"))
    assert not server.requests
    found = json.loads(run("info", url, "--json"))
    assert (len(server.requests), server.sent) == (1, 1 << 16)
    payloads = ("transform", "kept", "channels", "depths")
    for tensor in whole["tensors"]:
        known = found["tensors"].pop(0)
        assert known == tensor | dict.fromkeys(payloads)
    assert json.loads(run("info", url, "--json", "--full")) == whole
    assert "layer3.weight" in run("info", url)
    assert run("verify", url) == f"{url}: good\n"
    assert json.loads(run("dump", url, "--json")) == json.loads(
        run("dump", str(tmp_path / "m.tqc"), "--json")
    )
    run("decode", url)
    run("decode", "m.tqc", "-o", "local.safetensors")
    decoded = (tmp_path / "m.safetensors").read_bytes()
    assert decoded == (tmp_path / "local.safetensors").read_bytes()
    for options in (["-o", "m.npz"], ["--domain", "transform", "-o", "c.safetensors"]):
        run("decode", url, *options)
    run("report", url, "-o", "m.html")
    server.reset()
    server.faults = Faults(statuses=[404])
    assert run("info", url, "--header", "X-Token: 1", code=2) == (
        f"tqcodec: {url}: the server answers 404 Not Found\n"
    )
    assert server.headers[0]["X-Token"] == "1"
    for wrong in (["--timeout", "0"], ["--header", "x"], ["--connections", "0"]):
        assert wrong[0] in run("info", url, *wrong, code=2)


def test_interrupted(server: Server) -> None:
    """Ctrl-C is heard while a server does not answer."""
    server.faults = Faults(stall=60)
    command = subprocess.Popen(
        [sys.executable, "-m", "tqcodec", "verify", f"{server.url}/m.tqc"],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not server.requests:
        time.sleep(0.05)
    command.send_signal(signal.SIGINT)
    with command:
        assert command.wait(10) == 130
        assert command.stderr is not None and "interrupted" in command.stderr.read()


@pytest.mark.parametrize("mode", ["weights", "transform", "lazy"])
def test_networks(mode: Any, server: Server) -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 3)).eval()
    server.files["/n.tqc"] = encoded = tqcodec.torch.encode(
        model, tqcodec.Settings(snr=20, effort=1)
    )
    url, batch = f"{server.url}/n.tqc", torch.randn(1, 3, 8, 8)
    found = tqcodec.torch.network(model, url, mode=mode)
    assert len(server.requests) == 1
    assert torch.equal(found(batch), tqcodec.torch.network(model, encoded, mode=mode)(batch))
    state = tqcodec.torch.load(url)
    assert all(torch.equal(state[k], v) for k, v in tqcodec.torch.decode(encoded).items())
    assert sorted(dict(tqcodec.torch.stream(url))) == sorted(state)
