"""Worker processes: results in order, errors passed on, nothing left whatever ends the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import tqcodec
from tqcodec.encoder.workers import Workers, kept, workers_for
from tqcodec.errors import EncodeError, MalformedError

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")


def children(parent: int) -> set[int]:
    """Live processes that a process began."""
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state, ppid = (place / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if ppid == str(parent) and state != "Z":
            found.add(int(place.name))
    return found


def session(leader: int) -> set[int]:
    """Live processes of the session that a process began."""
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, sid = (place / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if sid == str(leader) and state != "Z":
            found.add(int(place.name))
    return found


def waited_for(condition: Any) -> bool:
    """Whether a condition comes true within what the slowest machine may take."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_results_come_in_order_and_from_other_processes() -> None:
    with kept():
        for _ in range(2):
            with workers_for(3) as workers:
                assert list(workers.map(divmod, [(n, 7) for n in range(40)])) == [
                    divmod(n, 7) for n in range(40)
                ]
            with workers_for(3) as workers:
                used = set(workers.map(os.getpid, [()] * 20))
                assert os.getpid() not in used
                assert len(used) <= 3


@linux
def test_no_more_processes_than_calls_and_none_afterwards() -> None:
    before = children(os.getpid())
    with workers_for(1000) as workers:
        assert list(workers.map(abs, [(-1,), (2,)])) == [1, 2]
        assert len(children(os.getpid()) - before) == 2
    assert children(os.getpid()) == before
    rng = np.random.default_rng(0)
    tensors = {f"w{i}": rng.normal(size=(64, 64)).astype("f4") for i in range(4)}
    one = tqcodec.encode(tensors, tqcodec.Settings(bits=3))
    assert tqcodec.encode(tensors, tqcodec.Settings(bits=3, workers=3)) == one
    assert children(os.getpid()) == before


class OddError(Exception):
    """Is not made again from what it has, as pickle does it."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def fail_oddly() -> None:
    raise OddError(1, 2)


@linux
@pytest.mark.parametrize(
    ("function", "arguments", "expected", "message"),
    [
        (tqcodec.decode, (b"rubbish",), MalformedError, "header.signature"),
        (divmod, (1, 0), ZeroDivisionError, "zero"),
        (fail_oddly, (), RuntimeError, "OddError: 1 and 2"),
        (os._exit, (3,), EncodeError, "exit code 3"),
        (signal.raise_signal, (signal.SIGKILL,), EncodeError, "SIGKILL"),
    ],
)
def test_errors_of_workers(
    function: Any, arguments: tuple[Any, ...], expected: type[Exception], message: str
) -> None:
    before = children(os.getpid())
    with pytest.raises(expected, match=message), workers_for(2) as workers:
        list(workers.map(function, [arguments] * 3))
    assert children(os.getpid()) == before


def test_what_workers_print_is_no_result(capfd: pytest.CaptureFixture[str]) -> None:
    with workers_for(2) as workers:
        assert list(workers.map(os.system, [("echo heard",)] * 2)) == [0, 0]
    assert capfd.readouterr() == ("", "heard\n" * 2)


def test_there_must_be_a_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(EncodeError, match="no Python"):
        Workers(2)


@linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP])
def test_workers_end_with_their_parent(number: signal.Signals, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    save_file(
        {f"l{i}.weight": rng.normal(size=(256, 256)).astype("f4") for i in range(120)},
        tmp_path / "m.safetensors",
    )
    shared = set(Path("/dev/shm").iterdir())
    command = [sys.executable, "-m", "tqcodec", "encode", "m.safetensors", "-j", "2", "--bits", "3"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        assert waited_for(lambda: len(session(process.pid)) == 3 or process.poll() is not None)
        process.send_signal(number)
        assert process.stderr is not None
        said = process.stderr.read()
        code = process.wait(60)
        assert code == (130 if number == signal.SIGINT else -number)
        assert said == (b"tqcodec: interrupted\n" if number == signal.SIGINT else b"")
        assert waited_for(lambda: not session(process.pid))
    finally:
        for one in session(process.pid):
            os.kill(one, signal.SIGKILL)
        process.communicate()
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    assert set(Path("/dev/shm").iterdir()) <= shared
