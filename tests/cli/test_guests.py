"""Code of the user's that leaves the process otherwise than it found it, or fails late."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import tqcodec
import tqcodec.torch
from tqcodec.cli import commands

CODE = """
import os, sys, warnings
import torch
from torch import nn

def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 5))

def elsewhere():
    os.chdir("other")
    return plain()

class Elsewhere(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = plain()
    def forward(self, x):
        os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), "other"))
        return self.inner(x)

def wandering():
    return Elsewhere()

def printing():
    print("loading", flush=False)
    os.system("echo shell")
    return plain()

class Printing(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = plain()
    def forward(self, x):
        print("forward")
        return self.inner(x)

def speaking():
    return Printing()

def strict():
    warnings.simplefilter("error")
    return plain()

def closing():
    sys.stdout.close()
    return plain()

def without():
    sys.stdout = None
    return plain()

class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.calls = plain(), 0
    def forward(self, x):
        self.calls += 1
        if self.calls > int(os.environ["CALLS"]):
            raise RuntimeError("no more")
        return self.inner(x)

def late():
    return Late()

def batches():
    torch.manual_seed(1)
    return [torch.randn(8, 32) for _ in range(4)]
"""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
SHOW = warnings.showwarning


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path = tmp_path / "folder"
    tmp_path.mkdir()
    (tmp_path / "net.py").write_text(CODE)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.tqc").write_bytes(b"precious")
    (tmp_path / "other" / "x.npz").write_bytes(b"precious")
    return tmp_path


def run(folder: Path, *arguments: str, **environment: str) -> tuple[int, bytes, str]:
    """Exit code, standard output and standard error of a command, in a fork: torch is there."""
    out, err = folder.parent / "out", folder.parent / "err"
    child = os.fork()
    if not child:
        try:
            os.chdir(folder)
            os.environ.update(environment)
            for number, path in ((1, out), (2, err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
            sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
            warnings.resetwarnings()
            warnings.showwarning = SHOW
            code = commands.main(list(arguments))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        finally:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), out.read_bytes(), err.read_text()


def encoded(network: str, *options: str) -> list[str]:
    return ["encode", "--model", f"net.py:{network}", "-e", "1", *options]


@pytest.mark.parametrize("network", ["elsewhere", "wandering"])
def test_names_of_files_stay_those_of_the_user(network: str, folder: Path) -> None:
    data = ["--data", "net.py:batches"]
    code, _, said = run(folder, *encoded(network, *data, "-o", "x.tqc"))
    assert code == 0, said
    assert len(tqcodec.load(folder / "x.tqc")) == 4
    code, _, said = run(folder, "calibrate", "--model", f"net.py:{network}", *data, "-o", "x.npz")
    assert code == 0, said
    assert len(tqcodec.Statistics.load(folder / "x.npz")) == 2
    assert {path.read_bytes() for path in (folder / "other").iterdir()} == {b"precious"}


@pytest.mark.parametrize("network", ["printing", "speaking", "closing", "without"])
def test_standard_output_is_for_results(network: str, folder: Path) -> None:
    options = ["--data", "net.py:batches", "--no-tune"]
    code, out, said = run(folder, *encoded(network, *options, "-o", "-"))
    assert code == 0, said
    assert len(tqcodec.decode(out)) == 4
    printed = {"printing": ["loading", "shell"], "speaking": ["forward"]}.get(network, [])
    assert set(printed) <= set(said.splitlines())
    code, out, said = run(folder, *encoded(network, *options, "-o", "x.tqc", "--json"))
    assert code == 0, said
    assert json.loads(out)["output"] == "x.tqc"
    code, out, said = run(
        folder,
        "eval",
        "x.tqc",
        "--model",
        f"net.py:{network}",
        "--data",
        "net.py:batches",
        "--json",
    )
    assert code == 0, said
    assert json.loads(out)["file"] == "x.tqc"


def test_our_warnings_are_no_errors(folder: Path) -> None:
    code, _, said = run(
        folder, *encoded("strict", "--data", "none", "--bits", "1.9", "-o", "x.tqc")
    )
    assert code == 0, said
    assert "tqcodec: warning: " in said


@pytest.mark.parametrize("calls", [0, 3, 6, 9, 12])
def test_networks_that_fail_late_are_one_line(calls: int, folder: Path) -> None:
    options = ["--data", "net.py:batches", "-o", "x.tqc"]
    code, _, said = run(folder, *encoded("late", *options), CALLS=str(calls))
    if code:
        assert (code, said) == (2, "tqcodec: net.py:late: RuntimeError: no more\n")
        assert not (folder / "x.tqc").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["encode", "w.npz", "-o", ""],
        ["encode", ""],
        ["decode", "w.tqc", "-o", ""],
        ["verify", "w.tqc", ""],
        ["encode", "--model", "", "-o", "x.tqc"],
        ["encode", "--model", "net.py:plain", "--data", "", "-o", "x.tqc"],
        ["encode", "w.npz", "--statistics", ""],
    ],
)
def test_empty_names(arguments: list[str], folder: Path) -> None:
    np.savez(folder / "w.npz", w=np.zeros((8, 8), np.float32))
    tqcodec.save({"w": np.zeros((8, 8), np.float32)}, folder / "w.tqc")
    before = sorted(folder.iterdir())
    code, _, said = run(folder, *arguments)
    assert code == 2
    assert said.startswith("tqcodec: ") and said.count("\n") == 1
    assert "is empty" in said
    assert sorted(folder.iterdir()) == before
