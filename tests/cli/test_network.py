"""Commands that run a network, and files as small as a bound on what is lost allows."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tqcodec.torch
from tqcodec import EncodeError, EvaluationError, Settings
from tqcodec.cli import commands, curve
from tqcodec.torch import Comparison, Reference, Statistics, compare
from tqcodec.torch import inputs as inputs_module

Run = Callable[..., tuple[int, str, str]]

CODE = """
import torch
from torch import nn

def network(classes=7):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, classes))

def other():
    return network(8)

def deeper():
    return nn.Sequential(*network(), nn.Linear(7, 7))

def smaller():
    return network()[0]

def flat():
    return nn.BatchNorm1d(32)

class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("two\\nlines")

def broken():
    return Broken()

def alone():
    return torch.ones(4, 96)

def batches():
    yield torch.ones(3, 32)
"""
IMAGES, WEIGHTS = 80, 32 * 96 + 96 * 7
FAST = Settings(effort=1)


def network() -> nn.Module:
    scope: dict[str, Any] = {}
    exec(CODE, scope)
    model: nn.Module = scope["network"]().eval()
    return model


def inputs() -> torch.Tensor:
    return torch.randn(IMAGES, 32, generator=torch.Generator().manual_seed(2))


def labels() -> torch.Tensor:
    """What the network says, but for every fifth image."""
    with torch.no_grad():
        classes = network()(inputs()).argmax(1)
    classes[::5] = (classes[::5] + 1) % 7
    return classes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a network, data, and the network's file."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(CODE)
    np.savez("data.npz", x=inputs().numpy(), y=labels().numpy())
    np.savez("plain.npz", x=inputs().numpy())
    tqcodec.torch.save(network(), "net.tqc", Settings(bits=5, effort=1))
    return tmp_path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(command: str) -> tuple[int, str, str]:
        code = commands.main(command.split())
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


EVAL = "eval net.tqc --model net.py:network --data data.npz"
SWEEP = "sweep --model net.py:network --data data.npz -e 1 -o curve.png"


def test_eval_prints_what_compare_finds(run: Run, folder: Path) -> None:
    state = tqcodec.torch.load("net.tqc")
    wanted = compare(network(), state, [(inputs(), labels())])
    assert wanted.top1 is not None
    code, out, err = run(EVAL)
    assert (code, err) == (0, "")
    size = Path("net.tqc").stat().st_size
    assert out.startswith(f"net.tqc: {size} of ")
    assert "80 images, 95 % intervals\n" in out
    lines = [line.split("  ", 1)[0] for line in out.splitlines()[1:]]
    names = ["top-1, original", "top-1, decoded", "top-1, drop", "agreement", "KL divergence"]
    assert lines == [*names, "SNR of logits"]
    assert f"  [{wanted.kl.low:.4g}, {wanted.kl.high:.4g}]" in out

    code, out, err = run(f"{EVAL} --json --batch 80")
    document = json.loads(out)
    assert (code, err, document["images"], document["bytes"]) == (0, "", IMAGES, size)
    assert document["ratio"] == pytest.approx(document["decoded_bytes"] / size, abs=1e-4)
    assert document["bits_per_weight"] == pytest.approx(8 * size / WEIGHTS, abs=1e-3)
    for name in ("top1", "top1_decoded", "drop", "agreement", "kl", "snr"):
        one = getattr(wanted, name)
        assert document[name] == {"value": one.value, "low": one.low, "high": one.high}
    assert document["top1"]["value"] == 80


BOXES = """
from torch import nn
from net import network as scores

class Boxes(nn.Module):
    def __init__(self):
        super().__init__()
        self.scores = scores()

    def forward(self, x):
        found = self.scores(x)
        return found[:, None, :2], found[:, None, 2:]

def boxes():
    return Boxes()
