"""What calibrated encoding is to reach, and whether it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.calibrated.encoders import CALIBRATED
from benchmarks.calibrated.points import Point
from benchmarks.calibrated.tables import BEST_NNCODEC, DROPS, Curves, ratio_at_drop, ratio_at_kl
from benchmarks.common.verdicts import Verdict

LOSSES = ((2.0, 0.3), (1.5, 1.0))
"""Bits per weight, and the points of top-1 that may be lost with them: ResNet-32."""
OVERHEAD = 1.15
"""The whole file over the coded indices, at these rates."""
SIZE_AT_TOP1 = 0.60
"""Of NNCodec's: ResNet-32."""
SIZE_AT_KL = 0.70
"""Of NNCodec's: EfficientNet-Lite0."""
KL_RATES = (3.0, 2.5, 2.0)
SECONDS = {"resnet32": 180.0, "efficientnet_lite0": 600.0}
"""On two cores, statistics included."""


def judge(network: str, points: Sequence[Point], curves: Curves) -> list[Verdict]:
    """Hold the calibrated files of one network against the targets that are set for it."""
    chosen = [p for p in points if p.contender == CALIBRATED]
    if not chosen:
        return []
    found: list[tuple[str, float, bool]] = []
    if network == "resnet32":
        found += [*_losses(curves), *_overhead(chosen), *_at_top1(curves)]
    if network == "efficientnet_lite0":
        found += _at_kl(curves)
    found += _seconds(network, chosen)
    return [Verdict(network, *verdict) for verdict in found]


_Judged = Iterator[tuple[str, float, bool]]


def _losses(curves: Curves) -> _Judged:
    for bits, limit in LOSSES:
        drop = curves[CALIBRATED].drop_at(bits)
        yield f"points lost at {bits:g} bits <= {limit:g}", drop, drop <= limit


def _overhead(points: Sequence[Point]) -> _Judged:
    for bits, _ in LOSSES:
        nearest = min(points, key=lambda p: abs(p.bits - bits))
        over = nearest.bytes / nearest.payload
        yield f"file over payload at {bits:g} bits <= {OVERHEAD:g}", over, over <= OVERHEAD


def _at_top1(curves: Curves) -> _Judged:
    if BEST_NNCODEC in curves:
        for drop in DROPS:
            ratio = ratio_at_drop(curves[CALIBRATED], curves[BEST_NNCODEC], drop)
            target = f"size at {drop:g} points lost <= {SIZE_AT_TOP1:g} NNCodec"
            yield target, ratio, ratio <= SIZE_AT_TOP1


def _at_kl(curves: Curves) -> _Judged:
    if BEST_NNCODEC in curves:
        for bits in KL_RATES:
            ratio = ratio_at_kl(curves[CALIBRATED], curves[BEST_NNCODEC], bits)
            target = f"size at the KL of {bits:g} bits <= {SIZE_AT_KL:g} NNCodec"
            yield target, ratio, ratio <= SIZE_AT_KL


def _seconds(network: str, points: Sequence[Point]) -> _Judged:
    limit = SECONDS.get(network)
    if limit is not None:
        longest = max(p.seconds for p in points)
        yield f"seconds of statistics and encoder < {limit:g}", longest, longest < limit
