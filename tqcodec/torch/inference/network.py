"""Networks with the weights of a file: dense, as coefficients, or decoded when they are needed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from tqcodec.common import foreign, urls
from tqcodec.common.checks import PathLike
from tqcodec.errors import EvaluationError
from tqcodec.format.directory import MAX_LENGTH
from tqcodec.format.native_decoder import Tensor as Stored
from tqcodec.format.registry import Coding
from tqcodec.reading.file import TensorFile
from tqcodec.reading.multiplications import of_tensor
from tqcodec.reading.remote.options import Remote
from tqcodec.torch.batches import check_network, copied
from tqcodec.torch.checkpoint import misfit, to_tensor
from tqcodec.torch.inference import coefficients
from tqcodec.torch.inference.coefficients import Coefficients
from tqcodec.torch.inference.held import Forward, Holder, hold
from tqcodec.torch.inference.lazy import Lazy, LazyFile, Owned
from tqcodec.torch.versions import with_versions

Mode = Literal["weights", "transform", "lazy"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)

CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
ATTENTION: Final = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def network(
    model: nn.Module,
    source: bytes | PathLike | TensorFile,
    mode: Mode = "weights",
    *,
    strict: bool = True,
) -> nn.Module:
    """A copy of a network with the weights of a file, which is to be run and not to be trained.

    In the modes "transform" and "lazy" the weights of convolutions of 1 to 3 dimensions, transposed
    ones too, linear layers, embeddings and attention are no parameters: they are made when
    `module.weight` is read. All else is loaded as it is, and so are weights that share a bundle in
    the file, those of embeddings with a largest norm, those of modules that load state dicts in a
    way of their own, and in the mode "transform" those that are coded exactly. Weights that modules
    share stay shared. `state_dict()` has all weights, dense; `load_state_dict` refuses those that
    are held.

    Args:
        model: the network; it is not changed. It may be on the meta device.
        source: path of a file or its address, its bytes, or an open file. In the mode "lazy" it is
            read as long as the network is in use, and must not be closed.
        mode: "weights": parameters as ever. "transform": coefficients stay integers in memory;
            convolutions, linear layers and embeddings compute from them where that takes fewer
            multiplications, else from weights that are rebuilt at each pass. "lazy": weights are
            decoded at each pass, one ahead in a thread, and let go; the results are those of
            "weights" to the bit under `torch.no_grad` or `torch.inference_mode`, else to rounding.
        strict: as of `load_state_dict`: whether file and network must have the same tensors. If
            not, tensors that only the file has are left out, and what only the network has stays.

    Raises:
        DecodeError: the file cannot be decoded.
        EvaluationError: file and network do not fit; the network cannot be copied, or has no values
            for what is not in the file.
        OSError: the file cannot be read.
    """
    check_network(model, EvaluationError)
    if mode not in MODES:
        raise ValueError(f"tqcodec: mode is {mode!r}, not one of {', '.join(MODES)}")
    if isinstance(source, TensorFile):
        return _network(model, source, mode, strict, None)
    file = TensorFile(_at_once(source) if mode != "lazy" else source)
    return _network(model, file, mode, strict, Owned(file))


def _at_once(source: bytes | PathLike) -> bytes | PathLike:
    """The bytes of a file with an address, of which all will be read; others as they are."""
    if not isinstance(source, str) or not urls.is_url(source):
        return source
    from tqcodec.reading.remote.file import arriving

    with arriving(source, Remote()) as coming:
        return coming.fetch(0, coming.hold(0, MAX_LENGTH))


@dataclass
class _Weight:
    """A parameter that may be held, and all places of the network where it is."""

    parameter: Tensor
    places: list[tuple[str, str]]  # name of the module, name of the parameter

    @property
    def keys(self) -> list[str]:
        return [f"{module}.{name}" if module else name for module, name in self.places]


def _network(
    model: nn.Module, file: TensorFile, mode: Mode, strict: bool, owned: Owned | None
) -> nn.Module:
    known = model.state_dict(keep_vars=True)
    lost = [name for name, buffer in model.named_buffers() if buffer.is_meta and name not in known]
    if lost:
        raise EvaluationError(
            f"the buffer {lost[0]!r} is on the meta device and in no state dict: make the network "
            "on a real device"
        )
    held = [] if mode == "weights" else _held(model, file, mode)
    made = _copy(model, held)
    taken = {key for weight in held for key in weight.keys}
    rest = {name: to_tensor(file[name]) for name in file if name not in taken}
    lazy = LazyFile(file, owned) if mode == "lazy" else None
    for weight in held:
        _replace(made, weight, file, lazy)
    try:
        found = made.load_state_dict(with_versions(rest, file.metadata()), strict=strict)
    except Exception as error:  # modules may load as they like
        wanted = {name: tensor for name, tensor in known.items() if name not in taken}
        raise EvaluationError(misfit(wanted, rest) or foreign.described(error)) from error
    missing = set(getattr(found, "missing_keys", ()))
    filled = {id(tensor) for name, tensor in known.items() if name not in missing}
    for name in sorted(missing & known.keys()):
        if known[name].is_meta and id(known[name]) not in filled:
            raise EvaluationError(
                f"the tensor {name!r} is on the meta device and not in the file: make the network "
                "on a real device"
            )
    return made


def _held(model: nn.Module, file: TensorFile, mode: Mode) -> list[_Weight]:
    """The weights of a network that are to be held."""
    tensors = {tensor.name: tensor for tensor in file.tensors}
    found: dict[int, _Weight] = {}
    refused: set[int] = set()
    own: set[str] = set()  # modules that load in a way of their own, and what is within
    for path, module in model.named_modules(remove_duplicate=False):
        if path.rpartition(".")[0] in own or _loads_its_own_way(module):
            own.add(path)
        names = _names(module) if path not in own else ()
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            weight = found.setdefault(id(parameter), _Weight(parameter, []))
            weight.places.append((path, name))
            tensor = tensors.get(weight.keys[-1])
            if name not in names or tensor is None or not _fits(tensor, parameter, mode):
                refused.add(id(parameter))
    return [weight for key, weight in found.items() if key not in refused]


def _names(module: nn.Module) -> tuple[str, ...]:
    """Parameters of a module that may be held."""
    if isinstance(module, nn.Embedding):
        return ("weight",) if module.max_norm is None else ()
    if isinstance(module, nn.MultiheadAttention):
        return ATTENTION
    return ("weight",) if isinstance(module, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)) else ()


def _loads_its_own_way(module: nn.Module) -> bool:
    """Whether what is in a state dict may be something else in the module."""
    if module._load_state_dict_pre_hooks:
        return True
    return type(module)._load_from_state_dict is not nn.Module._load_from_state_dict


def _fits(stored: Stored, parameter: Tensor, mode: Mode) -> bool:
    coded = stored.coding == Coding.TRANSFORM
    own = coded if mode == "transform" else stored.bundle is None and stored.coding in list(Coding)
    real = stored.dtype is not None and stored.dtype.is_float and parameter.is_floating_point()
    return own and real and stored.elements > 0 and stored.shape == tuple(parameter.shape)


def _copy(model: nn.Module, held: list[_Weight]) -> nn.Module:
    """A copy without the weights that are held, and with memory for what is on the meta device."""
    instead: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_meta:
            instead[id(tensor)] = _empty_like(tensor, "cpu")
    for weight in held:
        instead[id(weight.parameter)] = _empty_like(weight.parameter, "meta")
    return copied(model, EvaluationError, instead)


def _empty_like(tensor: Tensor, device: str) -> Tensor:
    empty = torch.empty_like(tensor, device=device, requires_grad=False)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def _replace(made: nn.Module, weight: _Weight, file: TensorFile, lazy: LazyFile | None) -> None:
    """Put a holder in all places of a weight."""
    modules = [(made.get_submodule(path), name) for path, name in weight.places]
    forwards = [None if lazy is not None else _forward(module) for module, _ in modules]
    key = weight.keys[-1]
    if lazy is not None:
        holder: Holder = Lazy(lazy, key, tuple(weight.parameter.shape), weight.parameter)
    else:
        computing = [m for (m, _), f in zip(modules, forwards, strict=True) if f is not None]
        holder = _coefficients(key, file, weight.parameter, computing)
    for (module, name), forward in zip(modules, forwards, strict=True):
        if name in module._parameters:  # else it has been met by another name
            hold(module, name, holder, forward)


def _coefficients(
    key: str, file: TensorFile, like: Tensor, computing: list[nn.Module]
) -> Coefficients:
    tensor = file.transform(key)
    of = next((module for module in computing if isinstance(module, CONVOLUTIONS)), None)
    groups, stride = (of.groups, math.prod(of.stride)) if of is not None else (1, 1)
    operations = of_tensor(key, tensor, groups, stride)
    if not computing:
        operations = replace(operations, transform=None)
    return Coefficients(tensor, like, operations)


def _forward(module: nn.Module) -> Forward | None:
    """How a module computes from coefficients; None where its class has a way of its own."""
    own = type(module).forward
    if isinstance(module, CONVOLUTIONS):
        plain = next(kind for kind in CONVOLUTIONS if isinstance(module, kind))
        usual = own is plain.forward and type(module)._conv_forward is plain._conv_forward
        return coefficients.convolution if usual else None
    if own is nn.Linear.forward:
        return coefficients.linear
    return coefficients.embedding if own is nn.Embedding.forward else None
