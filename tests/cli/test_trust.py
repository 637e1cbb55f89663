"""No input, stream or path gives a traceback, loses an input or leaves anything behind.

Argument lists and damaged files of every kind that the command line reads, drawn at random, run in
this process; `benchmarks/trust.py` does the same at length and in processes of their own.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

import tqcodec
import tqcodec.torch
from tqcodec.cli import commands
from tqcodec.common.atomic import TEMPORARY

CODES = {0, 1, 2, 3, 4}

CODE = """
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 12), nn.ReLU(), nn.Linear(12, 5))

def batches():
    return [(torch.rand(4, 3, 4, 4), torch.tensor([0, 1, 2, 3])) for _ in range(2)]

def broken():
    raise RuntimeError("two\\nlines \\x1b[1mbold\\x1b[0m")

def stops():
    raise SystemExit(3)

def number():
    return 3
"""


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of every kind that the command line reads."""
    folder = tmp_path_factory.mktemp("originals")
    rng = np.random.default_rng(0)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(48, 12), torch.nn.ReLU(), torch.nn.Linear(12, 5)
    )
    state = model.state_dict()
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    save_file(arrays, folder / "m.safetensors", {"by": "a test"})
    save_file(arrays, folder / "s-1.safetensors")
    index = {"weight_map": dict.fromkeys(arrays, "s-1.safetensors")}
    (folder / "s.safetensors.index.json").write_text(json.dumps(index))
    np.savez(folder / "a.npz", **arrays)
    torch.save({"state_dict": state, "epoch": 3}, folder / "c.pt")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"a": state, "b": state}, folder / "two.bin")
    tqcodec.torch.save(model, folder / "m.tqc", tqcodec.Settings(quality=80, effort=1))
    tqcodec.torch.save(model, folder / "exact.tqc", tqcodec.Settings(lossless=True))
    batches = [torch.rand(4, 3, 4, 4), torch.rand(4, 3, 4, 4)]
    tqcodec.torch.calibrate(model, batches).save(folder / "stats.npz")
    np.savez(folder / "data.npz", images=rng.normal(size=(8, 3, 4, 4)).astype("f4"))
    (folder / "net.py").write_text(CODE)
    (folder / "images").mkdir()
    for i in range(3):
        image = Image.fromarray(rng.integers(0, 255, (9, 7, 3), np.uint8))
        image.save(folder / "images" / f"{i}.png")
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        archive.write(folder / "images" / "0.png", "0.png")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Place:
    """A copy of the originals to work in."""

    def __init__(self, originals: Path, folder: Path) -> None:
        self.folder = folder
        self.files = files_of(originals)
        shutil.copytree(originals, folder, dirs_exist_ok=True)

    def restore(self) -> None:
        for name in files_of(self.folder).keys() - self.files.keys():
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


NAMES = [
    "m.safetensors", "s.safetensors.index.json", "s-1.safetensors", "a.npz", "c.pt", "old.pth",
    "two.bin", "m.tqc", "exact.tqc", "stats.npz", "data.npz", "images", "images.zip", "net.py",
    "-", "", ".", "..", "no/such", "no.tqc", "new.safetensors", "new.npz", "new.pt", "new.html",
    "new.png", "new.tqc", "m.tqc/x", "/dev/null", "a\0b", "\udcff.npz", "x" * 300, "images/0.png",
    "net.py:network", "net.py:batches", "net.py:broken", "net.py:stops", "net.py:number",
    "net.py:nothing", "no.py:network", "images.safetensors", "-x", "--", "ä\n.tqc",
]  # fmt: skip
NUMBERS = ["0", "1", "2", "-1", "nan", "inf", "1e400", "3.5", "", "x", "9" * 30, "500", "2k", "1Ki"]
VERBS = [
    "encode", "decode", "info", "verify", "dump", "report", "calibrate", "eval", "sweep", "nothing",
    "--version", "--help",
]  # fmt: skip
FLAGS = ["-f", "--json", "--lossless", "--dry-run", "--no-tune", "--help", "--unknown"]
WITH_NUMBER = [
    "--bits", "--max-size", "-q", "--snr", "--side-bits", "-e", "--limit", "--images", "--batch",
    "--size", "--mean", "--std", "--probes",
]  # fmt: skip
WITH_NAME = ["-o", "--statistics", "--model", "--data", "--key", "--device", "--metadata", "--rule"]

