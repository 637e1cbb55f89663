"""NNCodec at many rates: every variant of its quantization, swept over its parameter."""

from __future__ import annotations

import bisect
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

from benchmarks.calibrated.points import Judge, Point
from benchmarks.workers.process import Process, Program

State = Mapping[str, torch.Tensor]

QPS = range(-60, 21)
"""Four of them double the step."""
TUNED_SIDE = -47
"""A step of biases and batch-norm at which NNCodec keeps as much of them as tqcodec does."""


@dataclass(frozen=True)
class Variant:
    """NNCodec with its trellis and fixed settings but for `qp`."""

    name: str
    settings: dict[str, Any]


def _variant(scale: float, opt_qp: bool, side: int | None = None) -> Variant:
    name = f"NNCodec lambda {scale:g}{', opt_qp' * opt_qp}"
    settings: dict[str, Any] = {"use_dq": True, "lambda_scale": scale, "opt_qp": opt_qp}
    if side is not None:
        name += f", side {side}"
        settings["nonweight_qp"] = side
    return Variant(name, settings)


VARIANTS = tuple(
    _variant(scale, opt_qp, side)
    for side in (None, TUNED_SIDE)
    for opt_qp in (False, True)
    for scale in (0.0, 1.0)
)


def holdable(state: State) -> dict[str, Any]:
    """The tensors that NNCodec takes: float32 of one axis or more, not empty."""
    return {
        name: tensor.contiguous().numpy()
        for name, tensor in state.items()
        if tensor.dtype == torch.float32 and tensor.ndim and tensor.numel()
    }


def sweep(
    judge: Judge,
    python: Path,
    variant: Variant,
    bits: tuple[float, float],
    every: int,
    known: Sequence[Point] = (),
) -> Iterator[Point]:
    """Points of a variant whose file has between `bits[0]` and `bits[1]` bits per weight.

    Args:
        judge: of the network, which keeps what NNCodec cannot hold for free.
        python: interpreter of NNCodec's environment.
        variant: its settings.
        bits: the range; the points just beyond its ends are taken as well.
        every: one `qp` of so many is taken.
        known: points that need not be measured again; they are yielded too.
    """
    points = {p.setting: p for p in known if p.contender == variant.name}
    with tempfile.TemporaryDirectory() as folder, Process(_program(python)) as process:
        source, file, out = (str(Path(folder) / name) for name in ("in.st", "file", "out.st"))
        save_file(holdable(judge.state), source)
        process.order("warm_up", settings={"qp": QPS[0], **variant.settings})
        process.order("load", path=source)

        def encode(qp: int) -> int:
            settings = {"qp": qp, **variant.settings}
            return int(process.order("encode", settings=settings, path=file)["bytes"])

        def rate(qp: int) -> float:
            point = points.get(_setting(qp))
            return judge.bits(encode(qp)) if point is None else point.bits

        qps = QPS[::every]
        first = bisect.bisect_left(qps, -bits[1], key=lambda qp: -rate(qp))
        for qp in qps[max(0, first - 1) :]:
            point = points.get(_setting(qp))
            if point is None:
                start = time.perf_counter()
                size = encode(qp)
                seconds = time.perf_counter() - start
                process.order("decode", path=file, out=out)
                decoded = load_file(out)
                point = judge.point(variant.name, _setting(qp), size, decoded, seconds=seconds)
            yield point
            if point.bits < bits[0]:
                return


def _setting(qp: int) -> str:
    return f"qp {qp}"


def _program(python: Path) -> Program:
    return Program(python, "nncodec")
