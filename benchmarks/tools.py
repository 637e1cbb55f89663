"""What each tool of the calibrated encoder brings, the others on: bits per weight at equal error.

    python benchmarks/tools.py cifar10_held_out cifar_resnet.py 32 cifar10_train.npz

The first argument is a builder of `subjects.py`, the others are its arguments. Each tool is turned
off in turn by putting something trivial in its place, and the network is encoded at all rates. The
error is that of the logits, its logarithm averaged over the rates; the slope of the full encoder
over the rates turns it into bits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import numpy as np
import torch
from subjects import Subject, build

import tqcodec
import tqcodec.torch
from tqcodec.encoder import corrections
from tqcodec.encoder.matrix import choice, feedback, grid, metric, outcome, quantizer
from tqcodec.encoder.statistics import Statistics
from tqcodec.format.registry import Axis

RATES = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0)

Switch = Callable[[], Any]


def _ones(*arguments: Any) -> Any:
    return np.ones_like(arguments[-1])


def _no_filters(self: metric.Metric) -> tuple[Any, Any]:
    """The diagonal of R, and nothing fed back."""
    diagonal, filters = FACTOR(self)
    return diagonal, np.broadcast_to(np.eye(filters.shape[1]), filters.shape)


FACTOR = metric.Metric.factor
CANDIDATES = choice._candidates
STEPS = grid._steps


def _only(names: Sequence[str]) -> Switch:
    """Bases that the taps may have; the other axes have none."""

    def candidates(problem: Any, now: Any, axis: Axis, wish: str) -> Any:
        found = CANDIDATES(problem, now, axis, wish)
        if axis != Axis.TAPS:
            return [now]
        order = ("none", "dct", "klt", "elt")
        return [t for name, t in zip(order, found, strict=True) if name in names]

    return lambda: mock.patch.object(choice, "_candidates", candidates)


def _no_column_steps() -> Any:
    def steps(octaves: Any, mantissa: int, most: int) -> Any:
        flat = np.full_like(octaves, octaves.mean()) if most == grid.MOST_COLUMN else octaves
        return STEPS(flat, mantissa, most)

    return mock.patch.object(grid, "_steps", steps)


def _plain_corrected(sources: Any, statistics: Any, matrices: Any, names: Any) -> Any:
    return {}


@contextmanager
def _no_gains() -> Iterator[None]:
    with (
        mock.patch.object(outcome, "gains_of", _ones),
        mock.patch.object(feedback, "gains_of", _ones),
    ):
        yield


@contextmanager
def _no_rate_term() -> Iterator[None]:
    with mock.patch.object(quantizer, "TRELLIS_FEEDBACK_LAMBDA", 1e-6):
        yield


TOOLS: dict[str, Switch] = {
    "error feedback": lambda: mock.patch.object(metric.Metric, "factor", _no_filters),
    "steps by column": _no_column_steps,
    "measured gradients (C)": lambda: mock.patch.object(metric, "SHRINKAGE", 1e12),
    "Kronecker moments (K)": lambda: mock.patch.object(metric, "SHRINKAGE", 0.0),
    "basis on the taps": _only(["none"]),
    "choice of it (DCT alone)": _only(["dct"]),
    "choice of it (KLT alone)": _only(["klt"]),
    "choice of it (ELT alone)": _only(["elt"]),
    "rate term in the trellis": _no_rate_term,
    "gains": _no_gains,
    "gains and bias correction": lambda: mock.patch.object(
        corrections, "corrected", _plain_corrected
    ),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("builder")
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    options = parser.parse_args()
    subject = build(options.builder, options.arguments)
    statistics = tqcodec.torch.calibrate(subject.model, subject.calibration)
    reference = tqcodec.torch.Reference(subject.model, subject.test)

    def errors(switch: Switch, effort: int = 5, tune: bool = False) -> np.ndarray[Any, Any]:
        found = []
        for rate in options.rates:
            settings = tqcodec.Settings(bits=rate, effort=effort)
            with switch():
                data = tqcodec.torch.encode(
                    subject.model,
                    settings,
                    statistics,
                    tune=subject.tuning if tune else None,
                )
            bits = 8 * len(data) / _weights(subject)
            seen = reference.compare(tqcodec.torch.decode(data))
            found.append((bits, -seen.snr.value / (20 * np.log10(2)), np.log2(seen.kl.value)))
        return np.array(found)

    full = errors(nullcontext)
    slope = np.polyfit(full[:, 0], full[:, 1], 1)[0]
    print(f"full encoder: error halves every {-1 / slope:.2f} bits (amplitude)")
    print(f"{'without':28} {'bits lost':>9} {'KL':>7}   (geometric mean of the ratio)")

    def show(name: str, rows: np.ndarray[Any, Any]) -> None:
        moved = rows[:, 1] - slope * (rows[:, 0] - full[:, 0]) - full[:, 1]
        ratio = 2 ** np.mean(rows[:, 2] - full[:, 2])
        print(f"{name:28} {np.mean(moved) / -slope:9.3f} {ratio:7.2f}", flush=True)

    for name, switch in TOOLS.items():
        show(name, errors(switch))
    show("trellis (effort 2)", errors(nullcontext, effort=2))
    show("more effort (9)", errors(nullcontext, effort=9))
    show("tuning, which is added", errors(nullcontext, tune=True))
    show("statistics (data-free)", _data_free(subject, reference, options.rates))


def _data_free(
    subject: Subject, reference: tqcodec.torch.Reference, rates: Sequence[float]
) -> np.ndarray[Any, Any]:
    found = []
    for rate in rates:
        data = tqcodec.torch.encode(subject.model, tqcodec.Settings(bits=rate), Statistics({}))
        seen = reference.compare(tqcodec.torch.decode(data))
        bits = 8 * len(data) / _weights(subject)
        found.append((bits, -seen.snr.value / (20 * np.log10(2)), np.log2(seen.kl.value)))
    return np.array(found)


def _weights(subject: Subject) -> int:
    return sum(t.numel() for t in subject.model.state_dict().values() if t.ndim >= 2)


if __name__ == "__main__":
    torch.set_grad_enabled(True)
    main()
