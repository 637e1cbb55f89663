"""Provenance: one line in the file that says who made it, and how."""

from __future__ import annotations

from collections.abc import Mapping

from tqcodec.encoder.settings import DEFAULT_QUALITY, Settings
from tqcodec.encoder.statistics import WeightStatistics
from tqcodec.format.directory import MOST_PROVENANCE
from tqcodec.version import VERSION

LONGEST = 10  # digits of an integer; longer ones are rounded, so that the line stays short


def provenance(settings: Settings, statistics: Mapping[str, WeightStatistics], tuned: bool) -> str:
    """Encoder, version, target, effort and samples of the calibration, as section 11.5 has them.

    ``tqcodec 0.1.0 bits=3 effort=5 samples=2000 tuned``: without `samples` no statistics were used;
    `inference` says that normalisations are in inference form. Empty where the settings leave it
    out; without the effort where it would be too long.
    """
    if not settings.provenance:
        return ""
    maker, effort = f"tqcodec {VERSION} {_target(settings)}", f"effort={settings.effort}"
    words = []
    if statistics:
        images = max(one.images for one in statistics.values())
        words.append(f"samples={_number(images)}")
    if tuned:
        words.append("tuned")
    if settings.inference:
        words.append("inference")
    line = " ".join([maker, effort, *words])
    return line if len(line) <= MOST_PROVENANCE else " ".join([maker, *words])


def _target(settings: Settings) -> str:
    if settings.lossless:
        return "lossless"
    for name in ("bits", "max_size", "snr", "quality"):
        value = getattr(settings, name)
        if value is not None:
            return f"{name}={_number(value)}"
    return f"quality={_number(DEFAULT_QUALITY)}"


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value) if abs(value) < 10**LONGEST else f"{value:.4g}"
    return f"{value:.6g}"
