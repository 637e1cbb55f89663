"""Objective: how far a network is from the original, and from labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from tqcodec.common.checks import kind_of
from tqcodec.errors import EncodeError
from tqcodec.torch.batches import first_logits, inputs_of, samples_of
from tqcodec.torch.outputs import (
    class_axis,
    comparable,
    divergence,
    is_joined,
    outputs_of,
    samples_in,
    spread_of,
)

# Of the softmax of original and trained network (Hinton et al. 2015), and the labels' share.
TEMPERATURE: Final = 3.0
LABELS: Final = 0.3
TINY: Final = 1e-12  # least energy of an output
IGNORED: Final = -100  # a label of a sample that has none, as torch has it

Loss = Callable[[Any, Any], Tensor]  # (what the network gives, the batch) -> a number


def loss_of(loss: Loss | None, given: Any, wanted: Any, batch: Any) -> Tensor:
    """The loss of a batch: the user's, or the distance from the original and from labels.

    Args:
        loss: of the user, or None.
        given, wanted: what the trained and the original network give.
        batch: as it came.

    Returns:
        float ().

    Raises:
        EncodeError: no single real number, or as of `distillation`.
    """
    if loss is None:
        return distillation(given, wanted, samples_of(inputs_of(batch)), labels_of(batch, given))
    found: Any = loss(given, batch)
    if not isinstance(found, Tensor) or found.numel() != 1 or found.is_complex():
        about = kind_of(found)
        if isinstance(found, Tensor):
            about = f"of shape {tuple(found.shape)} and type {found.dtype}"
        raise EncodeError(f"retrain: the loss is {about}, not a tensor of one real number")
    return found.reshape(())


def distillation(given: Any, wanted: Any, samples: int, labels: Tensor | None) -> Tensor:
    """Distance from what the original gives, and from labels where there are some.

    Where the only output is scores of classes (`tqcodec.torch.outputs.class_axis`) the
    Kullback-Leibler divergence of the softmax at a temperature of 3, times its square; else the
    squared error over the mean energy of the original's output, or, of several, over the variance
    of each, the mean of those that have the original's shape. What a detector finds in each sample
    does not count: there is more or less of it from one step to the next. Labels add 0.3 times
    their cross entropy with the first output.

    Args:
        given, wanted: what the trained and the original network give.
        samples: in the batch.
        labels: as of `labels_of`.

    Raises:
        EncodeError: outputs that are no numbers or not as many, or a label that is no class.
    """
    found = _numbers(given, samples)
    aims = {name: y.detach() for name, y in _numbers(wanted, samples).items()}
    names = comparable(aims, found)
    if not names:
        raise EncodeError(f"retrain: {_why_not(given, found, aims)}: give a loss")
    axis = class_axis(aims)
    if axis is not None:
        (name,) = names
        loss = divergence(found[name], aims[name], axis, TEMPERATURE) * TEMPERATURE**2
    else:
        sizes = _sizes(aims, samples)
        errors = [functional.mse_loss(found[name], aims[name]) / sizes[name] for name in names]
        loss = torch.stack(errors).mean()
    if labels is None or (labels == IGNORED).all():
        return loss
    scores = first_logits(given).float()
    known = labels[labels != IGNORED]
    if not ((known >= 0) & (known < scores.shape[1])).all():
        raise EncodeError(
            f"retrain: labels are {int(known.min())} to {int(known.max())}, the network has "
            f"{scores.shape[1]} classes, from 0: leave labels out, or give a loss"
        )
    return loss + LABELS * functional.cross_entropy(scores, labels, ignore_index=IGNORED)


def chance(wanted: Any, samples: int) -> float:
    """The distance from what the original gives of outputs that are alike for all samples.

    Args:
        wanted: what the original network gives.
        samples: in the batch, at least 2. The outputs are the mean over these, which is nearer to
            them than to others: the distance is larger by samples / (samples - 1).
    """
    means = {n: y.mean(0, keepdim=True).expand_as(y) for n, y in _numbers(wanted, samples).items()}
    return float(distillation(means, wanted, samples, None).detach()) * samples / (samples - 1)


def _numbers(given: Any, samples: int) -> dict[str, Tensor]:
    """The outputs that are compared, float32."""
    found = outputs_of(given, samples)
    return {name: y.float() for name, y in found.items() if not is_joined(name)}


def _sizes(outputs: Mapping[str, Tensor], samples: int) -> dict[str, Tensor | float]:
    """What squared errors are measured by: the energy of one output, the variance of several."""
    if len(outputs) == 1:
        return {name: y.square().mean().clamp(min=TINY) for name, y in outputs.items()}
    count = samples_in(outputs, samples)
    return {name: spread_of(y, count) or 1.0 for name, y in outputs.items() if y.numel()}


def _why_not(given: Any, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Why outputs cannot be compared, for messages."""
    if not found:
        one = first_logits(given)
        kind = kind_of(one)
        if isinstance(one, Tensor):
            kind = str(one.dtype if one.layout == torch.strided else one.layout)
        return f"the network gives {kind}, not a tensor of floats by sample"
    shapes, others = ([tuple(y.shape) for y in outputs.values()] for outputs in (found, wanted))
    return f"outputs have shape {shapes}, the original's {others}"


def left_out(batch: Any, outputs: Any) -> str | None:
    """What a batch has beside inputs where it does not count as labels, for a message."""
    if not isinstance(batch, (tuple, list)) or len(batch) < 2 or batch[1] is None:
        return None
    if labels_of(batch, outputs) is not None:
        return None
    second = batch[1]
    if isinstance(second, Tensor):
        return f"{second.dtype} {tuple(second.shape)}"
    return kind_of(second)


def labels_of(batch: Any, outputs: Any) -> Tensor | None:
    """Classes of a batch: its second part where that is whole numbers, one for each sample.

    Args:
        batch: inputs and perhaps more.
        outputs: what the network gives; its first output must be (samples, classes) of floats.

    Returns:
        int64 (samples,), or None.
    """
    outputs = first_logits(outputs)
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        return None
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 2:
        return None
    if not outputs.is_floating_point():
        return None
    labels = batch[1]
    whole = isinstance(labels, Tensor) and not labels.is_floating_point()
    if not whole or labels.shape != outputs.shape[:1] or labels.dtype == torch.bool:
        return None
    return labels.to(outputs.device, torch.int64, copy=True)  # gradients refuse inference tensors
