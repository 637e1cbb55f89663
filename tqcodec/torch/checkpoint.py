"""Tensors of PyTorch as arrays and back, and PyTorch's own files. Nothing in a file is executed."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

from tqcodec import api
from tqcodec.common import foreign, streams
from tqcodec.common.checks import PathLike, kind_of, need
from tqcodec.encoder.kinds import Origin
from tqcodec.errors import EncodeError, EvaluationError
from tqcodec.reading.file import Reading
from tqcodec.torch.versions import versions_of, with_versions

if TYPE_CHECKING:
    from typing_extensions import Unpack

Array = NDArray[Any]

Place = tuple[str, ...]  # keys that lead to something in a checkpoint

PLAIN = (torch.Tensor, torch.nn.Parameter)
DEEPEST = 8  # maps inside each other that are looked through
MOST_LISTED = 8

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
    for module in model.modules():
        found.update((id(one), Origin.DIRECTION) for one in _directions(module))
    state = model.state_dict(keep_vars=True)
    return {name: found[id(tensor)] for name, tensor in state.items() if id(tensor) in found}


def _directions(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """What weight normalisation, new or old, divides by its lengths."""
    listed = module if isinstance(module, parametrize.ParametrizationList) else ()
    if any(type(one).__name__ == "_WeightNorm" for one in listed):
        yield module.get_parameter("original1")
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            yield getattr(module, f"{hook.name}_v")


def _to_array(name: str, value: Any) -> Array:
    if not isinstance(value, torch.Tensor):
        raise EncodeError(f"{name!r} is {kind_of(value)}, not a tensor")
    try:
        fault = _fault(value)
        if fault is not None:
            raise EncodeError(f"tensor {name!r}: {fault}")
        plain = value.detach()
        if plain.dtype not in _BRIDGE:
            return plain.numpy(force=True)
        integer, there = _BRIDGE[plain.dtype]
        return plain.view(integer).numpy(force=True).view(there)
    except EncodeError:
        raise
    except Exception as error:  # tensors of other libraries raise anything
        kind = value.dtype if type(value) in PLAIN else kind_of(value)
        raise EncodeError(
            f"tensor {name!r}: {kind} has no array ({foreign.message(error)})"
        ) from error


def _fault(value: torch.Tensor) -> str | None:
    """Why a tensor has no values that could be read as they lie in memory."""
    if torch.nn.parameter.is_lazy(value):
        return "a lazy parameter without values; run the network once on a batch first"
    if value.layout != torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else value.layout
        return f"a {kind} tensor cannot be encoded"
    if value.is_quantized or value.is_meta:
        return f"a {'meta' if value.is_meta else 'quantized'} tensor cannot be encoded"
    if hasattr(value, "full_tensor"):
        return "a part of a distributed tensor (DTensor); full_tensor() gathers the whole"
    if type(value) in PLAIN and _reach(value) > value.untyped_storage().nbytes():
        return "its memory has been released, as by sharded training; gather it first"
    return None


def _reach(value: torch.Tensor) -> int:
    """Bytes of storage that the elements of a tensor lie in."""
    if not value.numel():
        return 0
    along = zip(value.shape, value.stride(), strict=True)
    last = int(value.storage_offset()) + sum((length - 1) * step for length, step in along)
    return (last + 1) * value.element_size()


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
        TypeError: no state dict.
    """
    need("decoded", state, Mapping, "a state dict or a network")
    try:
        model.load_state_dict(state)
    except Exception as error:  # modules may load as they like
        reason = misfit(model.state_dict(), state) or foreign.described(error)
        raise EvaluationError(reason) from error


