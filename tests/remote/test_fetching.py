"""Copies from an address: resumed after any end, in part, never wrong."""

from __future__ import annotations

import fcntl
import os
import pty
import random
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_files import several
from networks import Network, networks

import tqcodec
from benchmarks.common.servers import Faults, Server
from tqcodec.cli.commands import main
from tqcodec.errors import DecodeError, EncodeError, MalformedError
from tqcodec.format.container import Container
from tqcodec.format.registry import HEADER_SIZE
from tqcodec.reading import fetching

Arrays = dict[str, Any]
SmallDisk = Callable[[int], AbstractContextManager[None]]
QUICK = tqcodec.Remote(timeout=0.5, attempts=3)


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    rng = np.random.default_rng(0)
    out: Arrays = {"large": rng.normal(size=(600, 600)).astype(np.float32)}
    for i in range(8):
        out[f"layer{i}.weight"] = rng.normal(size=(48, 48, 3, 3)).astype(np.float32)
        out[f"layer{i}.bias"] = rng.normal(size=48).astype(np.float32)
        out[f"layer{i}.steps"] = np.arange(i, i + 5)
    out["tied.bias"] = out["layer2.bias"]
    out["tied.weight"] = out["layer2.weight"]
    out["again.weight"] = out["layer2.weight"]
    return out


@pytest.fixture(scope="module")
def data(arrays: Arrays) -> bytes:
    return tqcodec.encode(arrays, tqcodec.Settings(snr=15, effort=1))


@pytest.fixture
def server(data: bytes) -> Iterator[Server]:
    with Server({"/m.tqc": data}) as running:
        yield running


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tqcodec.reading.remote.attempts.FIRST_WAIT", 0.01)


def part_of(path: Path) -> Path:
    return path.with_name(path.name + fetching.PART)


def test_a_copy(server: Server, data: bytes, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    path = tmp_path / "m.tqc"
    tqcodec.fetch(f"{server.url}/m.tqc", path, progress=lambda *call: calls.append(call))
    assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]
    assert server.sent == len(data) + HEADER_SIZE
    assert calls[-1] == ("fetch", len(data), len(data))
    assert calls == sorted(calls)
    tqcodec.fetch(f"{server.url}/m.tqc", str(path))
    assert path.read_bytes() == data


def test_what_is_on_disk_is_not_asked_for(server: Server, data: bytes, tmp_path: Path) -> None:
    """Of each kind of rest: cut off, with holes, with damage, too long, all there."""
    path, container = tmp_path / "m.tqc", Container.of(data)
    segments = list(container.directory.segments())
    start, hole = container.start, segments[3]
    flipped = bytearray(data)
    flipped[hole.offset + hole.length - 1] ^= 1
    end = hole.offset + hole.length
    holed = data[: hole.offset] + bytes(hole.length) + data[end:]
    cases = [
        (data[:10], len(data)),
        (data[:100], len(data) - 100),
        (data[:start], len(data) - start),
        (data[: start + 5000], None),
        (data[:-1], 1),
        (data, 0),
        (data + b"more", 0),
        (holed, hole.length),
        (bytes(flipped), hole.length),
    ]
    for rest, wanted in cases:
        part_of(path).write_bytes(rest)
        server.reset()
        tqcodec.fetch(f"{server.url}/m.tqc", path)
        assert path.read_bytes() == data
        assert not part_of(path).exists()
        if wanted is None:  # the last bytes that are there may be zeros
            assert server.sent <= len(data) - start - 5000 + HEADER_SIZE + 8
        elif len(rest) >= HEADER_SIZE:
            assert server.sent == wanted + HEADER_SIZE


@pytest.mark.parametrize("size", [10, 50_000])
def test_a_full_disk_is_named(
    size: int, small_disk: SmallDisk, server: Server, data: bytes, tmp_path: Path
) -> None:
    copy = tmp_path / "m.tqc"
    with small_disk(size), pytest.raises(OSError, match="File too large") as caught:
        tqcodec.fetch(f"{server.url}/m.tqc", copy)
    assert caught.value.filename == str(copy)
    tqcodec.fetch(f"{server.url}/m.tqc", copy)
    assert copy.read_bytes() == data


