"""Tables of the calibrated benchmark: all points, what lies between them, ratios to NNCodec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan

from benchmarks.calibrated.curves import Best, Curve
from benchmarks.calibrated.points import Point
from benchmarks.common.tables import cell, print_aligned

NNCODEC = "NNCodec"
BEST_NNCODEC = "NNCodec, best of all"
BEST_DEFAULT = "NNCodec, best with its side precision"
TUNED = "side"

RATES = (4.0, 3.0, 2.0, 1.5, 1.0)
DROPS = (0.5, 1.0)

DESTROYED = 1.0
"""A divergence beyond which equal quality means nothing."""

Curves = Mapping[str, Curve | Best]
"""Of one network, by contender."""


def curves_of(points: Sequence[Point]) -> Curves:
    """A curve for each contender, and the lower envelopes of NNCodec's variants."""
    names = dict.fromkeys(p.contender for p in points)
    single = {n: Curve([p for p in points if p.contender == n]) for n in names}
    peers = {n: curve for n, curve in single.items() if n.startswith(NNCODEC)}
    found: dict[str, Curve | Best] = {}
    if peers:
        found[BEST_NNCODEC] = Best(list(peers.values()))
        found[BEST_DEFAULT] = Best([c for n, c in peers.items() if TUNED not in n])
    return {**found, **single}


def print_points(points: Sequence[Point]) -> None:
    """Print every file measured but NNCodec's, which are many."""
    print("\nFiles (NNCodec's are in the CSV)\n")
    head = [
        "bytes",
        "bits/w",
        "top-1",
        "drop",
        "±",
        "KL",
        "±",
        "agreement",
        "wall_s",
        "file/payload",
    ]
    lines = [["network", "contender", "setting", *head]]
    for p in (p for p in points if not p.contender.startswith(NNCODEC)):
        over = p.bytes / p.payload if p.payload > 0 else float("nan")
        values = (p.top1, p.drop, p.drop_error, p.kl, p.kl_error, p.agreement, p.seconds, over)
        formats = ("{:.2f}", "{:.2f}", "{:.2f}", "{:.4f}", "{:.4f}", "{:.2f}", "{:.1f}", "{:.3f}")
        cells = [cell(v, f) for v, f in zip(values, formats, strict=True)]
        size = [f"{p.bytes:,}", f"{p.bits:.3f}"]
        lines.append([p.network, p.contender, p.setting, *size, *cells])
    print_aligned(lines)


def print_interpolated(network: str, curves: Curves) -> None:
    """Print divergence and drop at given rates, and the smallest rates at given drops."""
    print(f"\n{network}: KL / points of top-1 lost at so many bits per weight, interpolated\n")
    ends = [f"bits at {d:g} points" for d in DROPS]
    lines = [["contender", "", *(f"{r:g}" for r in RATES), *ends]]
    for name, curve in curves.items():
        cells = [_pair(curve.kl_at(rate), curve.drop_at(rate)) for rate in RATES]
        smallest = [cell(curve.bits_at_drop(d), "{:.3f}") for d in DROPS]
        lines.append([name, "", *cells, *smallest])
    print_aligned(lines)


def print_ratios(network: str, curves: Curves, names: Sequence[str]) -> None:
    """Print the sizes of `names` over those of NNCodec, its best variant, at equal quality."""
    best = curves.get(BEST_NNCODEC)
    if best is None:
        return
    print(f"\n{network}: size over NNCodec's best at equal KL, and at equal top-1\n")
    head = [f"KL at {r:g} bits" for r in RATES] + [f"{d:g} points lost" for d in DROPS]
    lines = [["contender", "", *head]]
    for name in names:
        if name in curves:
            ratios = [ratio_at_kl(curves[name], best, rate) for rate in RATES]
            ratios += [ratio_at_drop(curves[name], best, drop) for drop in DROPS]
            lines.append([name, "", *(cell(ratio, "{:.3f}") for ratio in ratios)])
    print_aligned(lines)


def ratio_at_kl(ours: Curve | Best, theirs: Curve | Best, bits: float) -> float:
    """Size of our file of `bits` over that of theirs with the same divergence.

    Not a number where one of them was not measured, or our network is destroyed.
    """
    kl = ours.kl_at(bits)
    return bits / theirs.bits_at_kl(kl) if kl < DESTROYED else nan


def ratio_at_drop(ours: Curve | Best, theirs: Curve | Best, drop: float) -> float:
    """Size of our smallest file that loses at most `drop` points, over theirs."""
    return ours.bits_at_drop(drop) / theirs.bits_at_drop(drop)


def _pair(kl: float, drop: float) -> str:
    return "" if kl != kl else f"{kl:.4f} / {drop:.2f}"