"""


def test_networks_that_give_no_scores(run: Run, folder: Path) -> None:
    Path("boxes.py").write_text(BOXES)
    state = {f"scores.{name}": tensor for name, tensor in network().state_dict().items()}
    tqcodec.torch.save(state, "boxes.tqc", FOUR)
    code, out, err = run("eval boxes.tqc --model boxes.py:boxes --data data.npz")
    assert (code, err) == (0, "")
    assert [line.split("  ", 1)[0] for line in out.splitlines()[1:]] == ["SNR of outputs"]
    code, out, _ = run("eval boxes.tqc --model boxes.py:boxes --data data.npz --json")
    document = json.loads(out)
    assert code == 0 and document["snr"]["value"] > 10
    assert document["kl"]["value"] is None and document["top1"] is None
    sweep = SWEEP.replace("net.py:network", "boxes.py:boxes")
    assert run(f"{sweep} --bits 6,4")[0] == 0
    assert all(row["agreement"] == row["kl"] == row["kl_low"] == "" for row in table())
    first, second = (float(row["snr"]) for row in table())
    assert first > second + 6


def test_eval_without_labels_and_of_an_exact_file(run: Run, folder: Path) -> None:
    tqcodec.torch.save(network(), "net.tqc", Settings(lossless=True))
    plain = EVAL.replace("data.npz", "plain.npz")
    code, out, _ = run(f"{plain} --json --images 30")
    document = json.loads(out)
    assert (code, document["images"]) == (0, 30)
    assert document["top1"] is document["top1_decoded"] is document["drop"] is None
    assert document["snr"] == {"value": None, "low": None, "high": None}  # infinite
    assert document["kl"]["value"] == 0
    out = run(plain)[1]
    assert "top-1" not in out
    assert "SNR of logits  inf" in out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            EVAL.replace(":network", ":other"),
            "tensor '2.weight' has shape (7, 96), in the network (8, 96)",
        ),
        (EVAL.replace(":network", ":deeper"), "the network's tensor '3.weight' is not among"),
        (EVAL.replace(":network", ":smaller"), "the network's tensor 'weight' is not among"),
        (EVAL.replace("net.tqc", "broken.tqc"), "broken.tqc: No such file"),
        (EVAL.replace("data.npz", "net.py:batches") + " --limit 10", "limit"),
        (EVAL.replace("data.npz", "nothing.npz"), "nothing.npz: No such file"),
        (EVAL.replace("data.npz", "synthetic"), "synthetic is no data but a choice of `encode"),
        (SWEEP.replace("data.npz", "none") + " --bits 3", "none is no data but a choice of"),
        (EVAL.replace("data.npz", "net.py:alone"), "net.py:alone returned: one Tensor in place"),
        (EVAL + " --batch 0", "at least 1"),
        (EVAL + " --size 100000", "size must be at most 16384"),
        (SWEEP.replace(":network", ":broken") + " --bits 3", "RuntimeError: two"),
        (SWEEP + " --bits 3,x", "not numbers with commas"),
        (SWEEP, "--bits"),
        (SWEEP + " --bits 3,99", "bits is 99.0, not within"),
        (SWEEP.replace(".png", ".pdf") + " --bits 3", "curve.pdf: a curve is a .png file"),
        (SWEEP.replace(" curve.png", " -") + " --bits 3", "a curve is a .png file"),
        (SWEEP.replace("curve", "no/curve") + " --bits 3", "no such folder"),
        (SWEEP + " --bits 3 --statistics data.npz", "data.npz: not a file of statistics"),
        (SWEEP + " --bits 3 --statistics nothing.npz", "nothing.npz: No such file"),
        (SWEEP.replace("data.npz", "labels.npz") + " --bits 3", "labels of shape (80, 1)"),
    ],
)
def test_errors_are_one_line(run: Run, folder: Path, command: str, message: str) -> None:
    np.savez("labels.npz", x=inputs().numpy(), y=labels().numpy()[:, None])
    before = sorted(folder.iterdir())
    code, out, err = run(command)
    assert code == (4 if "--limit" in command else 2)
    assert out == ""
    assert err.startswith("tqcodec: ")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(p for p in folder.iterdir() if p.name != "__pycache__") == before


def test_a_file_with_too_many_tensors(run: Run, folder: Path) -> None:
    state = {**network().state_dict(), "more": torch.ones(3)}
    tqcodec.torch.save(state, "net.tqc", FAST)
    code, _, err = run(EVAL)
    assert (code, err) == (
        2,
        "tqcodec: the network has no tensor 'more': leave it out, or load with strict=False\n",
    )


def table() -> list[dict[str, str]]:
    with Path("curve.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_sweep(run: Run, folder: Path) -> None:
    code, out, err = run(f"{SWEEP} --bits 3,6,4.5")
    assert (code, err) == (0, "")
    assert Path("curve.png").read_bytes().startswith(b"\x89PNG")
    rows = table()
    assert [float(row["bits_asked"]) for row in rows] == [3, 6, 4.5]
    assert {row["encoder"] for row in rows} == {"data-free"}
    assert len(out.splitlines()) == len(rows) + 2
    for row in rows:
        data = tqcodec.torch.encode(network(), Settings(bits=float(row["bits_asked"]), effort=1))
        found = compare(network(), tqcodec.torch.decode(data), [(inputs(), labels())])
        assert int(row["bytes"]) == len(data)
        assert float(row["bits_per_weight"]) == pytest.approx(8 * len(data) / WEIGHTS, rel=1e-3)
        assert found.top1_decoded is not None
        assert found.drop is not None
        for name, value in {
            "top1": found.top1_decoded.value,
            "drop": found.drop.value,
            "agreement": found.agreement.value,
            "kl": found.kl.value,
            "kl_low": found.kl.low,
            "kl_high": found.kl.high,
        }.items():
            assert float(row[name]) == pytest.approx(value, rel=1e-3, abs=1e-9)
        assert float(row["seconds"]) > 0


def test_sweep_with_statistics_and_without_labels(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("calibrate --model net.py:network --data data.npz -o stats.npz")[0] == 0
    encode, given = tqcodec.torch.encode, []

    def recorded(model: nn.Module, settings: Settings, statistics: Any, **more: Any) -> bytes:
        given.append(statistics)
        return encode(model, settings, **more)

    monkeypatch.setattr(tqcodec.torch, "encode", recorded)
    plain = SWEEP.replace("data.npz", "plain.npz")
    code, out, _ = run(f"{plain} --bits 4,3 --statistics stats.npz --json")
    document = json.loads(out)
    assert (code, document["images"]) == (0, IMAGES)
    assert (document["output"], document["table"]) == ("curve.png", "curve.csv")
    rows = document["rows"]
    pairs = [(row["encoder"], row["bits_asked"]) for row in rows]
    assert pairs == [(e, b) for b in (4, 3) for e in ("calibrated", "data-free")]
    assert [isinstance(one, Statistics) for one in given] == [True, False] * 2
    assert all(row["top1"] is None and row["drop"] is None for row in rows)
    assert all(row["top1"] == "" for row in table())


@pytest.mark.parametrize("old", ["curve.png", "curve.csv"])
def test_sweep_overwrites_only_when_told(run: Run, folder: Path, old: str) -> None:
    Path(old).write_text("old")
    code, _, err = run(f"{SWEEP} --bits 4")
    assert (code, err) == (2, f"tqcodec: {old} exists; -f overwrites it\n")
    assert {p.name for p in folder.glob("curve.*")} == {old}
    assert run(f"{SWEEP} --bits 4 -f")[0] == 0
    assert Path(old).read_bytes() != b"old"


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.1, math.nan, math.inf]], ids=str)
def test_divergences_that_a_logarithm_does_not_have(values: list[float]) -> None:
    row = {"encoder": "data-free", "bits_per_weight": 2.0, "agreement": 50.0, "top1": None}
    rows = [{**row, "kl": kl, "kl_low": kl - 1, "kl_high": kl + 1} for kl in values]
    assert curve.draw(rows, "$a_{ \u4e2d\n").startswith(b"\x89PNG")


def test_sweep_without_matplotlib(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tqcodec.cli.curve", raising=False)
    monkeypatch.delattr(sys.modules["tqcodec.cli"], "curve", raising=False)
    for module in ("matplotlib", "matplotlib.axes"):
        monkeypatch.setitem(sys.modules, module, None)
    code, _, err = run(f"{SWEEP} --bits 4")
    assert (code, err) == (2, "tqcodec: sweep needs matplotlib: pip install matplotlib\n")


# Encoding.

CALIBRATE = "calibrate --model net.py:network --data data.npz -o stats.npz"
ENCODE = "encode --model net.py:network --data data.npz --batch 10 --bits 4 -e 1 -o new.tqc"
FOUR = Settings(bits=4, effort=1)


def samples(images: int = IMAGES, batch: int = 10) -> list[torch.Tensor]:
    """The batches that are calibrated with."""
    order = np.random.default_rng(0).permutation(IMAGES)[:images]
    return list(inputs()[torch.from_numpy(order)].split(batch))


def test_encode_a_file_with_statistics(run: Run, folder: Path) -> None:
    assert run(CALIBRATE)[0] == 0
    statistics = Statistics.load("stats.npz")
    torch.save(network().state_dict(), "net.pth")
    command = "encode net.pth --bits 4 -e 1 -o new.tqc"
    code, out, err = run(f"{command} --statistics stats.npz")
    assert (code, out) == (0, "")
    assert err.startswith("tqcodec: new.tqc: 4 tensors")
    wanted = tqcodec.torch.encode(network(), FOUR, statistics)
    assert Path("new.tqc").read_bytes() == wanted != tqcodec.torch.encode(network(), FOUR)
    code, out, _ = run(f"{command} --statistics stats.npz --dry-run --json")
    document = json.loads(out)
    assert (code, document["calibrated"], document["without"]) == (0, 2, {})
    assert json.loads(run(f"{command} --dry-run --json")[1])["calibrated"] == 0


@pytest.mark.parametrize("change", ["", " --no-tune", " --statistics stats.npz", " --images 30"])
def test_encode_a_network(run: Run, folder: Path, change: str) -> None:
    used = samples(30) if "images" in change else samples()
    statistics = tqcodec.torch.calibrate(network(), used)
    if "statistics" in change:
        statistics = tqcodec.torch.calibrate(network(), used, probes=3)
        statistics.save("stats.npz")
    tune = None if "no-tune" in change else used
    wanted = tqcodec.torch.encode(network(), FOUR, statistics, tune=tune)
    code, out, err = run(ENCODE + change)
    assert (code, out) == (0, "")
    assert err.startswith(f"tqcodec: new.tqc: 4 tensors (2 planes, 2 transform), {len(wanted)} of ")
    assert Path("new.tqc").read_bytes() == wanted
    before = Path("new.tqc").stat()
    code, out, _ = run(f"{ENCODE} {change} -f --dry-run --json --metadata a=b")
    document = json.loads(out)
    assert (code, document["dry_run"], document["output"]) == (0, True, "new.tqc")
    assert document["metadata"] == {"a": "b", "torch.versions": "{}"}
    assert document["calibrated"] == 2
    assert Path("new.tqc").stat() == before


def test_encode_a_network_without_data(run: Run, folder: Path) -> None:
    statistics = tqcodec.torch.calibrate(network(), samples())
    statistics.save("stats.npz")
    assert run(ENCODE.replace("--data data.npz", "--statistics stats.npz"))[0] == 0
    assert Path("new.tqc").read_bytes() == tqcodec.torch.encode(network(), FOUR, statistics)


def test_tuned_vectors_are_in_the_file(run: Run, folder: Path) -> None:
    assert run(ENCODE)[0] == run(f"{ENCODE} --no-tune".replace("new", "plain"))[0] == 0
    tuned, plain = tqcodec.load("new.tqc"), tqcodec.load("plain.tqc")
    for name in tuned:
        assert (tuned[name] == plain[name]).all() == name.endswith("weight")


def test_weights_without_statistics_are_named(run: Run, folder: Path) -> None:
    with Path("net.py").open("a") as file:
        file.write(UNUSED)
    code, _, err = run(ENCODE.replace(":network", ":unused"))
    assert code == 0
    line, last = err.splitlines()
    assert line.startswith("tqcodec: unused.weight: not calibrated, encoded as without data: ")
    assert last.startswith("tqcodec: new.tqc: 6 tensors")
    document = json.loads(run(ENCODE.replace(":network", ":unused") + " -f --json")[1])
    assert (document["calibrated"], list(document["without"])) == (2, ["unused.weight"])


UNUSED = """
class Unused(nn.Sequential):
    def __init__(self):
        super().__init__(*network())
        self.unused = nn.Linear(32, 7)

    def forward(self, x):
        return self[2](self[1](self[0](x)))

