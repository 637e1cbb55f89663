"""Provenance: one line in the file that says who made it, and how."""

from __future__ import annotations

from collections.abc import Mapping

from tqcodec.encoder.settings import DEFAULT_QUALITY, Settings
from tqcodec.encoder.statistics import WeightStatistics
from tqcodec.format.directory import MOST_PROVENANCE
from tqcodec.version import VERSION

LONGEST = 10  # digits of an integer; longer ones are rounded, so that the line stays short


def provenance(
    settings: Settings,
    statistics: Mapping[str, WeightStatistics],
    tuned: bool = False,
    retrained: bool = False,
) -> str:
    """Encoder, version, target, effort and samples of the calibration, as section 11.5 has them.

    ``tqcodec 0.1.0 bits=3 effort=5 samples=2000 tuned``: `synthetic` counts samples that were made
    up; without it and `samples` no statistics were used; `retrained` says that the integers of the
    file were trained, `inference` that normalisations are in inference form. Empty where the
    settings leave it out; without some words, the effort first, where it would be too long.
    """
    if not settings.provenance:
        return ""
    maker, effort = f"tqcodec {VERSION} {_target(settings)}", f"effort={settings.effort}"
    words = [maker, effort]
    made_up = max((one.synthetic for one in statistics.values()), default=0)
    given = max((one.images - one.synthetic for one in statistics.values()), default=0)
    words += [f"{n}={_number(c)}" for n, c in (("samples", given), ("synthetic", made_up)) if c]
    more = {"tuned": tuned, "retrained": retrained, "inference": settings.inference}
    words += [word for word, is_so in more.items() if is_so]
    for word in (effort, "inference", "tuned"):
        if len(" ".join(words)) > MOST_PROVENANCE and word in words:
            words.remove(word)
    return " ".join(words)


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
