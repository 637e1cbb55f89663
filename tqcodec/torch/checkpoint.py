"""Tensors of PyTorch as arrays and back, and PyTorch's own files. Nothing in a file is executed."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from tqcodec.encoder.kinds import Origin
from tqcodec.errors import EncodeError, EvaluationError

Array = NDArray[Any]

WRAPPERS = ("state_dict", "model_state_dict", "model")

# Types that torch's numpy bridge lacks cross it as integers of their size.
_BRIDGE: dict[torch.dtype, tuple[torch.dtype, Any]] = {
    torch.bfloat16: (torch.int16, ml_dtypes.bfloat16),
    torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn),
    torch.float8_e5m2: (torch.uint8, ml_dtypes.float8_e5m2),
}
_BACK = {np.dtype(there).name: (dtype, integer) for dtype, (integer, there) in _BRIDGE.items()}


def to_arrays(state: Mapping[str, Any]) -> dict[str, Array]:
    """Arrays of a state dict, views of its tensors where they are on the CPU.

    Args:
        state: tensors of any device, layout in memory and gradient, by name.

    Raises:
        EncodeError: a value that is no tensor, or a tensor without an array (sparse, quantized,
            on the meta device, of a type that numpy does not have).
    """
    return {name: _to_array(name, value) for name, value in state.items()}


def origins(model: torch.nn.Module) -> dict[str, Origin]:
    """What the tensors of a network's state dict are in it, by name; those it adds are left out.

    Where a module has a running mean and a running variance, all vectors among its buffers count as
    statistics: the layers that keep their norms frozen have weight and bias there too.
    """
    found: dict[int, Origin] = {}
    for module in model.modules():
        buffers = {name: b for name, b in module._buffers.items() if b is not None}
        normalises = {"running_mean", "running_var"} <= buffers.keys()
        for buffer in buffers.values():
            vector = normalises and buffer.ndim == 1
            found[id(buffer)] = Origin.STATISTIC if vector else Origin.BUFFER
    for parameter in model.parameters():
        found[id(parameter)] = Origin.PARAMETER if parameter.requires_grad else Origin.FROZEN
    state = model.state_dict(keep_vars=True)
    return {name: found[id(tensor)] for name, tensor in state.items() if id(tensor) in found}


def _to_array(name: str, value: Any) -> Array:
    if not isinstance(value, torch.Tensor):
        raise EncodeError(f"{name!r} is a {type(value).__name__}, not a tensor")
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        kind = "meta" if value.is_meta else "quantized" if value.is_quantized else value.layout
        raise EncodeError(f"tensor {name!r}: a {kind} tensor cannot be encoded")
    plain = value.detach()
    try:
        if plain.dtype not in _BRIDGE:
            return plain.numpy(force=True)
        integer, there = _BRIDGE[plain.dtype]
        return plain.view(integer).numpy(force=True).view(there)
    except TypeError as error:
        raise EncodeError(f"tensor {name!r}: {plain.dtype} has no array") from error


def from_arrays(tensors: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """Tensors of arrays; memory is shared where an array can be written to."""
    return {name: to_tensor(array) for name, array in tensors.items()}


def to_tensor(array: Array) -> torch.Tensor:
    """The tensor of an array of any dtype that `tqcodec.decode` gives."""
    array = np.require(array, requirements=["C", "W"])
    if array.dtype.name not in _BACK:
        return torch.from_numpy(array)
    dtype, integer = _BACK[array.dtype.name]
    bits = array.view(np.int16 if integer == torch.int16 else np.uint8)
    return torch.from_numpy(bits).view(dtype)


def load_state(model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Give a network the tensors of a state dict.

    Raises:
        EvaluationError: a state dict that does not fit; says which tensor.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = _misfit(model.state_dict(), state) or str(error).partition("\n")[0]
        raise EvaluationError(reason) from error


def _misfit(wanted: Mapping[str, Any], state: Mapping[str, Any]) -> str | None:
    """What is wrong with the first tensor that is missing, of another shape or too many."""
    for name, tensor in wanted.items():
        if name not in state:
            return f"the network's tensor {name!r} is not among the decoded ones"
        shapes = [tuple(getattr(one, "shape", ())) for one in (state[name], tensor)]
        if shapes[0] != shapes[1]:
            return f"decoded tensor {name!r} has shape {shapes[0]}, in the network {shapes[1]}"
    return next((f"the network has no tensor {n!r}" for n in state if n not in wanted), None)


def read(path: str | PathLike[str]) -> dict[str, Array]:
    """Arrays of a checkpoint, loaded with ``weights_only=True``.

    A training checkpoint that keeps its state dict under ``state_dict``, ``model_state_dict`` or
    ``model`` gives that; what stands beside it (optimizer, epoch) is left out. Within a state dict
    everything must be a tensor.

    Raises:
        EncodeError: a file that torch cannot load safely, or a value that is no tensor.
        OSError: the file cannot be read.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
        ValueError,
    ) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise EncodeError(f"{path}: torch cannot load it with weights_only ({reason})") from error
    try:
        return to_arrays(_unwrapped(loaded))
    except EncodeError as error:
        raise EncodeError(f"{path}: {error}") from error


def _unwrapped(loaded: Any) -> Mapping[str, Any]:
    while isinstance(loaded, Mapping):
        inner = next((loaded[k] for k in WRAPPERS if isinstance(loaded.get(k), Mapping)), None)
        if inner is None:
            return loaded
        loaded = inner
    raise EncodeError(f"a {type(loaded).__name__}, not a state dict")


def write(path: str | PathLike[str], tensors: Mapping[str, Array]) -> None:
    """Write arrays as a state dict that ``torch.load`` reads with ``weights_only=True``."""
    with Path(path).open("wb") as file:  # not by its name, which torch would write into the file
        torch.save(from_arrays(tensors), file)
