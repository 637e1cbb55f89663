"""Objective: how far a network is from the original, and from labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from tqcodec.torch.batches import first_logits

# Of the softmax of original and trained network (Hinton et al. 2015), and the labels' share.
TEMPERATURE: Final = 3.0
LABELS: Final = 0.3

Loss = Callable[[Any, Any], Tensor]  # (what the network gives, the batch) -> a number


def distillation(given: Any, wanted: Any, labels: Tensor | None) -> Tensor:
    """Distance from what the original gives, and from labels where there are some.

    Of outputs (samples, classes) the Kullback-Leibler divergence of the softmax at a temperature of
    3, times its square, plus 0.3 times the cross entropy of the labels; of all others the squared
    error over the mean energy of the wanted ones.

    Args:
        given, wanted: what the trained and the original network give.
        labels: classes, int64 (samples,), or None.
    """
    one, other = first_logits(given).float(), first_logits(wanted).float()
    if one.ndim != 2 or one.shape[1] < 2:
        return functional.mse_loss(one, other) / other.square().mean().clamp(min=1e-12)
    found, aim = ((logits / TEMPERATURE).log_softmax(1) for logits in (one, other))
    divergence = functional.kl_div(found, aim, reduction="batchmean", log_target=True)
    loss = divergence * TEMPERATURE**2
    if labels is None:
        return loss
    return loss + LABELS * functional.cross_entropy(one, labels)


def labels_of(batch: Any, outputs: Tensor) -> Tensor | None:
    """Classes of a batch: its second part where that is whole numbers, one for each sample."""
    if not isinstance(batch, (tuple, list)) or len(batch) < 2 or outputs.ndim != 2:
        return None
    labels = batch[1]
    whole = isinstance(labels, Tensor) and not labels.is_floating_point()
    if not whole or labels.shape != outputs.shape[:1] or labels.dtype == torch.bool:
        return None
    return labels.long()