def unused():
    return Unused().eval()
"""


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{ENCODE} --batch 80", "data.npz: one batch, tuning needs two: --batch or --no-tune"),
        (ENCODE.replace("data.npz", "net.py:batches"), "tuning needs two batches"),
        (ENCODE.replace(":network", ":broken"), "net.py:broken: RuntimeError: two"),
        (ENCODE.replace(":network", ":broken") + " --statistics empty.npz", "RuntimeError: two"),
        (ENCODE.replace(":network", ":nothing"), "no function 'nothing'"),
        (ENCODE.replace("data.npz", "nothing.npz"), "nothing.npz: No such file"),
        (f"{ENCODE} --statistics stats.npz", "tensor '0.weight'"),
        (f"{ENCODE} --statistics data.npz", "data.npz: not a file of statistics"),
        ("encode net.pth --statistics stats.npz -f", "tensor '2.weight'"),
        ("encode net.pth --statistics data.npz -f", "data.npz: not a file of statistics"),
        ("encode net.pth --statistics nothing.npz -f", "nothing.npz: No such file"),
        ("encode nothing.pth --statistics data.npz", "data.npz: not a file of statistics"),
        (f"{ENCODE} --statistics nothing.npz --data none.npz", "nothing.npz: No such file"),
        (ENCODE.replace("new.tqc", "net.tqc"), "net.tqc exists; -f overwrites it"),
        (ENCODE.replace("new.tqc", "no/new.tqc"), "no such folder"),
        (f"{ENCODE} --images 0", "at least 1"),
        (f"{ENCODE} net.pth", "either IN or --model"),
    ],
)
def test_errors_of_encoding(run: Run, folder: Path, command: str, message: str) -> None:
    tqcodec.torch.calibrate(network(), samples()).save("stats.npz")
    Statistics({}).save("empty.npz")
    state = network().state_dict()
    torch.save({name: state[name] for name in ("0.weight", "0.bias")}, "net.pth")
    if "--statistics stats.npz" in command:
        command = command.replace(":network", ":smaller")
    before = sorted(folder.iterdir())
    code, out, err = run(command)
    assert (code, out) == (2, "")
    assert err.startswith("tqcodec: ")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(p for p in folder.iterdir() if p.name != "__pycache__") == before


def test_shuffled_data(folder: Path) -> None:
    options = inputs_module.DataOptions(batch=32, shuffled=True, images=50)
    for _ in range(2):
        batches = list(inputs_module.load_batches("data.npz", options))
        assert [len(x) for x, _ in batches] == [32, 18]
        assert torch.equal(torch.cat([x for x, _ in batches]), torch.cat(samples(50)))
        found = torch.cat([y for _, y in batches if y is not None])
        order = np.random.default_rng(0).permutation(IMAGES)[:50]
        assert torch.equal(found, labels()[torch.from_numpy(order)])


# Files as small as a bound allows.


class Meter:
    """Accuracy that falls with the error of the weights; remembers what it was asked."""

    def __init__(self, model: nn.Module, exponent: float = 1.0) -> None:
        self.original = model
        self.weight = model.state_dict()["0.weight"].clone()
        self.exponent = exponent
        self.seen: list[float] = []

    def __call__(self, model: nn.Module) -> float:
        assert (model is self.original) == (not self.seen)
        weight = model.state_dict()["0.weight"]
        error = float((weight - self.weight).norm() / self.weight.norm())
        self.seen.append(90 - 100 * error**self.exponent)
        return self.seen[-1]


@pytest.mark.parametrize("drop", [2, 6, 20])
def test_target_drop(drop: float) -> None:
    model = network()
    meter = Meter(model)
    calls: list[tuple[str, int, int]] = []
    data = tqcodec.torch.encode(
        model, FAST, target_drop=drop, evaluate=meter, progress=lambda *call: calls.append(call)
    )
    assert meter.seen[0] == 90
    assert len(meter.seen) <= 11
    measured = len(meter.seen) - 1
    assert [call for call in calls if call[0] == "search"][-1] == (
        "search",
        measured,
        max(8, measured),
    )
    decoded = network()
    decoded.load_state_dict(tqcodec.torch.decode(data))
    again = Meter(network())
    again(again.original)
    assert again(decoded) in meter.seen  # this very file was measured
    assert 90 - again.seen[1] <= drop
    # A little coarser is too much: the bound lies within 2 % of the rate, and files hit theirs
    # only roughly.
    bits = 8 * len(data) / WEIGHTS
    coarser = tqcodec.torch.encode(model, Settings(bits=0.9 * bits, effort=1))
    decoded.load_state_dict(tqcodec.torch.decode(coarser))
    assert 90 - again(decoded) > drop
    for name, tensor in network().state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_a_network_without_matrices_has_no_rates(run: Run, folder: Path) -> None:
    code, _, err = run(SWEEP.replace(":network", ":flat") + " --bits 3")
    assert code == 2
    assert err.splitlines()[-1].endswith("no weight matrices, so no bits per weight")


def test_the_smallest_file_that_passed_is_kept() -> None:
    """Accuracy that does not fall with the rate."""
    answers = iter([90.0, 89.9, 80.0, 89.9, 80.0, *[89.9, 80.0] * 10])
    sizes: list[tuple[int, float]] = []
    encode = tqcodec.api.encode

    def recorded(*arguments: Any, **more: Any) -> bytes:
        data = encode(*arguments, **more)
        sizes.append((len(data), 0.0))
        return data

    def evaluate(_: nn.Module) -> float:
        answer = next(answers)
        if sizes:
            sizes[-1] = (sizes[-1][0], answer)
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tqcodec.api, "encode", recorded)
        data = tqcodec.torch.encode(network(), FAST, target_drop=0.5, evaluate=evaluate)
    assert len(data) == min(size for size, answer in sizes if answer > 89)
    assert 7 <= len(sizes) <= 8


def test_a_bound_that_is_always_met() -> None:
    """Stops where files shrink no more."""
    seen: list[nn.Module] = []

    def evaluate(model: nn.Module) -> float:
        seen.append(model)
        return 50.0

    data = tqcodec.torch.encode(network(), FAST, target_drop=0, evaluate=evaluate)
    assert len(seen) <= 9
    assert len(data) < len(tqcodec.torch.encode(network(), Settings(bits=3, effort=1)))


@pytest.mark.parametrize("worse", [61.0, math.nan])
def test_a_bound_that_cannot_be_met(worse: float, tmp_path: Path) -> None:
    model = network()

    def evaluate(given: nn.Module) -> float:
        return 90.0 if given is model else worse

    with pytest.raises(EncodeError, match=rf"a drop of {90 - worse:g} at 8 bits .*; 0.5 at most"):
        tqcodec.torch.save(model, tmp_path / "x.tqc", target_drop=0.5, evaluate=evaluate)
    assert list(tmp_path.iterdir()) == []


def test_agreement_as_the_bound(tmp_path: Path) -> None:
    model = network()
    reference = Reference(model, [(inputs(), None)])

    def agreement(given: nn.Module) -> float:
        return reference.compare(given).agreement.value

    path = tmp_path / "x.tqc"
    tqcodec.torch.save(model, path, FAST, target_drop=5, evaluate=agreement)
    found = reference.compare(tqcodec.torch.load(path))
    assert isinstance(found, Comparison)
    assert 95 <= found.agreement.value < 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluate": None}, "together or not at all"),
        ({"target_drop": None}, "together or not at all"),
        ({"target_drop": -1}, "not a number from 0 up"),
        ({"target_drop": math.nan}, "not a number from 0 up"),
        ({"settings": Settings(bits=3)}, "target_drop and bits cannot both be given"),
        ({"settings": Settings(max_size=3)}, "target_drop and max_size"),
        ({"settings": Settings(quality=0)}, "target_drop and quality"),
        ({"settings": Settings(snr=0)}, "target_drop and snr"),
        ({"settings": Settings(lossless=True)}, "target_drop and lossless"),
        ({"model": network().state_dict()}, "not a state dict"),
        ({"evaluate": lambda _: math.nan}, "evaluate gives nan"),
    ],
)
def test_arguments_of_a_bound(change: dict[str, Any], message: str) -> None:
    arguments = {"model": network(), "target_drop": 1.0, "evaluate": lambda _: 1.0, **change}
    with pytest.raises(EncodeError, match=message):
        tqcodec.torch.encode(**arguments)


def test_a_state_dict_that_does_not_fit_runs_nothing() -> None:
    model = network()
    model.register_forward_hook(lambda *_: pytest.fail("it ran"))
    state = network().state_dict()
    del state["2.bias"]
    with pytest.raises(EvaluationError, match=r"tensor '2\.bias' is not among"):
        compare(model, state, [(inputs(), None)])
    assert not isinstance(EvaluationError(), ValueError)
