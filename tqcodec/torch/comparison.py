"""How far a decoded network's logits are from the original's: the measures and their intervals.

Symbols: y are the original's logits, z the decoded network's. Owns no network and runs none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Estimate:
    """A value measured on a sample, and the 95 % confidence interval around it.

    The interval of a single image is not a number where it comes from the spread over images.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Comparison:
    """A decoded network beside the original, over the same images.

    Attributes:
        images: how many.
        agreement: per cent of images whose first class is the same (Wilson's interval).
        kl: mean Kullback-Leibler divergence KL(original || decoded) of the softmax of the logits,
            in nats (normal interval over images).
        snr: 10 log10 of the energy of the original's logits over that of the error, in dB; infinite
            where they are equal, not a number where a decoded logit is no finite number (interval
            by the delta method over images).
        top1: per cent of images that the original classifies right (Wilson); None without labels.
        top1_decoded: the same of the decoded network.
        drop: percentage points of top-1 that are lost (normal interval of the paired differences).
    """

    images: int
    agreement: Estimate
    kl: Estimate
    snr: Estimate
    top1: Estimate | None = None
    top1_decoded: Estimate | None = None
    drop: Estimate | None = None


@dataclass(frozen=True)
class Samples:
    """One number for each image, so that batches can be joined.

    Attributes:
        same: whether the first class is the same.
        kl: divergence in nats.
        energy: |y|^2, over the classes that the original does not rule out.
        error: |y - z|^2, likewise.
        right: whether the original and the decoded network are right, (images, 2); None without
            labels.
    """

    same: NDArray[np.bool_]
    kl: NDArray[np.float64]
    energy: NDArray[np.float64]
    error: NDArray[np.float64]
    right: NDArray[np.bool_] | None


def measure(original: torch.Tensor, decoded: torch.Tensor, labels: torch.Tensor | None) -> Samples:
    """The measures of each image of a batch.

    Args:
        original: logits (images, classes).
        decoded: the same of the decoded network.
        labels: integers (images,), or None.
    """
    y, z = original.double(), decoded.double()
    log_p, log_q = y.log_softmax(1), z.log_softmax(1)
    # A class that the original rules out (a logit of minus infinity) adds nothing.
    possible = y != -math.inf
    terms = torch.where(possible, log_p.exp() * (log_p - log_q), 0.0)
    first = torch.stack([y.argmax(1), z.argmax(1)], 1)
    return Samples(
        same=(first[:, 0] == first[:, 1]).numpy(),
        kl=terms.sum(1).numpy(),
        energy=torch.where(possible, y * y, 0.0).sum(1).numpy(),
        error=torch.where(possible, (y - z) ** 2, 0.0).sum(1).numpy(),
        right=None if labels is None else (first == labels[:, None]).numpy(),
    )


def summarize(parts: Sequence[Samples]) -> Comparison:
    """The comparison over all images of all batches."""

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in parts])

    kl = joined("kl")
    found = {
        "agreement": _share(joined("same")),
        "kl": _mean(kl),
        "snr": _decibels(joined("energy"), joined("error")),
    }
    if parts[0].right is not None:
        right = joined("right")
        found["top1"], found["top1_decoded"] = _share(right[:, 0]), _share(right[:, 1])
        found["drop"] = _mean(100.0 * right[:, 0] - 100.0 * right[:, 1])
    return Comparison(images=len(kl), **found)


def _share(hits: NDArray[np.bool_]) -> Estimate:
    """Per cent of hits, with Wilson's interval."""
    n, p = len(hits), float(hits.mean())
    middle = p + Z95**2 / (2 * n)
    half = Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    scale = 100 / (1 + Z95**2 / n)
    return Estimate(100 * p, max(0.0, scale * (middle - half)), min(100.0, scale * (middle + half)))


def _mean(values: NDArray[np.float64]) -> Estimate:
    mean, half = float(values.mean()), Z95 * _standard_error(values)
    return Estimate(mean, mean - half, mean + half)


def _decibels(energy: NDArray[np.float64], error: NDArray[np.float64]) -> Estimate:
    if not error.any():
        return Estimate(math.inf, math.inf, math.inf)
    if not energy.any():
        return Estimate(-math.inf, -math.inf, -math.inf)
    if not np.isfinite(error).all():
        return Estimate(math.nan, math.nan, math.nan)
    value = 10 * math.log10(energy.mean() / error.mean())
    spread = energy / energy.mean() - error / error.mean()
    half = 10 / math.log(10) * Z95 * _standard_error(spread)
    return Estimate(value, value - half, value + half)


def _standard_error(values: NDArray[np.float64]) -> float:
    """Of the mean."""
    n = len(values)
    if n < 2 or not np.isfinite(values).all():
        return math.nan
    return float(values.std(ddof=1)) / math.sqrt(n)
