"""Running means that are far from zero beside the spread: how many mantissa bits they need.

A relative error of 2^-8 is little for most vectors, but not for the mean of a feature that counts
years: it is taken off numbers that differ by a few. What counts is the error over their spread, the
square root of the variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.tensor import Source
from tqcodec.format.dtypes import to_float

FAR = 16  # spreads from zero; nearer means are vectors like others, whatever bits these have
MOST_ERROR = 2.0**-7  # of such means, over the spread
FARTHEST = 2.0**60  # beyond which all bits count
EPSILON = 1e-5  # that normalisations add to variances, as a rule
PARTNERS = {"running_mean": ("running_var",), "moving_mean": ("moving_variance", "moving_var")}


def bits_needed(sources: Iterable[Source], kept: int) -> Mapping[str, int]:
    """Mantissa bits of means that are far from zero, by name.

    Args:
        sources: all tensors.
        kept: that others keep.
    """
    known = {source.name: source for source in sources}
    found = {}
    for name, source in known.items():
        head, dot, last = name.rpartition(".")
        partners = (known.get(head + dot + other) for other in PARTNERS.get(last, ()))
        partner = next((one for one in partners if one is not None), None)
        if partner is None or not _fit(source, partner):
            continue
        with np.errstate(invalid="ignore"):
            spread = np.sqrt(np.maximum(_values(partner), 0) + EPSILON)
        far = distance(_values(source), spread)
        if far > FAR:
            found[name] = max(kept, math.ceil(math.log2(far / MOST_ERROR)) - 1)
    return found


def _fit(source: Source, partner: Source) -> bool:
    """Whether they are of the same channels."""
    floats = source.dtype.is_float and partner.dtype.is_float
    return floats and source.patterns.shape == partner.patterns.shape and source.patterns.size > 0


def _values(source: Source) -> NDArray[np.float64]:
    return np.asarray(to_float(source.patterns, source.dtype), np.float64)


def distance(means: NDArray[np.float64], spread: NDArray[np.float64]) -> float:
    """The largest mean over the spread, `FARTHEST` at most, of channels that are finite.

    Args:
        means: (channels,).
        spread: (channels,), above 0.
    """
    with np.errstate(all="ignore"):
        found = np.abs(means) / spread
    known = np.isfinite(means) & np.isfinite(spread)
    return float(np.minimum(found[known], FARTHEST).max(initial=0.0))
