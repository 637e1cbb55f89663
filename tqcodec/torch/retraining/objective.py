"""Objective: how far a network is from the original, and from labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from tqcodec.errors import EncodeError
from tqcodec.torch.batches import first_logits

# Of the softmax of original and trained network (Hinton et al. 2015), and the labels' share.
TEMPERATURE: Final = 3.0
LABELS: Final = 0.3
IGNORED: Final = -100  # a label of a sample that has none, as torch has it

Loss = Callable[[Any, Any], Tensor]  # (what the network gives, the batch) -> a number


def distillation(given: Any, wanted: Any, labels: Tensor | None) -> Tensor:
    """Distance from what the original gives, and from labels where there are some.

    Of outputs (samples, classes) the Kullback-Leibler divergence of the softmax at a temperature of
    3, times its square, plus 0.3 times the cross entropy of the labels; of all others the squared
    error over the mean energy of the wanted ones.

    Args:
        given, wanted: what the trained and the original network give.
        labels: classes, int64 (samples,), or None.

    Raises:
        EncodeError: outputs that are no such numbers or not as many, or a label that is no class.
    """
    one, other = (_numbers(outputs) for outputs in (given, wanted))
    if one.shape != other.shape:
        raise EncodeError(
            f"retrain: outputs have shape {tuple(one.shape)}, the original's "
            f"{tuple(other.shape)}: give a loss"
        )
    if one.ndim != 2 or one.shape[1] < 2:
        return functional.mse_loss(one, other) / other.square().mean().clamp(min=1e-12)
    found, aim = ((logits / TEMPERATURE).log_softmax(1) for logits in (one, other))
    divergence = functional.kl_div(found, aim, reduction="batchmean", log_target=True)
    loss = divergence * TEMPERATURE**2
    if labels is None or (labels == IGNORED).all():
        return loss
    known = labels[labels != IGNORED]
    if not ((known >= 0) & (known < one.shape[1])).all():
        raise EncodeError(
            f"retrain: labels are {int(known.min())} to {int(known.max())}, the network has "
            f"{one.shape[1]} classes, from 0: leave labels out, or give a loss"
        )
    return loss + LABELS * functional.cross_entropy(one, labels, ignore_index=IGNORED)


def _numbers(outputs: Any) -> Tensor:
    """What is compared of outputs, float32."""
    found = first_logits(outputs)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        kind = found.dtype if isinstance(found, Tensor) else type(found).__name__
        raise EncodeError(f"retrain: the network gives {kind}, not a tensor of floats: give a loss")
    return found.float()


def labels_of(batch: Any, outputs: Any) -> Tensor | None:
    """Classes of a batch: its second part where that is whole numbers, one for each sample."""
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        return None
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        return None
    labels = batch[1]
    whole = isinstance(labels, Tensor) and not labels.is_floating_point()
    if not whole or labels.shape != outputs.shape[:1] or labels.dtype == torch.bool:
        return None
    return labels.to(outputs.device, torch.int64, copy=True)  # gradients refuse inference tensors
