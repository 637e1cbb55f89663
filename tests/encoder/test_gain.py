"""Transform coding gains: the paper's formula, and what the bases of the encoder reach of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import tqcodec
import tqcodec.torch
from tqcodec import EncodeError, coding_gain
from tqcodec.cli import commands
from tqcodec.encoder.gain import gain_axes
from tqcodec.encoder.matrix.metric import metric_of
from tqcodec.encoder.matrix.transform import ELT_REGULARISATION, elt, klt
from tqcodec.encoder.statistics import Statistics, WeightStatistics
from tqcodec.format.registry import Axis

Array = NDArray[np.float64]

AXES = ("out", "in", "taps")


def random(*shape: int, seed: int = 0) -> Array:
    """Numbers that are correlated along the last axis."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) @ rng.normal(size=(shape[-1],) * 2)


def moments(blocks: int, n: int, seed: int) -> Array:
    rows = random(blocks, 3 * n, n, seed=seed)
    return rows.swapaxes(1, 2) @ rows


def statistics_of(
    shape: tuple[int, ...], rows: int = 0, blocks: int = 1, n: int = 0, strips: int = 1
) -> WeightStatistics:
    height = shape[rows]
    n = n or math.prod(shape) // height
    return WeightStatistics(
        shape=shape,
        rows=rows,
        images=9,
        vectors=99,
        probes=9,
        inputs=moments(blocks, n, 1),
        sums=np.zeros((blocks, n)),
        outputs=moments(strips, math.ceil(height / strips), 2),
        gradients=moments(blocks, n, 3),
    )


def paper(moment: Array) -> float:
    sign, logarithm = np.linalg.slogdet(moment)
    assert sign == 1
    mean = np.log(np.diag(moment)).mean()
    return float(10 / math.log(10) * (mean - logarithm / len(moment)))


def regular(moment: Array) -> Array:
    return moment + ELT_REGULARISATION * np.linalg.norm(moment) * np.eye(len(moment))


def unfolded(weights: Array, rows: int, axis: str) -> Array:
    """The axis in front, everything else in one: with (out, in, taps)."""
    cube = np.moveaxis(weights, rows, 0)
    cube = cube.reshape(*cube.shape[:2], -1)
    return np.moveaxis(cube, AXES.index(axis), 0).reshape(cube.shape[AXES.index(axis)], -1)


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("axis", AXES)
def test_gain_is_that_of_the_paper_and_the_elt_reaches_it(axis: str, rows: int) -> None:
    shape = (7, 6, 2, 3)
    weights, one = random(*shape), statistics_of(shape, rows)
    found = coding_gain(weights, one, axis)
    flat = unfolded(weights, rows, axis)
    tt = flat @ flat.T
    known = axis != "out"
    gg = metric_of(one).moment(Axis[axis.upper()]) if known else one.outputs[0]
    assert found.weight == pytest.approx(paper(tt))
    assert found.gradient == pytest.approx(paper(regular(gg)))
    assert found.total == found.weight + found.gradient
    assert min(found.weight, found.gradient) > 0.01

    def left(rows: Array) -> float:
        """Gain of a basis over none: of the product of both variances of each coefficient."""
        inverse = np.linalg.inv(rows)  # U
        gradients = np.diag(rows @ regular(gg) @ rows.T)
        variances = np.diag(inverse.T @ tt @ inverse)
        before = np.log10(np.diag(regular(gg)) * np.diag(tt)).mean()
        return float(10 * (before - np.log10(gradients * variances).mean()))

    assert left(elt(tt, gg)) == pytest.approx(found.total)
    assert left(klt(tt)) < found.total
    basis = elt(tt, gg)
    inverse = np.linalg.inv(basis)
    product = np.diag(basis @ regular(gg) @ basis.T) * np.diag(inverse.T @ tt @ inverse)
    logarithms = np.linalg.slogdet(regular(gg))[1] + np.linalg.slogdet(tt)[1]
    assert np.log(product).sum() == pytest.approx(logarithms)


def test_the_klt_reaches_the_gain_of_the_weights() -> None:
    weights = random(50, 6)
    tt = weights.T @ weights
    basis = klt(tt)
    gain = np.log10(np.diag(tt)).mean() - np.log10(np.diag(basis @ tt @ basis.T)).mean()
    found = coding_gain(weights, statistics_of((50, 6)), "in")
    assert found.weight == pytest.approx(10 * gain)


def test_gains_do_not_depend_on_the_scale_of_channels() -> None:
    weights, one = random(50, 6), statistics_of((50, 6))
    scaled = weights * 2.0 ** np.arange(-30, 30, 10)
    assert coding_gain(scaled, one, "in").weight == pytest.approx(
        coding_gain(weights, one, "in").weight
    )


def test_channels_that_are_zero_or_repeated() -> None:
    weights, one = random(50, 6), statistics_of((50, 6))
    live = coding_gain(weights[:, :5], statistics_of((50, 5)), "in").weight
    weights[:, 5] = 0
    assert coding_gain(weights, one, "in").weight == pytest.approx(live * 5 / 6)
    weights[:, 5] = weights[:, 0]
    found = coding_gain(weights.astype(np.float32), one, "in")
    assert (found.weight, found.total) == (math.inf, math.inf)
    assert math.isfinite(found.gradient)
    nothing = coding_gain(0 * weights, one, "in")
    assert (nothing.weight, nothing.total) == pytest.approx((0, nothing.gradient))
    alone = coding_gain(weights[:, :1], statistics_of((50, 1)), "in")
    assert (alone.weight, alone.gradient) == pytest.approx((0, 0), abs=1e-12)


