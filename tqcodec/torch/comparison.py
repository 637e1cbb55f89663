"""How far a decoded network's outputs are from the original's: the measures and their intervals.

Symbols: y are the original's outputs, z the decoded network's. Owns no network and runs none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
        agreement: per cent of images whose first class is the same (Wilson's interval); of images
            with scores at many places, per cent of these. Not a number where the outputs are no
            scores of classes.
        kl: mean Kullback-Leibler divergence KL(original || decoded) of the softmax of the scores,
            in nats (normal interval over images); not a number where `agreement` is none.
        snr: 10 log10 of the energy of the original's scores over that of the error, in dB; of
            outputs that are no scores, -10 log10 of the mean squared error over the mean energy of
            the only output, or over the variance of each of several. Infinite where they are equal,
            not a number where one of the decoded network is no finite number (interval by the delta
            method over images).
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
        same: part of the places, mostly one, where the first class is the same.
        kl: divergence in nats, the mean over places.
        energy: |y|^2, over the classes that the original has finite scores for; 1 where outputs are
            no scores.
        error: |y - z|^2, likewise; where outputs are no scores, as of `relative_error`.
        right: whether the original and the decoded network are right, (images, 2); None without
            labels.
    """

    same: NDArray[np.float64]
    kl: NDArray[np.float64]
    energy: NDArray[np.float64]
    error: NDArray[np.float64]
    right: NDArray[np.bool_] | None


def measure(original: torch.Tensor, decoded: torch.Tensor, labels: torch.Tensor | None) -> Samples:
    """The measures of each image of a batch.

    Args:
        original: scores (images, classes).
        decoded: the same of the decoded network.
        labels: integers (images,), or None.
    """
    y, z = original.double(), decoded.double()
    log_p, log_q = y.log_softmax(1), z.log_softmax(1)
    # A class that the original rules out (a score of minus infinity) adds nothing.
    possible = y != -math.inf
    terms = torch.where(possible, log_p.exp() * (log_p - log_q), 0.0)
    finite = y.isfinite()
    first = torch.stack([y.argmax(1), z.argmax(1)], 1)
    return Samples(
        same=(first[:, 0] == first[:, 1]).double().numpy(),
        kl=terms.sum(1).numpy(),
        energy=torch.where(finite, y * y, 0.0).sum(1).numpy(),
        error=torch.where(finite, (y - z) ** 2, 0.0).sum(1).numpy(),
        right=None if labels is None else (first == labels[:, None]).numpy(),
    )


def measure_places(original: torch.Tensor, decoded: torch.Tensor, axis: int) -> Samples:
    """The measures of each image of a batch that has scores at many places.

    Args:
        original, decoded: scores, images along dimension 0.
        axis: of the classes.
    """
    pairs = zip(original.movedim(axis, -1), decoded.movedim(axis, -1), strict=True)
    # One image after the other: scores of all tokens at each place are many.
    each = [measure(y.reshape(-1, y.shape[-1]), z.reshape(-1, z.shape[-1]), None) for y, z in pairs]
    return Samples(
        same=np.array([one.same.mean() for one in each]),
        kl=np.array([one.kl.mean() for one in each]),
        energy=np.array([one.energy.sum() for one in each]),
        error=np.array([one.error.sum() for one in each]),
        right=None,
    )


def measure_outputs(
    original: Mapping[str, torch.Tensor],
    decoded: Mapping[str, torch.Tensor],
    names: Sequence[str],
    sizes: Mapping[str, float],
    samples: int,
) -> Samples:
    """The measures of each image of a batch whose outputs are no scores of classes.

    Args:
        original, decoded: outputs by name.
        names: of those that are compared; without any the error is 0.
        sizes: that their squared errors are measured by.
        samples: in the batch.
    """
    errors = [relative_error(original[n], decoded[n], sizes[n], samples) for n in names]
    error = (
        torch.stack(errors).mean(0)
        if errors
        else torch.zeros(samples, dtype=torch.float64, device="cpu")
    )
    unknown = np.full(samples, math.nan)
    return Samples(
        same=unknown,
        kl=unknown,
        energy=np.ones(samples),
        error=error.numpy(),
        right=None,
    )


def relative_error(
    original: torch.Tensor, decoded: torch.Tensor, size: float, samples: int
) -> torch.Tensor:
    """Mean squared error of what the original has finite numbers for, over a size.

    Args:
        original, decoded: one output, of one shape.
        size: that the error is measured by; 0 counts as 1.
        samples: in the batch.

    Returns:
        float64 (samples,), whose mean is that over all elements; where the first dimension is not
        that of the samples, all are alike.
    """
    finite = original.isfinite()
    if not finite.any():
        return torch.zeros(samples, dtype=torch.float64, device="cpu")
    y, z = (one.where(finite, 0).double() for one in (original, decoded))
    squares = (y - z).square() / (float(finite.sum()) * (size or 1.0))
    if y.ndim == 0 or len(y) != samples:
        return squares.sum().expand(samples)
    return squares.reshape(samples, -1).sum(1) * samples


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


def _share(hits: NDArray[np.float64]) -> Estimate:
    """Per cent of hits, with Wilson's interval."""
    n, p = len(hits), float(hits.mean())
    if math.isnan(p):
        return Estimate(p, p, p)
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
