"""Plot of the calibrated benchmark: divergence and top-1 of each network against the rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.calibrated.encoders import (
    CALIBRATED,
    DATA_FREE,
    FEEDBACK,
    MADE_UP,
    RETRAINED,
)
from benchmarks.calibrated.points import FLOAT, Point
from benchmarks.calibrated.tables import BEST_NNCODEC, NNCODEC, curves_of

RANGE = (0.6, 4.4)
"""Bits per weight that are shown."""

_STYLES: dict[str, dict[str, Any]] = {
    RETRAINED: {"color": "#7b2d8b", "marker": "*", "markersize": 10, "linewidth": 2.2, "zorder": 7},
    CALIBRATED: {"color": "#c1272d", "marker": "o", "linewidth": 2.2, "zorder": 6},
    MADE_UP: {"color": "#e08a1e", "marker": "D", "linewidth": 1.8, "zorder": 5},
    DATA_FREE: {"color": "#1f4e9c", "marker": "^", "linewidth": 1.5, "zorder": 5},
    FEEDBACK: {"color": "#0b7a75", "marker": "s", "linewidth": 1.5, "linestyle": "--", "zorder": 4},
}
_BEST: dict[str, Any] = {"color": "black", "linewidth": 1.8, "zorder": 3}
_VARIANT = {"color": "#b0b0b0", "marker": ".", "linewidth": 0.7, "zorder": 2}


def plot(path: Path, points: Mapping[str, Sequence[Point]]) -> None:
    """Write a picture with a column for each network of `points`."""
    style: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    with rc_context(style):
        figure = Figure(figsize=(max(6.5, 4.6 * len(points)), 7.5), layout="constrained")
        axes = figure.subplots(2, len(points), squeeze=False, sharex=True)
        for (divergence, accuracy), (network, chosen) in zip(axes.T, points.items(), strict=True):
            _panel(divergence, chosen, "kl")
            _panel(accuracy, chosen, "top1")
            divergence.set(title=network, yscale="log", xlim=RANGE)
            accuracy.set(xlabel="bits per weight, whole file")
            accuracy.set_ylim(_floor(chosen), None)
        axes[0, 0].set_ylabel("KL(float || decoded) in nats")
        axes[1, 0].set_ylabel("top-1 in per cent")
        # Not each network has all contenders.
        shown = [axis.get_legend_handles_labels() for axis in axes[1]]
        legend = {label: one for lines in shown for one, label in zip(*lines, strict=True)}
        place: Any = {"loc": "outside lower center", "ncols": 3, "frameon": False}
        figure.legend(list(legend.values()), list(legend), **place)
        figure.savefig(path, dpi=130)


def _panel(axes: Axes, points: Sequence[Point], value: str) -> None:
    axes.grid(alpha=0.3, which="both")
    original = [p.top1 for p in points if p.contender == FLOAT]
    if original and value == "top1":
        axes.axhline(original[0], color="black", linewidth=0.8, linestyle=":", label="float32")
    for name, style in _STYLES.items():
        _line(axes, points, name, value, {"label": name, "markersize": 5, **style})
    label = "NNCodec, each variant"
    for name in dict.fromkeys(p.contender for p in points if p.contender.startswith(NNCODEC)):
        _line(axes, points, name, value, {"label": label, "markersize": 4, **_VARIANT})
        label = "_"  # once is enough
    best = curves_of(points).get(BEST_NNCODEC)
    if best is not None:
        rates = np.linspace(*RANGE, 300)
        if value == "kl":
            axes.plot(rates, [best.kl_at(rate) for rate in rates], **_BEST)
        elif original:
            fitted = [original[0] - best.drop_at(rate) for rate in rates]
            axes.plot(rates, fitted, label=f"{BEST_NNCODEC}, fitted", **_BEST)


def _line(
    axes: Axes, points: Sequence[Point], name: str, value: str, style: dict[str, Any]
) -> None:
    chosen = sorted((p for p in points if p.contender == name), key=lambda p: p.bits)
    shown = [p for p in chosen if p.bits <= RANGE[1] + 0.3]
    if shown:
        axes.plot([p.bits for p in shown], [getattr(p, value) for p in shown], **style)


def _floor(points: Sequence[Point]) -> float:
    """Where the axis of top-1 ends: what lies far below helps nobody."""
    original = [p.top1 for p in points if p.contender == FLOAT]
    return max(0.0, (original[0] if original else 100.0) - 30.0)
