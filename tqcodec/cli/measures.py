"""What was measured of decoded networks, as plain data, lines of text and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tqcodec.cli.text import aligned, printable

if TYPE_CHECKING:
    from tqcodec.torch import Comparison

Data = dict[str, Any]

MEASURES = {
    "top1": ("top-1, original", "%"),
    "top1_decoded": ("top-1, decoded", "%"),
    "drop": ("top-1, drop", "points"),
    "agreement": ("agreement", "%"),
    "kl": ("KL divergence", "nats"),
    "snr": ("SNR of logits", "dB"),
}


def is_of_classes(agreement: float) -> bool:
    """Whether what was measured were scores of classes: the agreement of others is not a number."""
    return not math.isnan(agreement)


def finite(value: Any) -> Any:
    """Plain data whose numbers JSON can hold: null for what is infinite or not a number."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def document(found: Comparison) -> Data:
    """The fields of a comparison; each measure has `value`, `low` and `high`."""
    return finite(asdict(found))


def lines(name: str, size: Data, found: Comparison) -> Iterator[str]:
    """A file's size, then a line for each measure and its interval.

    Args:
        name: of the file.
        size: from `describe.summary`.
        found: what was measured.
    """
    line = f"{printable(name)}: {size['bytes']} of {size['decoded_bytes']} bytes"
    line += f" (ratio {size['ratio']:.2f})"
    if size["bits_per_weight"] is not None:
        line += f", {size['bits_per_weight']:.3f} bits per weight"
    yield f"{line}; {found.images} images, 95 % intervals"
    shown = MEASURES if is_of_classes(found.agreement.value) else {"snr": ("SNR of outputs", "dB")}
    rows = []
    for field, (label, unit) in shown.items():
        if (one := getattr(found, field)) is not None:
            rows.append([label, f"{one.value:.4g}", unit, f"[{one.low:.4g}, {one.high:.4g}]"])
    yield from aligned(rows)


def row(encoder: str, bits: float | None, size: Data, found: Comparison, seconds: float) -> Data:
    """One line of the table of a sweep.

    Args:
        encoder: its name.
        bits: per weight, asked for.
        size: from `describe.summary`.
        found: what was measured.
        seconds: that encoding took.
    """
    return {
        "encoder": encoder,
        "bits_asked": bits,
        "bytes": size["bytes"],
        "bits_per_weight": size["bits_per_weight"],
        "top1": None if found.top1_decoded is None else found.top1_decoded.value,
        "drop": None if found.drop is None else found.drop.value,
        "agreement": found.agreement.value,
        "kl": found.kl.value,
        "kl_low": found.kl.low,
        "kl_high": found.kl.high,
        "snr": found.snr.value,
        "seconds": seconds,
    }


def table(rows: Sequence[Data]) -> bytes:
    """Rows of a sweep as CSV, with a heading; an empty cell where there is no number."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([list(rows[0]), *(_cells(one, ".8g") for one in rows)])
    return out.getvalue().encode()


def table_lines(rows: Sequence[Data]) -> Iterator[str]:
    """Rows of a sweep for people."""
    return aligned([list(rows[0]), *(_cells(one, ".4g") for one in rows)], left=1)


def _cells(one: Data, form: str) -> list[str]:
    known = (None if isinstance(x, float) and math.isnan(x) else x for x in one.values())
    shown = (format(x, form) if isinstance(x, float) else x for x in known)
    return ["" if x is None else str(x) for x in shown]
