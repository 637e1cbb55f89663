"""Points of the calibrated benchmark: a file's size against what it does to the outputs."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from math import nan
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.subjects import Subject
from tqcodec.encoder.kinds import is_matrix
from tqcodec.torch.evaluation import Reference

FLOAT = "float32"
"""The contender that is the network itself."""


@dataclass(frozen=True)
class Point:
    """One contender at one setting on one network."""

    network: str
    contender: str
    setting: str
    bytes: int
    """The whole file."""
    bits: float
    """Of the whole file, over the elements of all weight matrices."""
    top1: float
    """Per cent of the test images."""
    drop: float
    """Percentage points below the float network."""
    kl: float
    """Mean KL(float || decoded) in nats."""
    agreement: float
    """Per cent of the test images with the same first class."""
    drop_error: float = nan
    """Half the width of the 95 % confidence interval; the same for the next."""
    kl_error: float = nan
    seconds: float = nan
    """Wall-clock time of the encoder, statistics not included."""
    payload: int = -1
    """Bytes of the coded coefficients; -1 where it is not known."""


def weights_of(state: Mapping[str, torch.Tensor]) -> int:
    """Elements of the weight matrices: floating-point, two axes longer than 1, 64 or more."""
    return sum(t.numel() for t in state.values() if t.is_floating_point() and is_matrix(t.shape))


class Judge:
    """Makes points of one network: runs decoded weights over its test images."""

    def __init__(self, network: str, subject: Subject) -> None:
        self.network = network
        self.state = subject.model.state_dict()
        self._reference = Reference(subject.model, subject.test)
        self._weights = weights_of(self.state)

    def bits(self, size: float) -> float:
        """Bits per weight of a file of `size` bytes."""
        return 8 * size / self._weights

    def point(
        self,
        contender: str,
        setting: str,
        size: int,
        decoded: Mapping[str, torch.Tensor],
        seconds: float = nan,
        payload: int = -1,
    ) -> Point:
        """Judge a decoded network; tensors that are missing are the original's."""
        found = self._reference.compare({**self.state, **decoded})
        assert found.top1_decoded is not None and found.drop is not None  # test images have labels
        return Point(
            network=self.network,
            contender=contender,
            setting=setting,
            bytes=size,
            bits=self.bits(size),
            top1=found.top1_decoded.value,
            drop=found.drop.value,
            kl=found.kl.value,
            agreement=found.agreement.value,
            drop_error=found.drop.high - found.drop.value,
            kl_error=found.kl.high - found.kl.value,
            seconds=seconds,
            payload=payload,
        )

    def float_point(self) -> Point:
        """The network itself."""
        size = sum(t.numel() * t.element_size() for t in self.state.values())
        return self.point(FLOAT, "", size, {})


_TYPES: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": lambda text: float(text) if text else nan,
}
_PARSERS = {field.name: _TYPES[str(field.type)] for field in fields(Point)}


def read_points(path: Path) -> list[Point]:
    """Read what a `RecordFile` holds; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            Point(**{name: parse(row[name]) for name, parse in _PARSERS.items()})
            for row in csv.DictReader(file)
        ]
