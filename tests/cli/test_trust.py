"""No input, stream or path gives a traceback, loses an input or leaves anything behind.

Argument lists and damaged files of every kind that the command line reads, drawn at random, run in
this process; `benchmarks/trust` does the same at length and in processes of their own.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.trust import __main__ as trust
from benchmarks.trust import machine
from benchmarks.trust.inputs import (
    COMMANDS,
    FLAGS,
    NAMES,
    NUMBERS,
    OTHERS,
    TEXTS,
    VERBS,
    WITH_NAME,
    WITH_NUMBER,
    damaged,
    make_files,
    read_all,
)
from tqcodec.cli import commands
from tqcodec.common.atomic import TEMPORARY

CODES = {0, 1, 2, 3, 4}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of every kind that the command line reads."""
    folder = tmp_path_factory.mktemp("originals")
    make_files(folder)
    return folder


class Place:
    """A copy of the originals to work in."""

    def __init__(self, originals: Path, folder: Path) -> None:
        self.folder = folder
        self.files = read_all(originals)
        shutil.copytree(originals, folder, dirs_exist_ok=True)

    def restore(self) -> None:
        for name in read_all(self.folder).keys() - self.files.keys():
            (self.folder / name).unlink()
        for name, data in self.files.items():
            if not (self.folder / name).is_file() or (self.folder / name).read_bytes() != data:
                (self.folder / name).write_bytes(data)