def misfit(wanted: Mapping[str, Any], state: Mapping[str, Any]) -> str | None:
    """What is wrong with the first tensor that is missing, of another shape or too many.

    Args:
        wanted: the state dict of the network.
        state: the decoded one.
    """
    for name, tensor in wanted.items():
        if name not in state:
            about = f"the network's tensor {name!r} is not among the decoded ones"
            if (prefix := _prefix(wanted, state)) is not None:
                about += f", but {prefix + name!r} is: load into the network that holds this one"
            elif (prefix := _prefix(state, wanted)) is not None:
                part = prefix.removesuffix(".")
                about += f", but {name.removeprefix(prefix)!r} is: load into its part {part!r}"
            return about
        shapes = [tuple(getattr(one, "shape", ())) for one in (state[name], tensor)]
        if shapes[0] != shapes[1]:
            return f"decoded tensor {name!r} has shape {shapes[0]}, in the network {shapes[1]}"
    extra = next((name for name in state if name not in wanted), None)
    if extra is None:
        return None
    return f"the network has no tensor {extra!r}: leave it out, or load with strict=False"


def _prefix(names: Collection[str], others: Collection[str]) -> str | None:
    """What all names have before them among others, as those of wrapped networks do."""
    first = next(iter(names), "")
    for other in others:
        prefix = other.removesuffix(first)
        if prefix.endswith(".") and all(prefix + name in others for name in names):
            return prefix
    return None


def decoded(source: bytes | PathLike, **options: Unpack[Reading]) -> dict[str, torch.Tensor]:
    """The state dict of a `.tqc` file, as in `tqcodec.torch.decode`."""
    with api.open(source, **options) as file:
        return with_versions(from_arrays(file.decode_all()), file.metadata())


def read(
    path: PathLike, key: str | None = None
) -> tuple[dict[str, Array], dict[str, str], list[str]]:
    """A state dict of a checkpoint, loaded with ``weights_only=True``.

    A training checkpoint holds its state dict somewhere, with other things beside it (optimizer,
    epoch). What is taken is the one map of strings to tensors; where there are several, the one
    among them that has matrices. Within a state dict everything must be a tensor.

    Args:
        path: of the file.
        key: keys that lead to the state dict, with dots between; needed where there are several.

    Returns:
        arrays by name, metadata (versions of modules), and what else is in the file.

    Raises:
        EncodeError: a file that torch cannot load safely, a value that is no tensor, or several
            state dicts.
        OSError: the file cannot be read.
    """
    try:
        with streams.open(path) as file:
            loaded = _load(file, check_archive(file))
        place, state = _chosen(loaded, key)
        return to_arrays(state), versions_of(state), _left_out(loaded, place, state)
    except EncodeError as error:
        raise EncodeError(f"{path}: {error}") from error


def check_archive(file: BinaryIO) -> bool:
    """Refuse what is incomplete or damaged, which torch says obscurely, or not at all.

    Returns:
        True for an archive of several files, as torch writes it.

    Raises:
        EncodeError: says what is wrong.
    """
    head = file.read(1 << 10)
    if not head:
        raise EncodeError("empty file")
    if not head.startswith(b"PK\x03\x04"):
        file.seek(0)
        return False
    size = file.seek(0, 2)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            wrong = [member.filename for member in members if not _is_intact(archive, member)]
    except Exception as error:  # damaged files make zipfile raise anything
        raise EncodeError(
            f"incomplete or damaged: {size} bytes of an archive ({foreign.message(error)})"
        ) from error
    # torch can be told to write no checksums; then all of them are wrong.
    if wrong and len(wrong) < len(members):
        raise EncodeError(f"damaged: wrong checksum of {wrong[0]!r} in the archive")
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise EncodeError("a TorchScript archive: save tensors alone, module.state_dict()")
    file.seek(0)
    return True


