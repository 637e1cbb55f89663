"""What each tool of the calibrated encoder brings, the others on: bits per weight at equal error.

    python -m benchmarks.tools cifar10_held_out cifar_resnet.py 32 cifar10_train.npz

The first argument is a builder of `common/subjects.py`, the others are its arguments. Each tool is
turned off in turn, by a constant of the module that decides, by another function in place of one of
its public ones or by what the encoder is given, and the network is encoded at all rates. The error
is that of the logits, its logarithm averaged over the rates; the slope of the full encoder over the
rates turns it into bits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np

import tqcodec
import tqcodec.torch
from benchmarks.common.command import command_parser
from benchmarks.common.subjects import Batches, Subject, build
from tqcodec.encoder.matrix import choice, feedback, grid, metric, quantizer
from tqcodec.encoder.matrix.transform import Transform
from tqcodec.encoder.statistics import Statistics
from tqcodec.format.registry import Axis, BasisKind

RATES = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0)

Switch = Callable[[], AbstractContextManager[Any]]
Array = np.ndarray[Any, np.dtype[np.float64]]


def _constant(module: object, name: str, value: object) -> Switch:
    """A constant that leaves nothing for a tool to do."""
    return lambda: mock.patch.object(module, name, value)


FACTOR = metric.Metric.factor
CANDIDATES = choice.candidates


def _no_filters(self: metric.Metric) -> tuple[Array, Array]:
    """The diagonal of R, and nothing fed back."""
    diagonal, filters = FACTOR(self)
    return diagonal, np.broadcast_to(np.eye(filters.shape[1]), filters.shape)


def _basis(transform: Transform) -> str:
    """Which basis the taps have."""
    kind = transform.kinds[Axis.TAPS]
    if kind == BasisKind.EXPLICIT:
        return "klt" if transform.orthonormal else "elt"
    return "dct" if kind == BasisKind.DCT else "none"


def _only(basis: str) -> Switch:
    """The one basis that the taps may have; the other axes have none."""

    def candidates(
        problem: choice.Problem, now: Transform, axis: Axis, wish: str
    ) -> list[Transform]:
        if axis != Axis.TAPS:
            return [now]
        return [t for t in CANDIDATES(problem, now, axis, wish) if _basis(t) == basis]

    return _constant(choice, "candidates", candidates)


TOOLS: dict[str, Switch] = {
    "error feedback": _constant(metric.Metric, "factor", _no_filters),
    "steps by column": _constant(grid, "MOST_COLUMN", 0),
    "measured gradients (C)": _constant(metric, "SHRINKAGE", 1e12),
    "Kronecker moments (K)": _constant(metric, "SHRINKAGE", 0.0),
    "basis on the taps": _only("none"),
    "choice of it (DCT alone)": _only("dct"),
    "choice of it (KLT alone)": _only("klt"),
    "choice of it (ELT alone)": _only("elt"),
    "rate term in the trellis": _constant(quantizer, "TRELLIS_FEEDBACK_LAMBDA", 1e-6),
    "gains": _constant(feedback, "GAINS", (1.0, 1.0)),
}


def without_corrections(statistics: Statistics) -> Statistics:
    """Statistics that name no side tensors to take up what the coding does to the outputs."""
    weights = {
        name: replace(one, shift=None, shift_sign=1, gain=None)
        for name, one in statistics.weights.items()
    }
    return replace(statistics, weights=weights)


def main() -> None:
    """Measure and print."""
    parser = command_parser("tools", __doc__)
    parser.add_argument("builder")
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    options = parser.parse_args()
    subject = build(options.builder, options.arguments)
    measured = tqcodec.torch.calibrate(subject.model, subject.calibration)
    reference = tqcodec.torch.Reference(subject.model, subject.test)
    weights = _weights(subject)

    def errors(
        switch: Switch = nullcontext,
        statistics: Statistics = measured,
        tune: Batches | None = None,
        effort: int = 5,
    ) -> Array:
        """Bits per weight, octaves of the error and of the KL, by rate."""
        found = []
        for rate in options.rates:
            settings = tqcodec.Settings(bits=rate, effort=effort)
            with switch():
                data = tqcodec.torch.encode(subject.model, settings, statistics, tune=tune)
            seen = reference.compare(tqcodec.torch.decode(data))
            octaves = -seen.snr.value / (20 * np.log10(2)), np.log2(seen.kl.value)
            found.append((8 * len(data) / weights, *octaves))
        return np.array(found)

    full = errors()
    slope = np.polyfit(full[:, 0], full[:, 1], 1)[0]
    print(f"full encoder: error halves every {-1 / slope:.2f} bits (amplitude)")
    print(f"{'without':28} {'bits lost':>9} {'KL':>7}   (geometric mean of the ratio)")

    def show(name: str, rows: Array) -> None:
        moved = rows[:, 1] - slope * (rows[:, 0] - full[:, 0]) - full[:, 1]
        ratio = 2 ** np.mean(rows[:, 2] - full[:, 2])
        print(f"{name:28} {np.mean(moved) / -slope:9.3f} {ratio:7.2f}", flush=True)

    for name, switch in TOOLS.items():
        show(name, errors(switch))
    show("gains and bias correction", errors(statistics=without_corrections(measured)))
    show("trellis (effort 2)", errors(effort=2))
    show("more effort (9)", errors(effort=9))
    show("tuning, which is added", errors(tune=subject.tuning))
    show("statistics (data-free)", errors(statistics=Statistics({})))


def _weights(subject: Subject) -> int:
    return sum(t.numel() for t in subject.model.state_dict().values() if t.ndim >= 2)


if __name__ == "__main__":
    main()
