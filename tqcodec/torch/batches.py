"""What is common to all that runs a network over data: its inputs, and where its outputs are."""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, Dataset

from tqcodec.common import foreign
from tqcodec.common.checks import kind_of, need
from tqcodec.errors import EncodeError, TQCError
from tqcodec.torch.closures import rebind

Network = TypeVar("Network", bound=nn.Module)
Outputs = Callable[[Any], Tensor]
Call = tuple[tuple[Any, ...], dict[str, Any]]  # arguments, keyword arguments

BATCH = 32  # samples in a batch of a Dataset
SEEDS = -(1 << 63), (1 << 64) - 1  # least and most that torch takes


def batched(data: Iterable[Any] | Dataset[Any]) -> Iterable[Any]:
    """The batches themselves, or those of a Dataset.

    Raises:
        TypeError: neither of them.
        EncodeError: one batch in their place.
    """
    need("the data", data, (Iterable, Dataset), "batches or a Dataset")
    check_several(data, "the data")
    return DataLoader(data, batch_size=BATCH) if isinstance(data, Dataset) else data


def check_several(batches: Any, what: str) -> None:
    """Check that these are batches, and not a single one.

    A tensor would be gone through sample by sample, which many networks take for one sample
    without dimension 0, or for something else; a mapping by its names.

    Args:
        batches: what stands in the place of batches.
        what: its name, for the message.

    Raises:
        EncodeError: a tensor, an array or a mapping.
    """
    if isinstance(batches, (Tensor, np.ndarray, Mapping)):
        kind = type(batches).__name__
        raise EncodeError(f"{what}: one {kind} in place of batches: put it into a list")


def inputs_of(batch: Any) -> Any:
    """A tensor or a mapping of keyword arguments: the batch, or the first of a tuple or list.

    Raises:
        EncodeError: neither of them.
    """
    is_first = isinstance(batch, (tuple, list)) and len(batch) > 0
    inputs = batch[0] if is_first else batch
    if not isinstance(inputs, (Tensor, Mapping)):
        raise EncodeError(
            f"a batch {'begins with' if is_first else 'is'} {kind_of(inputs)}, not a tensor or a "
            "mapping of keyword arguments"
        )
    return inputs


def samples_of(inputs: Any) -> int:
    """Samples in the inputs of a batch, a tensor or a mapping; 0 where no tensor has any."""
    return _samples_of(inputs) or 0


def is_empty(inputs: Any) -> bool:
    """Whether the inputs of a batch are there, and of no sample."""
    return _samples_of(inputs) == 0


def _samples_of(inputs: Any) -> int | None:
    """Of the first tensor that has a dimension for samples; None where none has."""
    values = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    return next((len(value) for value in values if isinstance(value, Tensor) and value.ndim), None)


def check_network(model: Any, error: type[TQCError] = EncodeError) -> None:
    """Check that something can be run.

    Raises:
        TypeError: no nn.Module.
        TQCError: of the type `error`: parameters whose shape is not known yet.
    """
    need("the network", model, nn.Module, "a torch.nn.Module")
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    lazy = next((name for name, tensor in tensors if is_lazy(tensor)), None)
    if lazy is not None:
        raise error(f"tensor {lazy!r} is lazy and has no values; run the network on a batch first")


def length_of(data: Any) -> int | None:
    """How many there are in a list, loader or dataset; None where it does not know.

    Loaders over an IterableDataset have a length by their class, which raises.
    """
    try:
        return len(data)
    except TypeError:
        return None


def copied(
    model: Network, error: type[TQCError] = EncodeError, instead: Mapping[int, Any] | None = None
) -> Network:
    """A deep copy of a network.

    Tensors with a history, such as those of `torch.nn.utils.weight_norm`, which torch does not
    copy, have none in the copy.

    Args:
        model: the network.
        error: type of what is raised.
        instead: what stands in the copy in place of objects of the network, by their `id`.

    Raises:
        TQCError: of the type `error`: something in the network cannot be copied.
    """
    memo = dict(instead or {})
    for module in model.modules():
        values = list(vars(module).values())
        _detach(values, memo)
        for value in values:  # most are empty, and `deepcopy` takes half of its time for these
            if type(value) in (dict, OrderedDict) and not value:
                memo.setdefault(id(value), type(value)())
    try:
        with torch.no_grad():  # else parts in TorchScript get a history
            network = copy.deepcopy(model, memo)
        rebind(network, memo)
    except Exception as fault:  # of the user's modules
        raise error(f"the network cannot be copied: {foreign.described(fault)}") from fault
    return network


