"""What each tool of the calibrated encoder brings, the others on: bits per weight at equal error.

    python -m benchmarks.tools cifar10_held_out cifar_resnet.py 32 cifar10_train.npz

The first argument is a builder of `common/subjects.py`, the others are its arguments. Each tool is
turned off in turn, by an effort without it or by what the encoder is given, and the network is
encoded at all rates. The error is that of the logits, its logarithm averaged over the rates; the
slope of the full encoder over the rates turns it into bits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

import tqcodec
import tqcodec.torch
from benchmarks.common.command import command_parser
from benchmarks.common.subjects import Batches, Subject, build
from tqcodec import api
from tqcodec.encoder import pipeline
from tqcodec.encoder.effort import EFFORTS, Effort, Tools
from tqcodec.encoder.statistics import Statistics
from tqcodec.torch.checkpoint import origins, to_arrays
from tqcodec.torch.versions import versions_of

RATES = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0)

USUAL = tqcodec.Settings().effort

Array = np.ndarray[Any, np.dtype[np.float64]]


def _only(basis: str) -> Effort:
    """The one basis that the taps may have; the other axes have none."""
    return replace(_with(bases=frozenset({basis})), channel_bases=False)


def _with(**tools: Any) -> Effort:
    return replace(EFFORTS[USUAL], tools=Tools(**tools))


WITHOUT: dict[str, Effort] = {
    "error feedback": _with(feedback=False),
    "steps by column": _with(column_steps=False),
    "measured gradients (C)": _with(gradients=False),
    "Kronecker moments (K)": _with(moments=False),
    "basis on the taps": _only("none"),
    "choice of it (DCT alone)": _only("dct"),
    "choice of it (KLT alone)": _only("klt"),
    "choice of it (ELT alone)": _only("elt"),
    "rate term in the trellis": _with(rate_term=False),
    "gains": _with(gains=False),
}


def encoded(
    model: torch.nn.Module, settings: tqcodec.Settings, statistics: Statistics, effort: Effort
) -> bytes:
    """As `tqcodec.torch.encode`, at an effort that no settings have."""
    state = model.state_dict()
    sources = api.sources_of(to_arrays(state), origins(model))
    settings = replace(settings, metadata=tuple(versions_of(state).items()))
    return pipeline.encode(sources, settings, statistics, effort=effort)[0]


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
    model = subject.model
    measured = tqcodec.torch.calibrate(model, subject.calibration)
    reference = tqcodec.torch.Reference(model, subject.test)
    weights = _weights(subject)

    def errors(
        effort: Effort | int = USUAL, statistics: Statistics = measured, tune: Batches | None = None
    ) -> Array:
        """Bits per weight, octaves of the error and of the KL, by rate."""
        found = []
        for rate in options.rates:
            if isinstance(effort, Effort):
                data = encoded(model, tqcodec.Settings(bits=rate), statistics, effort)
            else:
                settings = tqcodec.Settings(bits=rate, effort=effort)
                data = tqcodec.torch.encode(model, settings, statistics, tune=tune)
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

    for name, effort in WITHOUT.items():
        show(name, errors(effort))
    show("gains and bias correction", errors(statistics=without_corrections(measured)))
    show("trellis (effort 2)", errors(2))
    show("more effort (9)", errors(9))
    show("tuning, which is added", errors(tune=subject.tuning))
    show("statistics (data-free)", errors(statistics=Statistics({})))


def _weights(subject: Subject) -> int:
    return sum(t.numel() for t in subject.model.state_dict().values() if t.ndim >= 2)


if __name__ == "__main__":
    main()
