"""Code of the user's that leaves the process otherwise than it found it, or fails late."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from forks import Forks

import tqcodec

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

def c_code():
    import ctypes
    ctypes.CDLL(None).printf(b"printf\\n")
    return plain()

def moving():
    os.chdir("other")
    return batches()

def narrow():
    return [torch.randn(8, 31) for _ in range(4)]

def whole():
    return [torch.zeros(8, 32, dtype=torch.long) for _ in range(4)]

def batches():
    torch.manual_seed(1)
    return [torch.randn(8, 32) for _ in range(4)]
"""

Ran = tuple[int, bytes, str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path = tmp_path / "folder"
    tmp_path.mkdir()
    (tmp_path / "net.py").write_text(CODE)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.tqc").write_bytes(b"precious")
    (tmp_path / "other" / "x.npz").write_bytes(b"precious")
    return tmp_path


def run(forks: Forks, folder: Path, *arguments: str, **environment: str) -> Ran:
    """Exit code, standard output and standard error of a command."""
    done = forks.command(*arguments, folder=folder, environment=environment)
    return done.code, done.out, done.err


def encoded(network: str, *options: str) -> list[str]:
    return ["encode", "--model", f"net.py:{network}", "-e", "1", *options]


@pytest.mark.parametrize("network", ["elsewhere", "wandering"])
def test_names_of_files_stay_those_of_the_user(network: str, folder: Path, forks: Forks) -> None:
    data = ["--data", f"net.py:{'moving' if network == 'elsewhere' else 'batches'}"]
    code, _, said = run(forks, folder, *encoded(network, *data, "-o", "x.tqc"))
    assert code == 0, said
    assert len(tqcodec.load(folder / "x.tqc")) == 4
    code, _, said = run(
        forks, folder, "calibrate", "--model", f"net.py:{network}", *data, "-o", "x.npz"
    )
    assert code == 0, said
    assert len(tqcodec.Statistics.load(folder / "x.npz")) == 2
    assert {path.read_bytes() for path in (folder / "other").iterdir()} == {b"precious"}


@pytest.mark.parametrize("network", ["printing", "speaking", "closing", "without", "c_code"])
def test_standard_output_is_for_results(network: str, folder: Path, forks: Forks) -> None:
    options = ["--data", "net.py:batches", "--no-tune"]
    code, out, said = run(forks, folder, *encoded(network, *options, "-o", "-"))
    assert code == 0, said
    assert len(tqcodec.decode(out)) == 4
    printed = {"printing": ["loading", "shell"], "speaking": ["forward"], "c_code": ["printf"]}
    assert set(printed.get(network, [])) <= set(said.splitlines())
    code, out, said = run(forks, folder, *encoded(network, *options, "-o", "x.tqc", "--json"))
    assert code == 0, said
    assert json.loads(out)["output"] == "x.tqc"
    code, out, said = run(
        forks,
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


def test_our_warnings_are_no_errors(folder: Path, forks: Forks) -> None:
    code, _, said = run(
        forks, folder, *encoded("strict", "--data", "none", "--bits", "1.9", "-o", "x.tqc")
    )
    assert code == 0, said
    assert "tqcodec: warning: " in said


@pytest.mark.parametrize("calls", [0, 3, 6, 9, 12])
def test_networks_that_fail_late_are_one_line(calls: int, folder: Path, forks: Forks) -> None:
    options = ["--data", "net.py:batches", "-o", "x.tqc"]
    code, _, said = run(forks, folder, *encoded("late", *options), CALLS=str(calls))
    assert (code, said) == (2, "tqcodec: net.py:late: RuntimeError: no more\n")
    assert not (folder / "x.tqc").exists()


@pytest.mark.parametrize("command", ["calibrate", "encode", "eval", "retrain"])
@pytest.mark.parametrize("data", ["narrow", "whole"])
def test_inputs_that_the_network_does_not_take_are_one_line(
    command: str, data: str, folder: Path, forks: Forks
) -> None:
    (folder / "x.tqc").write_bytes(tqcodec.encode({"w": np.eye(64, dtype=np.float32)}))
    options = ["--model", "net.py:plain", "--data", f"net.py:{data}"]
    more = {
        "calibrate": ["-o", "y.npz"],
        "encode": ["-e", "1", "-o", "y.tqc"],
        "eval": ["x.tqc"],
        "retrain": ["--epochs", "1", "--bits", "3", "-o", "y.tqc"],
    }
    code, _, said = run(forks, folder, command, *options, *more[command])
    assert (code, said.count("\n")) == (2, 1)
    assert "Traceback" not in said


@pytest.mark.parametrize("kind", ["fifo", "folder", "-", "null"])
def test_checkpoints_are_files(kind: str, folder: Path, forks: Forks) -> None:
    names = {"fifo": "pipe", "folder": "other", "-": "-", "null": "/dev/null"}
    os.mkfifo(folder / "pipe")
    options = [
        "--model",
        "net.py:plain",
        "--data",
        "net.py:batches",
        "--epochs",
        "1",
        "--bits",
        "3",
    ]
    for resume in ([], ["--resume"]):
        code, _, said = run(
            forks, folder, "retrain", *options, "-o", "y.tqc", "--checkpoint", names[kind], *resume
        )
        assert (code, said.count("\n")) == (2, 1)
        assert "a checkpoint is a file" in said


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
def test_empty_names(arguments: list[str], folder: Path, forks: Forks) -> None:
    np.savez(folder / "w.npz", w=np.zeros((8, 8), np.float32))
    tqcodec.save({"w": np.zeros((8, 8), np.float32)}, folder / "w.tqc")
    before = sorted(folder.iterdir())
    code, _, said = run(forks, folder, *arguments)
    assert code == 2
    assert said.startswith("tqcodec: ") and said.count("\n") == 1
    assert "is empty" in said
    assert sorted(folder.iterdir()) == before
