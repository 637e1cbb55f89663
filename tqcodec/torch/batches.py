"""What is common to all that runs a network over data: its inputs, and where its outputs are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tqcodec.errors import EncodeError

Outputs = Callable[[Any], Tensor]
Call = tuple[tuple[Any, ...], dict[str, Any]]  # arguments, keyword arguments

BATCH = 32  # samples in a batch of a Dataset


def batched(data: Iterable[Any] | Dataset[Any]) -> Iterable[Any]:
    """The batches themselves, or those of a Dataset."""
    return DataLoader(data, batch_size=BATCH) if isinstance(data, Dataset) else data


def inputs_of(batch: Any) -> Any:
    """A tensor or a mapping of keyword arguments: the batch, or the first of a tuple or list.

    Raises:
        EncodeError: neither of them.
    """
    if isinstance(batch, (tuple, list)) and batch:
        batch = batch[0]
    if not isinstance(batch, (Tensor, Mapping)):
        raise EncodeError(f"a batch is a {type(batch).__name__}, not a tensor, tuple or mapping")
    return batch


def device_of(model: nn.Module) -> torch.device:
    """Device of a network's first parameter."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def arguments(inputs: Any, device: torch.device) -> Call:
    """What a network is called with; tensors are on the device and without gradient."""
    if isinstance(inputs, Mapping):
        return (), {name: _moved(value, device) for name, value in inputs.items()}
    return (_moved(inputs, device),), {}


def _moved(value: Any, device: torch.device) -> Any:
    return value.detach().to(device) if isinstance(value, Tensor) else value


def first_logits(given: Any) -> Any:
    """What a network gives: the tensor, its `logits`, or the first tensor of a tuple or mapping."""
    if isinstance(given, Tensor):
        return given
    if isinstance(getattr(given, "logits", None), Tensor):
        return given.logits
    values = given.values() if isinstance(given, Mapping) else given
    values = values if isinstance(values, Iterable) else ()
    return next((value for value in values if isinstance(value, Tensor)), given)


def check_output(given: Any, batch: int, what: str, needs_gradient: bool = False) -> None:
    """Check that what a network gives are finite numbers by sample.

    Args:
        given: the output.
        batch: number of the batch, for the message.
        what: name of the numbers, for the message.
        needs_gradient: True where a weight must have made them.

    Raises:
        EncodeError: they are not.
    """
    fault = ""
    if not isinstance(given, Tensor):
        fault = f"is a {type(given).__name__}, not a tensor: name one with `outputs`"
    elif given.ndim == 0 or given.numel() == 0 or not given.is_floating_point():
        fault = f"has shape {tuple(given.shape)} and type {given.dtype}, not {what} by sample"
    elif needs_gradient and not given.requires_grad:
        fault = "has no gradient by any weight matrix"
    elif not given.isfinite().all():
        fault = "is not finite"
    if fault:
        raise EncodeError(f"the output of the network for batch {batch} {fault}")
