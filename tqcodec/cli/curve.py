"""Drawings: what a network loses over the size of its file, and how a training went."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from tqcodec.cli.measures import is_of_classes
from tqcodec.cli.text import printable
from tqcodec.encoder.settings import Settings

if TYPE_CHECKING:
    from tqcodec.torch import TrainingMoment

Rows = Sequence[dict[str, Any]]

LEFT = {
    "top1": "top-1 in %",
    "agreement": "images whose first class stays, in %",
    "snr": "SNR of outputs in dB",
}


def draw_training(moments: Sequence[TrainingMoment], title: str, settings: Settings) -> bytes:
    """A PNG with two drawings over the epochs of a training: its loss, and bits per weight.

    Args:
        moments: of the training.
        title: heading.
        settings: whose target is drawn as a line.
    """
    epochs = [moment.epoch for moment in moments]

    def fill(left: Axes, right: Axes) -> None:
        left.plot(epochs, [moment.loss for moment in moments])
        left.set(title="loss, without the bits")
        if all(moment.loss > 0 for moment in moments):
            left.set_yscale("log")
            # Within one decade powers of ten would be a single number.
            left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            left.yaxis.set_minor_formatter(NullFormatter())
        right.plot(epochs, [moment.bits for moment in moments])
        last = moments[-1]
        target = settings.bits
        if settings.max_size is not None:
            target = settings.max_size * last.bits / last.size
        if target is not None:
            right.axhline(target, color="grey", linestyle="--", label=f"target {target:.3g}")
            right.legend()
        right.set(title="bits per weight, whole file")
        for axis in (left.yaxis, right.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        for axes in (left, right):
            axes.set_xlabel("epochs")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.grid(alpha=0.3)

    return _png(title, fill)


def draw(rows: Rows, title: str) -> bytes:
    """A PNG with two drawings over bits per weight: accuracy or agreement, and KL divergence.

    Of outputs that are no scores of classes the one on the left has the SNR; the other is empty.

    Args:
        rows: of the table of `network.sweep`.
        title: heading.
    """
    encoders = list(dict.fromkeys(row["encoder"] for row in rows))

    def fill(left: Axes, right: Axes) -> None:
        for colour, encoder in enumerate(encoders):
            own = [row for row in rows if row["encoder"] == encoder]
            own.sort(key=lambda row: row["bits_per_weight"])
            _draw_left(left, own, f"C{colour}")
            _draw_divergence(right, own, f"C{colour}")
        _finish(left, right, rows)

    return _png(title, fill)


def _png(title: str, fill: Callable[[Axes, Axes], None]) -> bytes:
    """A PNG of two drawings side by side, which `fill` draws."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure = Figure(figsize=(12, 5), layout="constrained")
        figure.suptitle(printable(title), parse_math=False)
        fill(*figure.subplots(1, 2))
        figure.savefig(out, format="png", dpi=100)
    return out.getvalue()


def _draw_left(axes: Axes, rows: Rows, colour: str) -> None:
    name = _left(rows[0])
    x, y = ([row[key] for row in rows] for key in ("bits_per_weight", name))
    axes.plot(x, y, "o-", color=colour, label=rows[0]["encoder"])


def _left(row: Mapping[str, Any]) -> str:
    """What the drawing on the left shows."""
    if not is_of_classes(row["agreement"]):
        return "snr"
    return "agreement" if row["top1"] is None else "top1"


def _draw_divergence(axes: Axes, rows: Rows, colour: str) -> None:
    """The mean, and its interval as a bar; on a logarithmic axis only what is positive is seen."""
    shown = [row for row in rows if math.isfinite(row["kl"]) and row["kl"] > 0]
    x, y = ([row[key] for row in shown] for key in ("bits_per_weight", "kl"))
    axes.plot(x, y, "o-", color=colour, label=rows[0]["encoder"])
    for row in shown:
        if math.isfinite(row["kl_low"]):
            low = max(row["kl_low"], row["kl"] / 10)
            axes.vlines(row["bits_per_weight"], low, row["kl_high"], color=colour)


def _finish(left: Axes, right: Axes, rows: Rows) -> None:
    labelled = rows[0]["top1"] is not None
    left.set(title=LEFT[_left(rows[0])])
    if labelled:
        original = rows[0]["top1"] + rows[0]["drop"]
        left.axhline(original, color="grey", linestyle="--", label="original")
    right.set(title="KL divergence from the original, in nats, 95 % interval")
    if any(math.isfinite(row["kl"]) and row["kl"] > 0 for row in rows):
        right.set_yscale("log")
    for axes in (left, right):
        axes.set_xlabel("bits per weight, whole file")
        axes.grid(alpha=0.3)
        axes.legend()
