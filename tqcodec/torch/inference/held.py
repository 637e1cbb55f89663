"""Modules some of whose weights are made when they are asked for.

A held weight is no parameter: it is a property, which asks a holder, a module of its own below the
one that it belongs to. Whatever reads `module.weight` gets a tensor, so every forward works that
does not look for parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

HOLDER: Final = "{}_held"  # name of the holder of a weight, among the modules


class Held:
    """What modules with held weights have before their own class.

    `state_dict` has the weights under their names, as of the dense network; `load_state_dict`
    refuses.
    """

    held_names: tuple[str, ...]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name in self.held_names:  # first, as weights come before biases
            weight = getattr(self, name)
            destination[prefix + name] = weight if keep_vars else weight.detach()
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(  # type: ignore[misc]
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        names = [prefix + name for name in self.held_names if prefix + name in state_dict]
        if names:
            unexpected_keys[:] = [key for key in unexpected_keys if key not in names]
            error_msgs.append(
                f"{', '.join(names)}: compressed in this network, and cannot be loaded; load them "
                "into the original network"
            )

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        base, forward = _ORIGINS[type(self)]
        return _blank, (base, self.held_names, forward), self.__dict__


Forward = Callable[..., Tensor]
_CLASSES: dict[tuple[type[nn.Module], tuple[str, ...], Forward | None], type[Any]] = {}
_ORIGINS: dict[type, tuple[type[nn.Module], Forward | None]] = {}


def hold(module: nn.Module, name: str, holder: nn.Module, forward: Forward | None = None) -> None:
    """Give a module a holder in place of a parameter.

    Args:
        module: which is changed: its class becomes one of this module's.
        name: of the parameter.
        holder: called without arguments, gives the weight.
        forward: in place of the module's own, where there is one.
    """
    base = type(module)
    names: tuple[str, ...] = (name,)
    if isinstance(module, Held):
        base, forward = _ORIGINS[type(module)]
        names = (*module.held_names, name)
    del module._parameters[name]
    module.add_module(HOLDER.format(name), holder)
    module.__class__ = _class(base, names, forward)


def holder_of(module: nn.Module, name: str) -> Any:
    """The holder of a held weight."""
    return module._modules[HOLDER.format(name)]


def _class(base: type[nn.Module], names: tuple[str, ...], forward: Forward | None) -> type[Any]:
    """The class of a module with held weights: one for each base, so that it can be compared."""
    key = base, names, forward
    if key in _CLASSES:
        return _CLASSES[key]
    members: dict[str, Any] = {name: _property(name) for name in names}
    members |= {"held_names": names, "__module__": base.__module__, "__doc__": base.__doc__}
    if forward is not None:
        members["forward"] = forward
    made = type(base.__name__, (Held, base), members)
    _ORIGINS[made] = base, forward
    return _CLASSES.setdefault(key, made)


def _property(name: str) -> property:
    key = HOLDER.format(name)

    def weight(self: nn.Module) -> Tensor:
        found: Tensor = self._modules[key]()  # type: ignore[misc]
        return found

    return property(weight)


def _blank(base: type[nn.Module], names: tuple[str, ...], forward: Forward | None) -> nn.Module:
    """A module of a held class for `pickle` and `copy` to fill."""
    made: Any = _class(base, names, forward)
    return made.__new__(made)


class Holder(nn.Module):
    """Base of holders: its weight follows the network's device and type.

    Attributes:
        like: no elements; of the type and on the device that the weight is to have. A parameter, so
            that networks which ask the next one for these get them; no state dict has it.
    """

    like: Tensor

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        device = "cpu" if like.is_meta else like.device
        none = torch.empty(0, dtype=like.dtype, device=device)
        self.register_parameter("like", nn.Parameter(none, requires_grad=False))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Nothing."""

    def _load_from_state_dict(self, *_: Any) -> None:
        """Nothing."""