names = st.sampled_from(NAMES)
options = st.one_of(
    st.sampled_from(FLAGS).map(lambda flag: [flag]),
    st.tuples(st.sampled_from(WITH_NUMBER), st.sampled_from(NUMBERS)).map(list),
    st.tuples(st.sampled_from(WITH_NAME), names).map(list),
    st.sampled_from(
        [["--rule", "*=lossless"], ["--rule", "*=bits:2"], ["--metadata", "a=b"], ["-j", "0"],
         ["--metadata", "=\udcff"], ["--key", "a"], ["--transform", "dct"], ["--payload", "fixed"]]
    ),
)  # fmt: skip


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
        after = files_of(place.folder)
        assert {name: after.get(name) for name in place.files} == place.files


COMMANDS = {
    "m.safetensors": ["encode m.safetensors -o new.tqc -e 1", "encode - -o new.tqc -e 1"],
    "s.safetensors.index.json": ["encode s.safetensors.index.json -o new.tqc -e 1"],
    "s-1.safetensors": ["encode s.safetensors.index.json -o new.tqc -e 1"],
    "a.npz": ["encode a.npz -o new.tqc -e 1"],
    "c.pt": ["encode c.pt -o new.tqc -e 1", "encode c.pt --key state_dict -o new.tqc -e 1"],
    "old.pth": ["encode old.pth -o new.tqc -e 1"],
    "two.bin": ["encode two.bin --key a -o new.tqc -e 1"],
    "m.tqc": [
        "decode m.tqc -o new.npz", "decode m.tqc -o new.pt", "decode - -o new.safetensors",
        "info m.tqc", "info m.tqc --json", "dump m.tqc", "verify m.tqc --json", "verify - m.tqc",
        "report m.tqc -o new.png", "info m.tqc --statistics stats.npz",
        "eval m.tqc --model net.py:network --data data.npz",
    ],
    "exact.tqc": ["decode exact.tqc -o new.safetensors", "info exact.tqc", "dump exact.tqc"],
    "stats.npz": [
        "encode c.pt --statistics stats.npz -o new.tqc -e 1", "info m.tqc --statistics stats.npz",
    ],
    "data.npz": ["calibrate --model net.py:network --data data.npz -o new.npz"],
    "images/1.png": ["calibrate --model net.py:network --data images --size 4 -o new.npz"],
    "images.zip": ["calibrate --model net.py:network --data images.zip --size 4 -o new.npz"],
}  # fmt: skip


@st.composite
def damage(draw: st.DrawFn) -> tuple[str, int, int, bytes]:
    """What to do to a file, where, how far, and with what."""
    kind = draw(st.sampled_from(["cut", "flip", "write", "insert", "whole"]))
    place, length = draw(st.integers(0, 1 << 20)), draw(st.integers(0, 64))
    return kind, place, length, draw(st.binary(max_size=16))


def damaged(data: bytes, how: tuple[str, int, int, bytes]) -> bytes:
    kind, at, length, new = how
    at %= max(1, len(data))
    if kind == "cut":
        return data[:at]
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ (1 << length % 8)]) + data[at + 1 :] if data else data
    if kind == "write":
        return data[:at] + new + data[at + len(new) :]
    return data[:at] + new + data[at:] if kind == "insert" else new


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


WORDS = [
    "",
    "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
    "<!DOCTYPE html>",
]


@pytest.mark.parametrize("name", list(COMMANDS))
@pytest.mark.parametrize("content", [*WORDS, "other"])
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
