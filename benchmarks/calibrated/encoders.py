"""The contenders of the calibrated benchmark but for NNCodec."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import tqcodec
import tqcodec.torch
from benchmarks.calibrated import feedback
from benchmarks.calibrated.points import Judge, Point
from benchmarks.common.subjects import Subject
from tqcodec.encoder.statistics import Statistics
from tqcodec.format.records import read_head
from tqcodec.format.registry import Coding
from tqcodec.torch.inputs import DataOptions, load_batches

DATA_FREE = "tqcodec without data"
ANOTHER = "another tqcodec without data"
MADE_UP = "tqcodec, made-up inputs"
CALIBRATED = "tqcodec calibrated"
RETRAINED = "tqcodec retrained"
FEEDBACK = "error feedback, ideal entropy"

RATES = (4.0, 3.0, 2.5, 2.0, 1.75, 1.5, 1.25, 1.0)
"""Bits per weight of the whole file; for error feedback of the weights, before the feedback."""


@dataclass(frozen=True)
class Calibration:
    """Statistics of a network, and the seconds that they took."""

    statistics: Statistics
    seconds: float


def calibrate(subject: Subject) -> Calibration:
    """Take the statistics of the calibration images; labels are not used."""
    start = time.perf_counter()
    statistics = tqcodec.torch.calibrate(subject.model, subject.calibration)
    return Calibration(statistics, time.perf_counter() - start)


def data_free(
    judge: Judge, subject: Subject, workers: int, rates: Sequence[float]
) -> Iterator[Point]:
    """tqcodec by the weights alone."""
    return _tqcodec(judge, DATA_FREE, subject, {}, workers, rates)


def made_up(
    judge: Judge, subject: Subject, workers: int, rates: Sequence[float], inputs: str
) -> Iterator[Point]:
    """tqcodec with inputs that were made from the network, which a `.npz` file keeps."""
    batches = [one for one, _ in load_batches(inputs, DataOptions())]
    return _tqcodec(judge, MADE_UP, subject, {"synthetic": batches}, workers, rates)


def retrained(judge: Judge, path: Path) -> Point:
    """A file that is there."""
    data = path.read_bytes()
    decoded = tqcodec.torch.decode(data)
    return judge.point(RETRAINED, path.stem, len(data), decoded, payload=payload(data))


def another(
    judge: Judge, subject: Subject, program: str, rates: Sequence[float]
) -> Iterator[Point]:
    """Another version's encoder, such as one of an older commit, without images.

    Args:
        judge: of the network.
        subject: the network.
        program: its command line tool; this version decodes what it writes.
        rates: bits per weight.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, file = Path(folder) / "in.safetensors", Path(folder) / "out.tqc"
        state = subject.model.state_dict()
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, source)
        # Its own package, not the one that PYTHONPATH says.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        for bits in rates:
            paths = [str(source), "-o", str(file)]
            command = [program, "encode", *paths, "-f", "--bits", f"{bits:g}"]
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=environment)
            seconds = time.perf_counter() - start
            data = file.read_bytes()
            decoded = tqcodec.torch.decode(data)
            yield judge.point(
                ANOTHER,
                f"bits {bits:g}",
                len(data),
                decoded,
                seconds=seconds,
                payload=payload(data),
            )


def calibrated(
    judge: Judge,
    subject: Subject,
    workers: int,
    rates: Sequence[float],
    calibration: Calibration,
) -> Iterator[Point]:
    """tqcodec with statistics and tuning; its seconds are those of statistics and encoder."""
    given = {"statistics": calibration.statistics, "tune": subject.tuning}
    return _tqcodec(judge, CALIBRATED, subject, given, workers, rates, calibration.seconds)


def _tqcodec(
    judge: Judge,
    name: str,
    subject: Subject,
    arguments: Mapping[str, Any],
    workers: int,
    rates: Sequence[float],
    before: float = 0.0,
) -> Iterator[Point]:
    for bits in rates:
        settings = tqcodec.Settings(bits=bits, workers=workers)
        start = time.perf_counter()
        data = tqcodec.torch.encode(subject.model, settings, **arguments)
        seconds = before + time.perf_counter() - start
        decoded = tqcodec.torch.decode(data)
        yield judge.point(
            name, f"bits {bits:g}", len(data), decoded, seconds=seconds, payload=payload(data)
        )


def error_feedback(
    judge: Judge, calibration: Calibration, rates: Sequence[float]
) -> Iterator[Point]:
    """The ideal size of plain error feedback, and what it does to the network."""
    tensors = {name: tensor.numpy() for name, tensor in judge.state.items()}
    side_bytes, side = feedback.side_tensors(tensors)
    for bits in rates:
        start = time.perf_counter()
        step = feedback.step_with(tensors, bits)
        weight_bits, rounded = feedback.encode(tensors, calibration.statistics, step)
        seconds = calibration.seconds + time.perf_counter() - start
        decoded = {k: torch.from_numpy(array.copy()) for k, array in {**side, **rounded}.items()}
        size = round(weight_bits / 8) + side_bytes
        yield judge.point(FEEDBACK, f"step {step:.4g}", size, decoded, seconds=seconds)


def payload(data: bytes) -> int:
    """Bytes of the entropy-coded indices of the weight matrices.

    That is the segments of all transform-coded tensors without the heads (bases, levels, row
    scales) with which the first of each begins. Tables, directory, checks and side tensors are no
    part of it either.
    """
    total = 0
    with tqcodec.open(data) as file:
        container = file.container
        for entry in container.directory.entries:
            if entry.coding != Coding.TRANSFORM or not entry.segments:
                continue
            reader = container.segment(entry.segments[0], entry.name)
            stored = sum(segment.length for segment in entry.segments)
            read_head(reader, entry.shape, stored, container.tables)
            total += stored
            total -= reader.position
    return total
