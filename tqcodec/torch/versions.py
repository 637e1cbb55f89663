"""Versions of a network's modules, which PyTorch keeps beside a state dict, as a free string.

`Module.state_dict()` gives an OrderedDict whose attribute `_metadata` has a map for each module,
such as {"version": 2}, by which `load_state_dict` knows how to read what older code saved. A file
holds them under the key `KEY` of its metadata as a JSON object of exceptions, so that most networks
need two bytes: a module of which there are tensors has version 2 if one of its own is named
`num_batches_tracked` (batch normalisation) and else 1. An exception is a number, for {"version":
number}, a whole map, or null for a module without one. Not kept: modules without any tensor whose
version is 1, and values that JSON does not have.
"""

from __future__ import annotations

import json
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

KEY = "torch.versions"
VERSION = "version"
COUNTER = "num_batches_tracked"


def versions_of(state: Mapping[str, Any]) -> dict[str, str]:
    """What `KEY` is to hold for a state dict; nothing where it has no versions."""
    found = getattr(state, "_metadata", None)
    if not isinstance(found, Mapping):
        return {}
    usual, exceptions, lost = _usual(state), {}, []
    for module, about in found.items():
        if not _is_json(module, about):
            lost.append(module)
        elif about != usual.get(module, {VERSION: 1}):
            number = about.get(VERSION) if set(about) == {VERSION} else None
            exceptions[module] = number if type(number) is int else about
    exceptions |= {module: None for module in usual if module not in found}
    if lost:
        names = ", ".join(map(repr, lost))
        warnings.warn(f"versions of modules are not kept, JSON lacks them: {names}", stacklevel=2)
    return {KEY: json.dumps(exceptions, separators=(",", ":"))}


def with_versions(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors; where a file has versions in an OrderedDict with `_metadata`."""
    found = versions(tensors, metadata)
    if found is None:
        return tensors
    state: OrderedDict[str, Tensor] = OrderedDict(tensors)
    state._metadata = found  # type: ignore[attr-defined] # as PyTorch does
    return state


def versions(
    names: Iterable[str], metadata: Mapping[str, str]
) -> OrderedDict[str, dict[str, Any]] | None:
    """`_metadata` of a state dict with these names; None where a file has none that makes sense."""
    try:
        exceptions = json.loads(metadata[KEY])
    except (KeyError, ValueError, RecursionError):
        return None
    if not isinstance(exceptions, dict):
        return None
    found = OrderedDict(_usual(names))
    for module, about in exceptions.items():
        if about is None:
            found.pop(module, None)
        elif type(about) is int:
            found[module] = {VERSION: about}
        elif isinstance(about, dict):
            found[module] = about
    return found


def _usual(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The modules of which there are tensors, in order, with the versions that they mostly have."""
    usual: dict[str, dict[str, Any]] = {"": {VERSION: 1}}
    for name in names:
        parts = str(name).split(".")
        for depth in range(1, len(parts)):
            usual.setdefault(".".join(parts[:depth]), {VERSION: 1})
        if parts[-1] == COUNTER:
            usual[".".join(parts[:-1])] = {VERSION: 2}
    return usual


def _is_json(module: Any, about: Any) -> bool:
    try:
        text = json.dumps(about)
        text.encode()
        same: bool = isinstance(about, Mapping) and json.loads(text) == about
    except (TypeError, ValueError, RecursionError):
        return False
    return isinstance(module, str) and same