@pytest.mark.parametrize(
    ("one", "known"),
    [
        (statistics_of((9, 8)), ["out", "in"]),
        (statistics_of((9, 8), blocks=3), ["out", "in"]),  # attention
        (statistics_of((9, 8), blocks=2, n=5), ["out"]),  # long rows
        (statistics_of((9, 8, 3, 3)), ["out", "in", "taps"]),
        (statistics_of((9, 8, 3, 3), blocks=2, n=36), ["out", "taps"]),
        (statistics_of((9, 8, 3, 3), blocks=2, n=40), ["out"]),
        (statistics_of((9, 8, 3, 3), blocks=3), ["taps"]),  # groups
        (statistics_of((9, 1, 3, 3), blocks=9), ["taps"]),  # depthwise
        (statistics_of((8, 9, 3), rows=1), ["out", "in", "taps"]),
        (statistics_of((8, 9, 3), rows=1, blocks=2, n=12), ["taps"]),
        (statistics_of((9, 8, 1, 1)), ["out", "in"]),
        (statistics_of((1100, 2), strips=1100), ["in"]),
    ],
)
def test_axes_that_have_gains(one: WeightStatistics, known: list[str]) -> None:
    assert gain_axes(one) == known
    weights = random(*one.shape)
    for axis in known:
        assert coding_gain(weights, one, axis).gradient > 0


def test_outputs_in_strips() -> None:
    one = statistics_of((9, 40), strips=2)
    whole = np.zeros((10, 10))
    whole[:5, :5], whole[5:, 5:] = one.outputs
    found = coding_gain(random(9, 40), one, "out")
    assert found.gradient == pytest.approx(paper(regular(whole[:9, :9])))


@pytest.mark.parametrize(
    ("weights", "one", "axis", "message"),
    [
        (random(9, 8), statistics_of((8, 9)), "in", r"of shape \(8, 9\), weights \(9, 8\)"),
        (random(9, 8), statistics_of((9, 8)), "height", "know no gradients of 'height'"),
        (random(9, 8, 3), statistics_of((9, 8, 3), blocks=3), "in", "no gradients of 'in'"),
        (np.full((9, 8), np.nan), statistics_of((9, 8)), "in", "not finite"),
    ],
)
def test_what_has_no_gain(weights: Array, one: WeightStatistics, axis: str, message: str) -> None:
    with pytest.raises(EncodeError, match=message):
        coding_gain(weights, one, axis)


# `tqcodec info --statistics`.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file, its statistics, and those of another network."""
    folder = tmp_path_factory.mktemp("gains")
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(16 * 4, 5)).eval()
    found = tqcodec.torch.calibrate(model, [torch.randn(8, 4, 6, 6)])
    found.save(folder / "stats.npz")
    Statistics({**found, "no\nsuch": found["0.weight"]}).save(folder / "other.npz")
    Statistics({"0.weight": found["4.weight"]}).save(folder / "shape.npz")
    (folder / "rubbish.npz").write_text("rubbish")
    tqcodec.torch.save(model, folder / "net.tqc", tqcodec.Settings(snr=30, effort=1), found)
    return folder


def info(folder: Path, statistics: str, *more: str) -> int:
    return commands.main(
        ["info", f"{folder}/net.tqc", "--statistics", f"{folder}/{statistics}", *more]
    )


def test_info_shows_gains(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert info(folder, "stats.npz", "--json") == 0
    document = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    shown = {tensor["name"]: tensor["gains"] for tensor in document["tensors"]}
    assert [list(gains) if gains else gains for gains in shown.values()] == [
        ["out", "in", "taps"],
        None,
        ["taps"],
        None,
        ["out", "in"],
        None,
    ]
    statistics, weights = Statistics.load(folder / "stats.npz"), tqcodec.load(folder / "net.tqc")
    for name, gains in shown.items():
        for axis, gain in (gains or {}).items():
            wanted = coding_gain(weights[name], statistics[name], axis)
            for side in ("weight", "gradient", "total"):
                value: Any = getattr(wanted, side)
                value = round(value, 4) if math.isfinite(value) else None
                assert gain[side] == value
    linear = shown["4.weight"]
    assert linear is not None
    assert linear["in"]["weight"] is linear["in"]["total"] is None  # 64 columns of 5 numbers

    assert info(folder, "stats.npz") == 0
    lines = capsys.readouterr().out.splitlines()
    assert commands.main(["info", f"{folder}/net.tqc"]) == 0
    plain = capsys.readouterr().out.splitlines()
    assert lines[: len(plain)] == plain
    title, head, *rows = lines[len(plain) :]
    assert title.startswith("transform coding gains in dB")
    assert head.split() == ["name", *AXES]
    assert [row.split()[0] for row in rows] == ["0.weight", "2.weight", "4.weight"]
    taps = shown["2.weight"]
    assert taps is not None
    gain = taps["taps"]
    numbers = f"{gain['weight']:.2f} + {gain['gradient']:.2f} = {gain['total']:.2f}"
    assert rows[1].split(maxsplit=3)[1:] == ["-", "-", numbers]
    assert "inf + " in rows[2]


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ("other.npz", "the file has no 'no\\nsuch' of shape (16, 4, 3, 3)"),
        ("shape.npz", "the file has no '0.weight' of shape (5, 64)"),
        ("rubbish.npz", "rubbish.npz: not a file of statistics"),
        ("nothing.npz", "nothing.npz: No such file"),
    ],
)
def test_info_with_other_statistics(
    folder: Path, capsys: pytest.CaptureFixture[str], statistics: str, message: str
) -> None:
    assert info(folder, statistics) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1
