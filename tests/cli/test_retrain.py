"""``tqcodec retrain``: the command, its checkpoint through kills, its drawing, its refusals."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forks import Forks
from matplotlib.figure import Figure

import tqcodec.torch
from tqcodec.cli import commands
from tqcodec.errors import EncodeError
from tqcodec.torch import TrainingMoment
from tqcodec.torch.retraining.augment import Augmented

Run = Callable[..., tuple[int, str, str]]

CODE = """
import torch
from torch import nn

def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Conv2d(24, 48, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(48, 5),
    ).eval()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (64, 10, 10, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=pictures, labels=rng.integers(0, 5, 64))
    (tmp_path / "net.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = commands.main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


DATA = ("--data", "data.npz", "--mean", "0", "--std", "64")
COMMAND = ("retrain", "--model", "net.py:network", *DATA)
SIZE = ("--bits", "3", "--batch", "16")


def test_a_network_is_retrained(folder: Path, run: Run) -> None:
    more = ("--epochs", "3", "--mirror", "--crop", "2", "--plot", "curve.png", "--json")
    code, out, err = run(*COMMAND, *SIZE, *more, "-o", "small.tqc")
    assert code == 0
    told = [line.split(":")[1] for line in err.splitlines()]  # without a terminal a line an epoch
    assert told == [f" epoch {number} of 3" for number in (1, 2, 3)]
    found = json.loads(out)
    size = (folder / "small.tqc").stat().st_size
    assert found["bytes"] == size and found["bits_per_weight"] <= 3
    assert found["epochs"] == 3 and found["loss"] >= 0
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert run("verify", "small.tqc")[0] == 0
    assert "retrained" in run("info", "small.tqc")[1]
    # Only with the network's own form can it be trained on.
    assert run(*COMMAND, *SIZE, "--epochs", "1", "--no-inference", "-o", "other.tqc")[0] == 0
    variances = [tqcodec.torch.load(name)["1.running_var"] for name in ("small.tqc", "other.tqc")]
    assert torch.allclose(variances[0] + 1e-5, torch.ones(24))
    assert torch.equal(variances[1], torch.ones(24))  # as it was: never run in train mode


def test_a_short_training_is_kept(folder: Path, run: Run) -> None:
    """Soon after its begin and at its end, not after a minute alone."""
    more = (*SIZE, "--epochs", "2", "--checkpoint", "run.ckpt", "--resume", "-f", "-o", "a.tqc")
    code, _, err = run(*COMMAND, *more)
    assert code == 0 and "goes on" not in err
    written, first = (folder / "run.ckpt").stat().st_mtime_ns, (folder / "a.tqc").read_bytes()
    assert run(*COMMAND, *more)[0] == 0
    assert (folder / "a.tqc").read_bytes() == first
    assert (folder / "run.ckpt").stat().st_mtime_ns == written


# Keeps checkpoints as often as it can, and sends itself a signal when it has kept so many.
KILLED = """
import os, sys
import tqcodec.torch.retraining.checkpointing as checkpointing
from tqcodec.__main__ import main

number, left = int(sys.argv.pop(1)), int(sys.argv.pop(1))
keep = checkpointing.Checkpointer.keep

def kept(self):
    global left
    last = self._last
    keep(self)
    left -= self._last != last
    if not left:
        os.kill(os.getpid(), number)

checkpointing.EVERY, checkpointing.Checkpointer.keep = 0, kept
sys.exit(main())
"""


def test_kills_lose_little(folder: Path, forks: Forks) -> None:
    """Killed twice and resumed, it makes the file of a training that was left alone."""
    command = [*COMMAND, *SIZE, "--epochs", "12"]
    killed = [*command, "--checkpoint", "run.ckpt", "--resume", "-o", "killed.tqc"]
    for number, after, code in ((signal.SIGKILL, 2, -signal.SIGKILL), (signal.SIGINT, 1, 130)):
        found = forks.run(KILLED, str(int(number)), str(after), *killed, folder=folder)
        assert found.code == code
    hint = "run.ckpt is kept, --resume goes on from it, a minute back at most"
    assert found.err.endswith(f"tqcodec: interrupted: {hint}\n")
    assert "tqcodec: goes on at step" in found.err  # after the first kill
    assert not (folder / "killed.tqc").exists()
    for words in (killed, [*command, "-o", "whole.tqc"]):
        found = forks.command(*words, folder=folder)
        assert found.code == 0, found.err
    assert (folder / "killed.tqc").read_bytes() == (folder / "whole.tqc").read_bytes()
    assert not list(folder.glob(".tqc-*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "epochs"),
        (["--epochs", "1", "--resume"], "--checkpoint"),
        (["--epochs", "1", "--seed", "-1"], "--seed: '-1' is not a whole number from 0 to"),
        (["--epochs", "1", "--seed", str(1 << 64)], "--seed"),
        (["--epochs", "1", "--start", "none.tqc"], "none.tqc"),
        (["--epochs", "1", "--start", "old"], "start: "),
        (["--epochs", "1", "--start", "small.tqc", "-f"], "small.tqc"),
        (["--epochs", "1", "--rule", "no=exact", "--no-inference"], "matches no tensor"),
        (["--epochs", "1", "--crop", "-1"], "crop"),
        (["--epochs", "1", "--plot", "curve.pdf"], ".png"),
        (["--epochs", "1", "-o", "-"], "name one with -o"),
        (["--epochs", "1", "-o", "data.npz", "-f"], "the same file as the input"),
        (["--epochs", "1", "--checkpoint", "small.tqc", "-f"], "two outputs"),
        (["--epochs", "1", "--checkpoint", "net.py", "--resume"], "same file"),
        (["--epochs", "1", "--checkpoint", "old"], "exists; --resume goes on from it, -f"),
        (["--epochs", "1", "--plot", "old.png"], "old.png exists; -f overwrites it"),
        (["--epochs", "1", "--checkpoint", "old", "--resume"], "not a checkpoint"),
        (["--epochs", "1", "--payload", "fixed"], "--payload"),
    ],
)
def test_refusals(folder: Path, run: Run, arguments: list[str], message: str) -> None:
    for name in ("old", "old.png"):
        (folder / name).write_bytes(b"something else")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, _, err = run(*COMMAND, *SIZE, "-o", "small.tqc", *arguments)
    assert code == 2 and message in err and len(err.splitlines()) == 1, err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_training_starts_at_a_file(folder: Path, run: Run) -> None:
    words = [*COMMAND, "--batch", "16", "--bits", "5", "--epochs", "1"]
    assert run(*words, "-o", "first.tqc")[0] == 0
    before = (folder / "first.tqc").read_bytes()
    assert run(*words, "--start", "first.tqc", "-o", "first.tqc", "-f")[0] == 2
    assert run(*words, "--start", "first.tqc", "-o", "other.tqc")[0] == 0
    assert (folder / "first.tqc").read_bytes() == before
    assert run("verify", "other.tqc")[0] == 0


@pytest.mark.parametrize("losses", [[0.2, 0.21], [3.0, 0.001], [1.0], [0.0, 0.0]])
def test_the_drawing_has_numbers(losses: list[float]) -> None:
    """Whatever the loss spans, both axes have ticks; the target is drawn."""
    from tqcodec.cli import curve

    found: list[Figure] = []
    moments = [
        TrainingMoment(i + 1, len(losses), i + 1, loss, 1000, 2.0, 1.0, 0.0, None)
        for i, loss in enumerate(losses)
    ]

    def figure(**more: Any) -> Figure:
        found.append(Figure(**more))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curve, "Figure", figure)
        curve.draw_training(moments, "title", tqcodec.Settings(max_size=900))
    left, right = found[0].axes
    assert right.get_legend_handles_labels()[1] == ["target 1.8"]
    assert np.allclose(right.get_lines()[1].get_ydata(), 1.8)
    for axis in (left.yaxis, right.yaxis, left.xaxis):
        low, high = sorted(axis.get_view_interval())
        shown = [place for place in axis.get_majorticklocs() if low <= place <= high]
        labels = [label.get_text() for label in axis.get_majorticklabels()]
        assert shown and any(labels), axis


def test_pictures_are_moved_and_mirrored() -> None:
    """Each comes out as a crop of itself, mirrored or not, and all places are seen."""
    pictures = torch.arange(1, 1 + 200 * 2 * 4 * 5).reshape(200, 2, 4, 5).float()
    batches = [(pictures, None)]
    torch.manual_seed(0)
    ((found, _),) = list(Augmented(batches, 1, True))
    padded = torch.nn.functional.pad(pictures, (1, 1, 1, 1))
    seen = set()
    for one, whole in zip(found, padded, strict=True):
        crops = {(y, x): whole[:, y : y + 4, x : x + 5] for y in range(3) for x in range(3)}
        places = [
            (place, m)
            for place, crop in crops.items()
            for m in (False, True)
            if torch.equal(one, crop.flip(2) if m else crop)
        ]
        assert len(places) == 1
        seen |= set(places)
    assert len(seen) == 18
    ((same, _),) = list(Augmented(batches, 0, False))
    assert torch.equal(same, pictures)
    with pytest.raises(EncodeError, match="needs pictures"):
        next(iter(Augmented([(torch.zeros(2, 3), None)], 1, True)))