def _detach(values: Iterable[Any], memo: dict[int, Any]) -> None:
    """Note what is to stand in a copy for tensors with a history."""
    for value in values:
        if isinstance(value, Tensor):
            if not value.is_leaf:
                memo[id(value)] = value.detach().clone()
        elif isinstance(value, (Mapping, list, tuple)) and not isinstance(value, str):
            _detach(list(value.values()) if isinstance(value, Mapping) else value, memo)


def modes_of(model: nn.Module) -> list[tuple[nn.Module, bool]]:
    """The modules that are in a mode, and whether it is training; frozen TorchScript has none."""
    modules = [module for module in model.modules() if hasattr(module, "training")]
    return [(module, module.training) for module in modules]


def to_evaluation(model: Network) -> Network:
    """The network itself, in evaluation mode."""
    if hasattr(model, "training"):
        with suppress(NotImplementedError):  # an exported program
            return model.eval()
    for module, _ in modes_of(model):
        module.training = False
    return model


class Ordinary(TorchFunctionMode):
    """While entered, functions that refuse tensors made under inference_mode get copies of them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.called(func, args, kwargs or {})

    def called(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a function gives."""
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            if "Inference tensors" not in str(error):
                raise
        # Gradients do not go through such tensors, but through copies of them.
        return func(*_ordinary(args), **_ordinary(kwargs))


def _ordinary(value: Any) -> Any:
    """Copies of tensors that were made under inference_mode, at any depth; the rest as it is."""
    return with_tensors(value, lambda one: one.clone() if one.is_inference() else one)


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A value with each of its tensors changed, however deep in dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (dict, OrderedDict):
        return type(value)((key, with_tensors(one, change)) for key, one in value.items())
    if type(value) in (list, tuple):
        return type(value)(with_tensors(one, change) for one in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(with_tensors(one, change) for one in value))
    return value


def single(tensor: Tensor) -> Tensor:
    """A tensor of floats in float32, any other as it is."""
    return tensor.float() if tensor.is_floating_point() else tensor


class Runner:
    """Runs a network for its outputs alone: without gradients, unless it needs some inside.

    Args:
        network: the network; forces, say, are gradients of an energy.

    Attributes:
        inside: True once it needed some.
    """

    def __init__(self, network: Callable[..., Any]) -> None:
        self._network = network
        self.inside = False

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the network gives; its tensors may have a history."""
        if not self.inside:
            try:
                with torch.no_grad():
                    return self._network(*args, **kwargs)
            except RuntimeError as error:
                if "grad" not in str(error):
                    raise
            self.inside = True
        with torch.inference_mode(False), torch.enable_grad(), Ordinary():
            return self._network(*args, **kwargs)


def device_of(model: nn.Module) -> torch.device:
    """Device of a network's first parameter."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def arguments(inputs: Any, device: torch.device) -> Call:
    """What a network is called with: copies on the device, without gradient, that it may change."""
    if isinstance(inputs, Mapping):
        return (), {name: _moved(value, device) for name, value in inputs.items()}
    return (_moved(inputs, device),), {}


def _moved(value: Any, device: torch.device) -> Any:
    return with_tensors(value, lambda one: one.detach().to(device, copy=True))


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
        fault = f"is {kind_of(given)}, not a tensor: name one with `outputs`"
    elif given.layout != torch.strided:
        fault = f"is a {given.layout} tensor, not {what} by sample"
    elif given.ndim == 0 or given.numel() == 0 or not given.is_floating_point():
        fault = f"has shape {tuple(given.shape)} and type {given.dtype}, not {what} by sample"
    elif needs_gradient and not given.requires_grad:
        fault = "has no gradient by any weight matrix"
    elif not given.isfinite().all():
        fault = "is not finite"
    if fault:
        raise EncodeError(f"the output of the network for batch {batch} {fault}")
