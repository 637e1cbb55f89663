"""Functions in a copied network that hold parts of the original: made anew, with those of the copy.

`copy.deepcopy` leaves functions as they are. A lambda in place of `forward`, or a hook, that holds
the network it was made for would run the original's weights in each copy. What else is not copied
stays as it is: weak references, functions behind `lru_cache`, classes, global variables, and what
a function alone holds of other types than those here.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn

SEQUENCES, MAPPINGS = (list, tuple), (dict, OrderedDict)


def rebind(network: nn.Module, copies: Mapping[int, Any]) -> None:
    """Let functions that a network holds refer to the network. Containers are changed in place.

    Args:
        network: a deep copy.
        copies: what stands in it for objects of the original, by their `id`, as `copy.deepcopy`
            notes it.
    """
    found = _Functions(copies)
    kept = copies.get(id(copies))  # originals that `copy.deepcopy` keeps alive
    for copy in [*copies.values(), *network.modules()]:
        if copy is kept:
            continue
        own: Any = copy if type(copy) in (*MAPPINGS, list) else getattr(copy, "__dict__", None)
        if type(own) in MAPPINGS:
            for name, value in own.items():
                own[name] = found.mapped(value)
        elif type(own) is list:
            own[:] = [found.mapped(value) for value in own]


def _parts(value: Any) -> Iterator[Any]:
    """What an object holds, of the types that are made anew."""
    kind = type(value)
    if kind is FunctionType:
        yield from (value.__defaults__, value.__kwdefaults__, vars(value))
        yield from value.__closure__ or ()
    elif kind is CellType:
        with suppress(ValueError):  # nothing yet
            yield value.cell_contents
    elif kind is MethodType:
        yield from (value.__func__, value.__self__)
    elif kind is functools.partial:
        yield from (value.func, value.args, value.keywords)
    elif kind in SEQUENCES:
        yield from value
    elif kind in MAPPINGS:
        yield from value.values()


class _Functions:
    """Functions and what may hold them, made anew where they refer to an original."""

    def __init__(self, copies: Mapping[int, Any]) -> None:
        self._copies = copies
        self._made: dict[int, Any] = {}
        # What can be changed is rebound where it is.
        rigid = (FunctionType, MethodType, functools.partial, tuple)
        self._own = {id(one) for one in copies.values() if type(one) not in rigid}
        self._kept: list[Any] = []  # so that no other object gets the id of one of them

    def _refers(self, value: Any) -> bool:
        """Whether an original can be reached from a value."""
        seen: set[int] = set()
        left = [value]
        while left:
            one = left.pop()
            if id(one) in self._copies:
                return True
            if id(one) not in seen and id(one) not in self._own:
                seen.add(id(one))
                left += _parts(one)
        return False

    def mapped(self, value: Any) -> Any:
        """What is to stand in the copy for a value, itself where nothing in it is an original."""
        if id(value) in self._copies:
            return self._copies[id(value)]
        if id(value) in self._made:
            return self._made[id(value)]
        if id(value) in self._own or not self._refers(value):
            return value
        self._kept.append(value)
        kind = type(value)
        if kind is FunctionType:
            return self._function(value)
        made: Any
        if kind is list:
            made = self._made[id(value)] = []
            made += [self.mapped(one) for one in value]
            return made
        if kind in MAPPINGS:
            made = self._made[id(value)] = kind()
            made.update((key, self.mapped(one)) for key, one in value.items())
            return made
        parts = [self.mapped(one) for one in _parts(value)]
        if kind is tuple:
            made = tuple(parts)
        elif kind is MethodType:
            made = MethodType(*parts)
        else:
            made = functools.partial(parts[0], *parts[1], **parts[2])
        return self._made.setdefault(id(value), made)

    def _function(self, value: FunctionType) -> FunctionType:
        """Cells are filled last: a function may hold itself."""
        cells: list[CellType] = []
        fill: list[CellType] = []
        for cell in value.__closure__ or ():
            if id(cell) not in self._made:
                refers = self._refers(cell)
                self._made[id(cell)] = CellType() if refers else cell
                self._kept.append(cell)
                if refers:
                    fill.append(cell)
            cells.append(self._made[id(cell)])
        made = FunctionType(value.__code__, value.__globals__, value.__name__, None, tuple(cells))
        self._made[id(value)] = made
        functools.update_wrapper(made, value, updated=())
        vars(made).clear()
        vars(made).update(self.mapped(vars(value)))
        made.__defaults__ = self.mapped(value.__defaults__)
        made.__kwdefaults__ = self.mapped(value.__kwdefaults__)
        for cell in fill:
            self._made[id(cell)].cell_contents = self.mapped(cell.cell_contents)
        return made