@pytest.fixture(scope="module")
def place(originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    before = Path.cwd()
    os.chdir(folder)
    yield Place(originals, folder)
    os.chdir(before)


class Stream(io.BytesIO):
    """Standard input or output of a run; a broken one fails."""

    def __init__(self, data: bytes = b"", broken: bool = False) -> None:
        super().__init__(data)
        self.broken = broken

    def read(self, *arguments: Any) -> bytes:
        if self.broken:
            raise OSError(5, "Input/output error")
        return super().read(*arguments)

    def write(self, data: Any) -> int:
        if self.broken:
            raise OSError(28, "No space left on device")
        return super().write(data)


def run(arguments: list[str], stdin: bytes = b"", broken: bool = False) -> tuple[int, str]:
    """Exit code and standard error of a command in this process."""
    errors = io.StringIO()
    output = io.TextIOWrapper(Stream(broken=broken), encoding="utf-8")
    given_input = io.TextIOWrapper(Stream(stdin, broken), encoding="utf-8")
    before, sys.stdin = sys.stdin, given_input
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            code = commands.main(arguments)
        with contextlib.suppress(OSError):
            output.detach()
    finally:
        sys.stdin = before
    return code, errors.getvalue()


def check(arguments: list[str], stdin: bytes = b"", broken: bool = False) -> int:
    code, errors = run(arguments, stdin, broken)
    assert code in CODES, (arguments, code, errors)
    assert "Traceback" not in errors, (arguments, errors)
    assert "\x1b" not in errors, (arguments, errors)
    assert (code == 0) or errors.strip(), (arguments, "fails without a word")
    assert all(line.startswith("tqcodec: ") for line in errors.splitlines()), (arguments, errors)
    left = [str(p) for p in Path.cwd().rglob(f"{TEMPORARY}*")]
    assert not left, (arguments, left)
    return code


names = st.sampled_from(NAMES)
options = st.one_of(
    st.sampled_from(FLAGS).map(lambda flag: [flag]),
    st.tuples(st.sampled_from(WITH_NUMBER), st.sampled_from(NUMBERS)).map(list),
    st.tuples(st.sampled_from(WITH_NAME), names).map(list),
    st.sampled_from(OTHERS),
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    verb=st.sampled_from(VERBS),
    inputs=st.lists(names, max_size=2),
    chosen=st.lists(options, max_size=5),
    stdin=st.sampled_from([b"", b"rubbish", "m.safetensors", "m.tqc"]),
    broken=st.booleans(),
)
def test_any_arguments(
    place: Place, verb: str, inputs: list[str], chosen: list[list[str]], stdin: Any, broken: bool
) -> None:
    place.restore()
    given_input = place.files[stdin] if isinstance(stdin, str) else stdin
    check([verb, *inputs, *(word for option in chosen for word in option)], given_input, broken)
    if "-f" not in [word for option in chosen for word in option]:
        after = read_all(place.folder)
        assert {name: after.get(name) for name in place.files} == place.files


@st.composite
def damage(draw: st.DrawFn) -> tuple[str, int, int, bytes]:
    """What to do to a file, where, how far, and with what."""
    kind = draw(st.sampled_from(["cut", "flip", "write", "insert", "whole"]))
    place, length = draw(st.integers(0, 1 << 20)), draw(st.integers(0, 64))
    return kind, place, length, draw(st.binary(max_size=16))


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damaged_files(place: Place, data: st.DataObject) -> None:
    place.restore()
    name = data.draw(st.sampled_from(list(COMMANDS)))
    command = data.draw(st.sampled_from(COMMANDS[name])).split()
    what = damaged(place.files[name], data.draw(damage()))
    Path(name).write_bytes(what)
    code = check(command, what)
    assert Path(name).read_bytes() == what
    if code:
        assert not [p for p in Path.cwd().glob("new.*") if p.suffix != ".csv"], (command, code)


@pytest.mark.parametrize("name", list(COMMANDS))
@pytest.mark.parametrize("content", [*TEXTS[:3], "other"])
def test_files_that_are_something_else(place: Place, name: str, content: str) -> None:
    place.restore()
    for command in COMMANDS[name]:
        for other in place.files if content == "other" else [name]:
            if other == name and content == "other":
                continue
            what = place.files[other] if content == "other" else content.encode()
            Path(name).write_bytes(what)
            check([*command.split(), "-f"] if "-o" in command else command.split(), what)
    place.restore()


# The long run.

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> trust.Cases:
    return trust.Cases(tmp_path_factory.mktemp("cases"), 0)


@linux
def test_a_long_run_that_was_killed_goes_on(
    cases: trust.Cases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "Cases", lambda *_: cases)
    out = tmp_path / "out"

    def run(calls: int) -> list[str]:
        arguments = ["--seed", "5", "--out", str(out), "--runs", "2", "--calls", str(calls)]
        assert trust.main(arguments) == 0
        return out.read_text().splitlines()

    some = run(20)
    out.write_text("\n".join([*some, some[0][:40]]))  # the last line was not finished
    more = run(30)
    assert more[:22] == some
    done = [(line["case"], line["number"]) for line in map(json.loads, more)]
    assert done == [*(("run", n) for n in range(2)), *(("call", n) for n in range(30))]


def wrong_type() -> None:
    raise TypeError("unsupported operand")


def changed(array: Any) -> None:
    array[0] = 3


def left() -> None:
    Path(f"{TEMPORARY}1").touch()


@linux
@pytest.mark.parametrize(
    ("function", "arguments", "fault"),
    [
        (wrong_type, [], "TypeError at test_trust.py"),
        (changed, [np.ones(2)], "an argument has changed"),
        (left, [], "is left"),
        (lambda: 1 / 0, [], "ZeroDivisionError"),
    ],
)
def test_the_long_run_finds_faults_of_calls(
    function: Callable[..., Any],
    arguments: list[Any],
    fault: str,
    cases: trust.Cases,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert cases.call(0)["faults"] == []
    monkeypatch.setattr(trust, "draw_call", lambda *_: trust.Call("x", function, arguments))
    assert [fault in one for one in cases.call(0)["faults"]] == [True]


FAULTY = """
import os, subprocess, sys
from pathlib import Path
if "info" in sys.argv:
    Path("m.tqc").write_bytes(b"")
    Path(os.environ["TMPDIR"], "x").touch()
    subprocess.Popen(["sleep", "100"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print("oh", file=sys.stderr)
    sys.exit(2)
if "verify" in sys.argv:
    raise RuntimeError
Path("new.tqc").write_bytes(b"TQC")
"""


@linux
@pytest.mark.parametrize(
    ("words", "faults"),
    [
        ("info m.tqc", ["process", "x is left in the folder", "says 'oh'", "'m.tqc' has changed"]),
        ("verify m.tqc", ["traceback", "says 'Traceback"]),
        ("encode m.safetensors -o new.tqc", ["output 'new.tqc': MalformedError"]),
        ("encode m.safetensors -o other.tqc", ["'new.tqc' is left", "no output 'other.tqc'"]),
    ],
)
def test_the_long_run_finds_faults_of_commands(
    words: str,
    faults: list[str],
    cases: trust.Cases,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "tqcodec").mkdir()
    (tmp_path / "tqcodec/__main__.py").write_text(FAULTY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(machine, "GRACE", 0.1)
    run = machine.Run("x", words.split())
    found = machine.execute(run, cases.files, tmp_path)["faults"]
    assert len(found) == len(faults), found
    assert all(part in one for part, one in zip(faults, found, strict=True)), found
