"""The lossy codecs compared, each with the one knob that trades bytes for error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.workers.process import Program

SNR_GRID = 0.25
"""Decibels between the signal-to-noise ratios that tqcodec is asked for."""


@dataclass(frozen=True)
class Contender:
    """A codec at fixed settings but for the knob, an integer that grows with the error."""

    name: str
    program: Program
    settings: Callable[[int], dict[str, Any]]
    decibels: float
    """How much the error grows from one knob to the next, about."""
    offset: float
    """The error at knob 0 in decibels, about."""

    @property
    def is_nncodec(self) -> bool:
        """Whether this is a setting of the codec to be beaten."""
        return self.name.startswith("NNCodec")


def tqcodec(python: Path, name: str, **settings: Any) -> Contender:
    """Return tqcodec with the given settings; its knob is the signal-to-noise ratio."""
    return Contender(
        name=name,
        program=Program(python, "tqcodec"),
        settings=lambda knob: {"snr": -SNR_GRID * knob, **settings},
        decibels=SNR_GRID,
        offset=0.0,
    )


def nncodec(python: Path, lambda_scale: float, side_qp: int) -> Contender:
    """Return NNCodec with trellis quantization; its knob is the quantization parameter.

    Four quantization parameters double the step, so one is about 1.5 dB. `side_qp` is the one of
    the side tensors.
    """
    decibels = 20 * math.log10(2) / 4
    fixed = {"nonweight_qp": side_qp, "use_dq": True, "lambda_scale": lambda_scale}
    return Contender(
        name=f"NNCodec lambda {lambda_scale:g}",
        program=Program(python, "nncodec"),
        settings=lambda knob: {"qp": knob, **fixed},
        decibels=decibels,
        offset=24 * decibels - 20,
    )
