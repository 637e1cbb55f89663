"""Functions in a copied network that hold parts of the original: made anew, with those of the copy.

`copy.deepcopy` leaves functions as they are. A lambda in place of `forward`, or a hook, that holds
the network it was made for would run the original's weights in each copy.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Mapping
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn


def rebind(network: nn.Module, copies: Mapping[int, Any]) -> None:
    """Let functions that modules of a network hold refer to the network.

    Those that name a global variable still run what it is.

    Args:
        network: a deep copy. It changes.
        copies: what stands in it for objects of the original, by their `id`, as `copy.deepcopy`
            notes it.
    """
    found = _Functions(copies)
    for module in network.modules():
        own = vars(module)
        for name, value in own.items():
            own[name] = found.mapped(value)


class _Functions:
    """Functions and what may hold them, made anew where they refer to an original."""

    def __init__(self, copies: Mapping[int, Any]) -> None:
        self._copies = copies
        self._made: dict[int, Any] = {}
        self._kept: list[Any] = []  # so that no other object gets the id of one of them

    def mapped(self, value: Any) -> Any:
        """What is to stand in the copy for a value, itself where nothing in it is an original."""
        if id(value) in self._copies:
            return self._copies[id(value)]
        make = _MAKERS.get(type(value))
        if make is None:
            return value
        if id(value) not in self._made:
            self._made[id(value)] = value  # while it is made: it may hold itself
            self._kept.append(value)
            self._made[id(value)] = make(self, value)
        return self._made[id(value)]

    def function(self, value: FunctionType) -> FunctionType:
        cells = tuple(self.mapped(cell) for cell in value.__closure__ or ())
        defaults, named = self.mapped(value.__defaults__), self.mapped(value.__kwdefaults__)
        attributes = self.mapped(vars(value))
        before = (*(value.__closure__ or ()), value.__defaults__, value.__kwdefaults__, vars(value))
        after = (*cells, defaults, named, attributes)
        if all(one is other for one, other in zip(before, after, strict=True)):
            return value
        made = FunctionType(value.__code__, value.__globals__, value.__name__, defaults, cells)
        functools.update_wrapper(made, value, updated=())
        vars(made).clear()
        vars(made).update(attributes)
        made.__kwdefaults__ = named
        return made

    def cell(self, value: CellType) -> CellType:
        try:
            held = value.cell_contents
        except ValueError:  # nothing yet
            return value
        mapped = self.mapped(held)
        return value if mapped is held else CellType(mapped)

    def method(self, value: MethodType) -> Any:
        function, own = self.mapped(value.__func__), self.mapped(value.__self__)
        same = function is value.__func__ and own is value.__self__
        return value if same else MethodType(function, own)

    def partial(self, value: functools.partial[Any]) -> Any:
        parts = (value.func, value.args, value.keywords)
        function, args, keywords = mapped = tuple(self.mapped(one) for one in parts)
        same = all(one is other for one, other in zip(parts, mapped, strict=True))
        return value if same else functools.partial(function, *args, **keywords)

    def sequence(self, value: Any) -> Any:
        mapped = [self.mapped(one) for one in value]
        same = all(one is other for one, other in zip(value, mapped, strict=True))
        return value if same else type(value)(mapped)

    def mapping(self, value: Any) -> Any:
        mapped = [(key, self.mapped(one)) for key, one in value.items()]
        same = all(one is other for one, (_, other) in zip(value.values(), mapped, strict=True))
        return value if same else type(value)(mapped)


_MAKERS: Mapping[type, Any] = {
    FunctionType: _Functions.function,
    CellType: _Functions.cell,
    MethodType: _Functions.method,
    functools.partial: _Functions.partial,
    list: _Functions.sequence,
    tuple: _Functions.sequence,
    dict: _Functions.mapping,
    OrderedDict: _Functions.mapping,
}