def _is_intact(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(member) as file:
            while file.read(1 << 20):
                pass
    except zipfile.BadZipFile as error:
        if "CRC" in str(error):
            return False
        raise
    return True


def _load(file: BinaryIO, archive: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say of is refused or does no harm
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of somebody else's may have anything raised
        reason = foreign.message(error)
        classes = _unsafe_classes(file) if archive else []
        classes = classes or re.findall(r"GLOBAL ([\w.]*\w)", reason)[:1]
        if classes:
            raise EncodeError(
                f"holds {', '.join(classes)}, which torch does not load safely (weights_only); "
                "if you trust the file, save its tensors alone: torch.save(model.state_dict(), ...)"
            ) from error
        raise EncodeError(f"torch cannot load it with weights_only ({reason})") from error


def _unsafe_classes(file: BinaryIO) -> list[str]:
    """Classes and functions that are in the way, where torch can list them."""
    find = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
    file.seek(0)
    with suppress(Exception):  # such a list is not to be had of every file
        return sorted(find(file)) if find is not None else []
    return []


def _chosen(loaded: Any, key: str | None) -> tuple[Place, Mapping[str, Any]]:
    """Where the state dict is, and what it is.

    Raises:
        EncodeError: there is none, or more than one to choose from.
    """
    if not isinstance(loaded, Mapping):
        raise EncodeError(f"{kind_of(loaded)}, not a state dict")
    found = list(_state_dicts(loaded, (), set()))
    if key is not None:
        chosen = [one for one in found if ".".join(one[0]) == key]
        if not chosen:
            raise EncodeError(f"no state dict {key!r}; there are: {_listed(found) or 'none'}")
        return chosen[0]
    main = [one for one in found if any(_is_matrix(value) for value in one[1].values())] or found
    if len(main) > 1:
        raise EncodeError(f"several state dicts, --key takes one of: {_listed(main)}")
    return main[0] if main else ((), loaded)


def _state_dicts(
    value: Mapping[Any, Any], place: Place, seen: set[int]
) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Maps in which tensors have names, each once, and where they are."""
    if id(value) in seen or len(place) > DEEPEST or "param_groups" in value:  # an optimizer's
        return
    seen.add(id(value))
    inner = {key: one for key, one in value.items() if isinstance(one, Mapping)}
    tensors = {key: one for key, one in value.items() if isinstance(one, torch.Tensor)}
    if tensors and all(isinstance(key, str) for key in value):
        yield place, tensors if inner else value
    for key, one in inner.items():
        if isinstance(key, str):
            yield from _state_dicts(one, (*place, key), seen)


def _is_matrix(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 1


def _listed(found: Sequence[tuple[Place, Mapping[str, Any]]]) -> str:
    parts = []
    for place, state in found[:MOST_LISTED]:
        names = ", ".join(list(state)[:2]) + (", ..." if len(state) > 2 else "")
        parts.append(f"{'.'.join(place)!r} ({_counted(len(state))}: {names})")
    if len(found) > MOST_LISTED:
        parts.append(f"{len(found) - MOST_LISTED} others")
    return "; ".join(parts)


def _left_out(loaded: Any, place: Place, state: Mapping[str, Any]) -> list[str]:
    """What is beside the state dict, on the way to it and in it."""
    out, value = [], loaded
    for depth in range(len(place) + 1):
        taken = {place[depth]} if depth < len(place) else state
        for key, one in value.items():
            if key not in taken:
                count = _count(one, set())
                about = _counted(count) if count else type(one).__name__
                out.append(f"{'.'.join([*place[:depth], str(key)])} ({about})")
        value = value[place[depth]] if depth < len(place) else {}
    return out


def _counted(tensors: int) -> str:
    return f"{tensors} tensor{'s' * (tensors != 1)}"


def _count(value: Any, seen: set[int]) -> int:
    """Tensors in it, at any depth."""
    if isinstance(value, torch.Tensor):
        return 1
    if not isinstance(value, (Mapping, list, tuple)) or id(value) in seen:
        return 0
    seen.add(id(value))
    return sum(_count(v, seen) for v in (value.values() if isinstance(value, Mapping) else value))


def write(path: PathLike, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write arrays as a state dict that ``torch.load`` reads with ``weights_only=True``.

    Of the metadata the versions of modules are kept, as of `Module.state_dict()`.
    """
    save(path, with_versions(from_arrays(tensors), metadata))


def save(path: PathLike, document: Any) -> None:
    """Write what ``torch.load`` reads.

    Raises:
        OSError: it cannot be written.
    """
    with Path(path).open("wb") as file:  # not by its name, which torch would write into the file
        try:
            torch.save(document, file)
        except RuntimeError as error:  # of torch, which closes its archive after an error
            cause = error.__context__
            if isinstance(cause, OSError):
                raise OSError(cause.errno, cause.strerror) from error
            raise