def test_the_rest_of_another_file(server: Server, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.tqc"
    for rest in (several(), b"text" * 100, data[:100] + bytes(len(data))):
        part_of(path).write_bytes(rest)
        tqcodec.fetch(f"{server.url}/m.tqc", path)
        assert path.read_bytes() == data


@settings(max_examples=30)
@given(seed=st.integers(0, 1 << 30), share=st.floats(0, 1))
def test_any_damage_is_made_good(seed: int, share: float) -> None:
    import tempfile

    data, draw = several(), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, Server({"/m.tqc": data}) as server:
        path = Path(folder) / "m.tqc"
        rest = bytearray(data[: draw.randrange(len(data) + 1)])
        for _ in range(int(share * 20) if rest else 0):
            start = draw.randrange(len(rest))
            size = min(draw.randrange(200), len(rest) - start)
            rest[start : start + size] = draw.choice([bytes(size), draw.randbytes(size)])
        part_of(path).write_bytes(rest)
        tqcodec.fetch(f"{server.url}/m.tqc", path)
        assert path.read_bytes() == data


@pytest.mark.parametrize(
    "faults",
    [
        {"ranges": False},
        {"cut": 30_000, "cuts": 3},
        {"most": 9_000},
        {"statuses": [503, 429]},
        {"long": 3},
        {"tag": False, "date": False},
    ],
    ids=str,
)
def test_servers_that_can_be_put_up_with(
    faults: dict[str, Any], server: Server, data: bytes, tmp_path: Path
) -> None:
    server.faults = Faults(**faults)
    tqcodec.fetch(f"{server.url}/m.tqc", tmp_path / "m.tqc", remote=QUICK)
    assert (tmp_path / "m.tqc").read_bytes() == data


@pytest.mark.parametrize(
    ("faults", "kind"),
    [
        ({"cut": 100}, OSError),
        ({"flip": 100_000}, MalformedError),
        ({"flip": 30}, DecodeError),
        ({"claimed": 4}, (OSError, DecodeError)),
        ({"compress": True}, OSError),
        ({"moved": 2}, OSError),
        ({"statuses": [404]}, FileNotFoundError),
        ({"stall": 1.0}, OSError),
    ],
    ids=str,
)
def test_servers_that_cannot(
    faults: dict[str, Any], kind: Any, server: Server, data: bytes, tmp_path: Path
) -> None:
    """Nothing gets the file's name, and what has come is not lost."""
    path = tmp_path / "m.tqc"
    path.write_bytes(b"old")
    server.faults = Faults(**faults)
    with pytest.raises(kind):
        tqcodec.fetch(f"{server.url}/m.tqc", path, remote=QUICK)
    assert path.read_bytes() == b"old"
    server.faults = Faults()
    tqcodec.fetch(f"{server.url}/m.tqc", path)
    assert path.read_bytes() == data


def test_two_at_once(server: Server, data: bytes, tmp_path: Path) -> None:
    """One makes the copy, others are told so; nothing is left that would stop the next one."""
    path, url = tmp_path / "m.tqc", f"{server.url}/m.tqc"
    ends: list[str] = []

    def make() -> None:
        try:
            tqcodec.fetch(url, path)
            ends.append("")
        except OSError as error:
            ends.append(str(error))

    server.faults = Faults(stall=0.02)
    for _ in range(5):
        threads = [threading.Thread(target=make) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert path.read_bytes() == data
        assert list(tmp_path.iterdir()) == [path]
    assert len(ends) == 30
    assert any("is being fetched already" in end for end in ends)
    assert {end for end in ends if "is being fetched already" not in end} == {""}


def test_what_is_no_file_stays(server: Server, tmp_path: Path) -> None:
    """Devices and pipes, and links in the place of what has come, are not replaced."""
    path, kept = tmp_path / "m.tqc", tmp_path / "kept"
    kept.write_bytes(b"kept")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(OSError, match="a device or a pipe"):
        tqcodec.fetch(f"{server.url}/m.tqc", tmp_path / "pipe")
    os.close(reader)
    for link in (True, False):
        part_of(path).symlink_to(kept) if link else os.mkfifo(part_of(path))
        with pytest.raises(OSError, match="no regular file"):
            tqcodec.fetch(f"{server.url}/m.tqc", path)
        part_of(path).unlink()
    assert kept.read_bytes() == b"kept"
    assert not server.requests


@pytest.mark.parametrize("only", [5, None, [5], b"x"])
def test_patterns_that_are_none(only: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="only"):
        tqcodec.fetch("https://example.org/m.tqc", tmp_path / "m.tqc", only=only)


def test_a_file_that_changes(server: Server, arrays: Arrays, data: bytes, tmp_path: Path) -> None:
    other = tqcodec.encode(arrays, tqcodec.Settings(snr=10, effort=1))
    path = tmp_path / "m.tqc"

    def progress(stage: str, done: int, of: int) -> None:
        server.files["/m.tqc"] = other
        server.faults.cut, server.faults.cuts = 1000, 1

    with pytest.raises(OSError, match="has changed since it was opened"):
        tqcodec.fetch(f"{server.url}/m.tqc", path, remote=QUICK, progress=progress)
    assert not path.exists()
    server.faults = Faults()
    tqcodec.fetch(f"{server.url}/m.tqc", path)
    assert path.read_bytes() == other


def test_kills_cost_nothing(server: Server, data: bytes, tmp_path: Path) -> None:
    """Killed at random moments, the process has kept what had come."""
    path = tmp_path / "m.tqc"
    server.faults = Faults(rate=30_000.0)
    code = "import sys, tqcodec; tqcodec.fetch(sys.argv[1], sys.argv[2])"
    command = [sys.executable, "-c", code, f"{server.url}/m.tqc", str(path)]
    draw, kills = random.Random(0), 0
    while not path.exists():
        with subprocess.Popen(command) as process:
            before = len(server.requests)
            while len(server.requests) == before and process.poll() is None:
                time.sleep(0.01)
            limit = time.monotonic() + 0.3 + draw.random() if kills < 4 else time.monotonic() + 60
            while process.poll() is None and time.monotonic() < limit:
                time.sleep(0.01)
            if process.poll() is None:
                process.kill()
                kills += 1
            assert process.wait() in (0, -signal.SIGKILL)
    assert kills == 4
    assert path.read_bytes() == data
    in_flight = 2 * (1 << 14)  # bytes that were sent but had not arrived
    assert server.sent <= len(data) + kills * (HEADER_SIZE + in_flight)


def test_interrupted(server: Server, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.tqc"
    server.faults = Faults(rate=30_000.0)
    command = [sys.executable, "-m", "tqcodec", "fetch", f"{server.url}/m.tqc", "-o", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while server.sent < 90_000:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 130
        assert process.stderr is not None
        assert process.stderr.read() == "tqcodec: interrupted\n"
    assert not path.exists()
    server.faults = Faults()
    server.reset()
    tqcodec.fetch(f"{server.url}/m.tqc", path)
    assert path.read_bytes() == data
    assert server.sent < len(data) - 50_000


# Parts of a file


@pytest.mark.parametrize(
    "patterns",
    [
        "layer3.*",
        "*.bias",
        "*.steps",
        "large",
        ["layer0.weight", "tied.*"],
        ["again.*", "tied.*"],
        ["tied.bias", "layer5.bias"],
        "*",
    ],
    ids=str,
)
def test_some_tensors(
    patterns: Any, server: Server, data: bytes, arrays: Arrays, tmp_path: Path
) -> None:
    from fnmatch import fnmatchcase

    path, whole = tmp_path / "some.tqc", tqcodec.decode(data)
    tqcodec.fetch(f"{server.url}/m.tqc", path, only=patterns)
    tqcodec.verify(path)
    found = tqcodec.load(path)
    given_ = [patterns] if isinstance(patterns, str) else patterns
    wanted = [name for name in arrays if any(fnmatchcase(name, one) for one in given_)]
    assert list(found) == wanted
    assert all(found[name].tobytes() == whole[name].tobytes() for name in wanted)
    with tqcodec.open(path) as file:
        provenance = file.container.directory.provenance
        kinds = {e.name: (e.kind, e.snr) for e in file.container.directory.entries}
    assert provenance.endswith(f" part={len(wanted)}/{len(arrays)}")
    assert len(provenance) <= 70
    source = Container.of(data).directory
    for entry in source.entries:
        if entry.name in kinds and entry.same_as is None:
            assert kinds[entry.name] == (entry.kind, entry.snr)
    if patterns == "layer3.*":
        assert server.sent < (1 << 16) + 20_000
        assert path.stat().st_size < 20_000


@settings(max_examples=20)
@given(network=networks(10), draw=st.randoms())
def test_any_tensors_of_any_network(network: Network, draw: random.Random) -> None:
    import tempfile

    tensors = network.tensors()
    data = tqcodec.encode(tensors, tqcodec.Settings(snr=15, effort=1))
    whole = tqcodec.decode(data)
    names = draw.sample(sorted(tensors), draw.randrange(1, len(tensors) + 1))
    escaped = ["".join(f"[{c}]" if c in "*?[" else c for c in name) for name in names]
    with tempfile.TemporaryDirectory() as folder, Server({"/m.tqc": data}) as server:
        path = Path(folder) / "some.tqc"
        tqcodec.fetch(f"{server.url}/m.tqc", path, only=escaped)
        found = tqcodec.load(path)
    assert set(found) == set(names)
    assert all(found[name].tobytes() == whole[name].tobytes() for name in names)


def test_parts_are_resumed_as_well(server: Server, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "some.tqc"
    tqcodec.fetch(f"{server.url}/m.tqc", path, only="layer*")
    whole = path.read_bytes()
    path.rename(part_of(path))
    server.reset()
    tqcodec.fetch(f"{server.url}/m.tqc", path, only="layer*")
    assert path.read_bytes() == whole
    assert server.sent == 1 << 16
    part_of(path).write_bytes(whole[:-3000])
    server.reset()
    tqcodec.fetch(f"{server.url}/m.tqc", path, only="layer*")
    assert path.read_bytes() == whole
    assert (1 << 16) + 3000 <= server.sent < (1 << 16) + 3010
    part_of(path).write_bytes(whole)
    tqcodec.fetch(f"{server.url}/m.tqc", path, only="layer0*")
    assert len(tqcodec.load(path)) == 3


def test_what_cannot_be_fetched(server: Server, tmp_path: Path) -> None:
    url, path = f"{server.url}/m.tqc", tmp_path / "m.tqc"
    with pytest.raises(EncodeError, match=r"no tensor matches 'x' or 'y\*'"):
        tqcodec.fetch(url, path, only=["x", "y*"])
    with pytest.raises(OSError, match="not an address"):
        tqcodec.fetch(str(path), path)
    with pytest.raises(OSError, match="no such folder"):
        tqcodec.fetch(url, tmp_path / "none" / "m.tqc")
    with pytest.raises(TypeError, match="remote"):
        tqcodec.fetch(url, path, remote={})  # type: ignore[arg-type]


def test_from_a_file_system(data: bytes, tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe_file("/f.tqc", data)
    tqcodec.fetch("memory://f.tqc", tmp_path / "f.tqc")
    assert (tmp_path / "f.tqc").read_bytes() == data


def test_the_command(
    server: Server,
    data: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"{server.url}/m.tqc"
    assert main(["fetch", f"{url}?signature=x"]) == 2
    capsys.readouterr()
    assert main(["fetch", url]) == 0
    assert Path("m.tqc").read_bytes() == data
    assert capsys.readouterr().out.startswith("m.tqc: 28 tensors")
    assert main(["fetch", url]) == 2
    assert "-f overwrites it" in capsys.readouterr().err
    assert main(["fetch", url, "-o", "-"]) == 2
    assert main(["fetch", url, "-f", "--only", "large", "--only", "*.steps", "--json"]) == 0
    assert '"encoder": "tqcodec' in capsys.readouterr().out
    assert len(tqcodec.load("m.tqc")) == 9


def test_the_bar(server: Server, tmp_path: Path) -> None:
    """On a terminal: how much, how fast, how long yet."""
    server.faults = Faults(rate=100_000.0)
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    command = [sys.executable, "-m", "tqcodec", "fetch", f"{server.url}/m.tqc"]
    with subprocess.Popen(command, stderr=follower, cwd=tmp_path) as process:
        os.close(follower)
        shown = b""
        with suppress(OSError):  # the other end is closed
            while part := os.read(leader, 1000):
                shown += part
        assert process.wait(60) == 0
    os.close(leader)
    assert b"fetch:" in shown
    assert re.search(rb"\[0\d:\d\d<0\d:\d\d, +[\d.]+kB/s\]", shown), shown
