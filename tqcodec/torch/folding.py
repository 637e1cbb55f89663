"""Inference form: normalisations that use running statistics say the same in half the numbers.

In evaluation mode such a layer gives w (x - m) / sqrt(v + eps) + b by channel. With

    s = w / sqrt(v + eps),   w' = s sqrt(v' + eps),   b' = b - m s,   m' = 0,   v' = 1 - eps

it gives the same, and m' and v' are constants, which cost next to nothing in a file. In float32 and
float64 v' is such that v' + eps is 1 as torch adds them, so that w' is s, and scale and shift that
torch computes are weight and bias to the bit. Training on in train mode would normalise by batches
again, which the new weight and bias do not expect.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import TorchFunctionMode

from tqcodec.arrays import dtype_of
from tqcodec.encoder.findings import Finding
from tqcodec.encoder.kinds import Origin
from tqcodec.encoder.means import FAR, distance
from tqcodec.encoder.settings import Settings, options_for
from tqcodec.encoder.statistics import Statistics, WeightStatistics
from tqcodec.torch.batches import copied, to_evaluation

Array = NDArray[Any]

ROLES = ("weight", "bias", "running_mean", "running_var")
# In evaluation mode all of them compute the formula above where there are running statistics;
# InstanceNorm does so too, and only then.
FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward, _InstanceNorm.forward)
AXES = (4, 2, 3, 5)  # of the inputs of normalisations, the most frequent first
NAMED = 3  # layers that a message names


_BATCH_NORM = inspect.signature(functional.batch_norm)


@dataclass(frozen=True)
class Takers:
    """Names of the vectors of a layer that take up a shift and a gain now."""

    bias: str
    weight: str


@dataclass(frozen=True, eq=False)
class Folded:
    """A state dict in inference form.

    Attributes:
        arrays: all of it, by name in its order; those that did not change are those given.
        constants: names of the running means and variances that are constants now.
        takers: by name of such a mean, what takes up in its place what coding does to outputs.
        left: why layers with running statistics are as they were, by their path in the network.
    """

    arrays: dict[str, Array]
    constants: set[str] = field(default_factory=set)
    takers: dict[str, Takers] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def origins(self, known: Mapping[str, Origin]) -> dict[str, Origin]:
        """Origins of the tensors, the constants marked as such."""
        return {**known, **dict.fromkeys(self.constants, Origin.CONSTANT)}

    def statistics(self, given: Mapping[str, WeightStatistics]) -> Statistics:
        """Statistics of the network before, for this one: its outputs are the same."""
        weights = {}
        for name, one in given.items():
            found = self.takers.get(one.shift) if one.shift is not None else None
            if found is not None:
                one = replace(one, shift=found.bias, shift_sign=1, gain=found.weight, behind=True)
            weights[name] = one
        return Statistics(weights, given.without if isinstance(given, Statistics) else {})

    def finding(self) -> Finding | None:
        """What the user should know of layers that are as they were."""
        if not self.left:
            if self.constants:
                return None
            return Finding("inference", "inference: no normalisation with running statistics")
        named = [f"{path!r} ({why})" for path, why in list(self.left.items())[:NAMED]]
        several = len(self.left) > 1
        what = "normalisations are" if several else "normalisation is"
        rest = ", ..." if len(self.left) > NAMED else ""
        text = f"inference: {len(self.left)} {what} left as before: {', '.join(named)}{rest}"
        return Finding("inference", text, tuple(self.left))


def fold(model: nn.Module, arrays: Mapping[str, Array], settings: Settings | None = None) -> Folded:
    """The state dict of a network in inference form. Neither of them is changed.

    Folded are the layers of torch (batch normalisation of all kinds, instance normalisation) that
    have weight, bias and running statistics, and subclasses that do nothing else with these. The
    others with running statistics are left as they are: those without weight and bias, of other
    classes with a forward of their own, kept in train mode while the network is in evaluation mode,
    whose tensors are shared with something else, under a rule `exact` or `weight`, and where the
    result would not be finite or less precise.

    Args:
        model: the network.
        arrays: of its whole state dict, by name.
        settings: whose rules count; none if None.

    Raises:
        EncodeError: a rule without a match, or a network that would have to be copied and cannot.
    """
    options = options_for(settings.rules if settings is not None else (), arrays)
    asked = {name for name, one in options.items() if one.lossless or one.weight}
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    shared, training = _shared(model), _training(model)
    out = Folded(dict(arrays))
    for path, module in model.named_modules():
        tensors = _tensors(module)
        if tensors is None:
            continue
        known = [names.get(id(tensor), []) for tensor in tensors]
        why = _objection(module, tensors, known)
        if why is None and any(id(tensor) in shared for tensor in tensors):
            why = "its tensors are shared"
        if why is None and id(module) in training:
            why = "kept in train mode"
        if why is None and any(name in asked for role in known for name in role):
            why = "a rule"
        new = None if why else folded([arrays[role[0]] for role in known], float(module.eps))
        if new is None:
            out.left[path] = why or "its numbers"
            continue
        for role, array in zip(known, new, strict=True):
            out.arrays.update(dict.fromkeys(role, array))
        weights, biases, means, variances = known
        out.constants.update(means, variances)
        out.takers.update(dict.fromkeys(means, Takers(biases[0], weights[0])))
    return out


def folded(tensors: Sequence[Array], eps: float) -> list[Array] | None:
    """Weight, bias, running mean and variance in inference form, in the types that they have.

    Args:
        tensors: weight, bias, running mean and running variance, (channels,) each.
        eps: added to the variance.

    Returns:
        None where the result would not say the same: numbers that are not finite, a variance below
        zero, a weight that its type holds only with less precision, a mean far from zero.
    """
    weight, bias, mean, variance = (array.astype(np.float64) for array in tensors)
    constant = variance_of(eps, tensors[3].dtype)
    with np.errstate(all="ignore"):
        scale = weight / np.sqrt(variance + eps)
        exact = scale * math.sqrt(float(constant) + eps)
        new = [exact.astype(tensors[0].dtype), (bias - mean * scale).astype(tensors[1].dtype)]
        rounding = 2.0 ** -(dtype_of("weight", tensors[0]).mantissa_bits + 1)
        precise = np.abs(new[0].astype(np.float64) - exact) <= rounding * np.abs(exact)
    if not all(np.isfinite(array.astype(np.float64)).all() for array in (*tensors, *new)):
        return None
    if not precise.all() or (variance < 0).any():
        return None
    if distance(mean, np.sqrt(variance + eps)) > FAR:
        return None  # weight times input and bias would have to cancel, and both are rounded
    return [*new, np.zeros_like(tensors[2]), np.full_like(tensors[3], constant)]


def variance_of(eps: float, dtype: np.dtype[Any]) -> Any:
    """The variance v of a type whose v + eps is nearest to 1, in torch's arithmetic if it can be.

    That adds in the type, in float32 where it is smaller.
    """
    wide = np.float64 if dtype.itemsize > 4 else np.float32
    nearest = dtype.type(max(1 - eps, 0.0))
    around = [nearest, *(np.nextafter(nearest, dtype.type(to)) for to in (0, 2))]

    def miss(variance: Any) -> tuple[bool, float]:
        return bool(wide(variance) + wide(eps) != 1), abs(float(variance) + eps - 1)

    return min(around, key=miss)


def _tensors(module: nn.Module) -> list[Tensor | None] | None:
    """Weight, bias, running mean and variance; None for what has no running statistics."""
    held = {**module._parameters, **module._buffers}
    found = [held.get(role) for role in ROLES]
    return None if found[2] is None or found[3] is None else found


def _objection(
    module: nn.Module, tensors: Sequence[Tensor | None], names: Sequence[Sequence[str]]
) -> str | None:
    """Why a layer is not known to compute the formula with its tensors, None if it is."""
    if any(tensor is None for tensor in tensors):
        return "no weight and bias"
    usual = getattr(type(module), "forward", None) in FORWARDS and "forward" not in vars(module)
    if not usual and not _only_normalises(module):
        return "a forward of its own"
    # A module may compute a tensor of that name, or give its state dict another one.
    same = all(getattr(module, r, None) is t for r, t in zip(ROLES, tensors, strict=True))
    if not same or not all(names):
        return "not in the state dict"
    shapes = {tensor.shape for tensor in tensors if tensor is not None}
    floats = all(tensor.is_floating_point() for tensor in tensors if tensor is not None)
    eps: Any = module.eps
    usual = isinstance(eps, Real) and 0 <= float(eps) < math.inf
    return None if len(shapes) == 1 and floats and usual else "odd tensors or eps"


class _Uses(TorchFunctionMode):
    """While entered, keeps the calls of functions of torch that get one of some tensors."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self._ids = {id(tensor) for tensor in tensors}
        self.found: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        flat = [*args, *kwargs.values()]
        flat += [one for value in flat if isinstance(value, (list, tuple)) for one in value]
        if any(id(one) in self._ids for one in flat):
            self.found.append((func, args, kwargs))
        return func(*args, **kwargs)


def _only_normalises(module: nn.Module) -> bool:
    """True for a subclass that calls `batch_norm` with its tensors, and uses them nowhere else.

    Many libraries have one with an activation behind it. A copy of it is run on zeros.
    """
    if not isinstance(module, (_BatchNorm, _InstanceNorm)):
        return False
    for axes in AXES:
        with suppress(Exception), torch.no_grad(), torch.random.fork_rng([]):
            layer = to_evaluation(copied(module)).cpu()
            tensors = [getattr(layer, role) for role in ROLES]
            inputs = torch.zeros(
                2, len(tensors[0]), *[2] * (axes - 2), dtype=tensors[0].dtype, device="cpu"
            )
            with _Uses(tensors) as uses:
                layer(inputs)
            ((function, args, kwargs),) = uses.found
            call = _BATCH_NORM.bind(*args, **kwargs)
            call.apply_defaults()
            given = call.arguments
            known = all(given[role] is one for role, one in zip(ROLES, tensors, strict=True))
            fixed = not given["training"] and given["eps"] == layer.eps
            return function is functional.batch_norm and known and fixed
    return False


def _held(model: nn.Module) -> Iterator[Tensor]:
    """Tensors of a network, as often as modules have them."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            yield from (tensor for tensor in held.values() if tensor is not None)


def _shared(model: nn.Module) -> set[int]:
    """Ids of tensors that several modules have, or whose memory other tensors use too."""
    counts = Counter(id(tensor) for tensor in _held(model))
    found = {one for one, count in counts.items() if count > 1}
    spans = sorted(span for tensor in _held(model) if (span := _span(tensor)) is not None)
    device, end, last = "", 0, 0
    for where, start, stop, one in spans:
        if where == device and start < end and one != last:
            found |= {one, last}
        if where != device or stop > end:
            device, end, last = where, stop, one
    return found


def _span(tensor: Tensor) -> tuple[str, int, int, int] | None:
    """Device, first address and that behind the last, and id of a tensor; None if not to be had."""
    with suppress(Exception):  # tensors of other libraries raise anything
        along = zip(tensor.shape, tensor.stride(), strict=True)
        reach = 1 + sum((length - 1) * step for length, step in along)
        start = tensor.data_ptr()
        if tensor.numel() and start:
            stop = start + reach * tensor.element_size()
            return str(tensor.device), start, stop, id(tensor)
    return None


def _training(model: nn.Module) -> set[int]:
    """Ids of the modules that are in train mode while the network is in evaluation mode."""
    if getattr(model, "training", False):
        if all(_is_switched(module) for module in model.modules()):
            return set()
        evaluated = to_evaluation(copied(model))
    else:
        evaluated = model
    both = zip(model.modules(), evaluated.modules(), strict=True)
    return {id(module) for module, one in both if getattr(one, "training", False)}


def _is_switched(module: nn.Module) -> bool:
    """True where `eval()` does what that of every module does."""
    usual = type(module).train is nn.Module.train and type(module).eval is nn.Module.eval
    return usual and not {"train", "eval"} & vars(module).keys()
