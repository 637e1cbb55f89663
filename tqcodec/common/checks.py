"""Checks of the types of arguments, whose errors say which argument. Standard library only."""

from __future__ import annotations

import operator
import os
from types import NoneType
from typing import Any, Final, Literal, get_args

from tqcodec.common.progress import Progress

Kinds = type[Any] | tuple[type[Any], ...]
PathLike = str | os.PathLike[str]
Domain = Literal["weights", "transform"]  # in which tensors are given

DOMAINS: Final[tuple[Domain, ...]] = get_args(Domain)


def need(what: str, value: object, kinds: Kinds, wanted: str) -> None:
    """Raise TypeError unless a value is of one of some kinds.

    Args:
        what: name of the argument.
        value: what was given.
        kinds: as for `isinstance`.
        wanted: the kinds in words, such as "a mapping of names to arrays".
    """
    if not isinstance(value, kinds):
        raise TypeError(f"tqcodec: {what} is {kind_of(value)}, not {wanted}")


def need_number(what: str, value: Any, least: int | None = None, most: int | None = None) -> None:
    """Raise TypeError unless a value is a whole number, ValueError if it is out of bounds."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:  # arrays have `__index__`, but it fails
        number = None
    if number is None:
        raise TypeError(f"tqcodec: {what} is {kind_of(value)}, not a whole number")
    if least is not None and number < least:
        raise ValueError(f"tqcodec: {what} is {number}, not at least {least}")
    if most is not None and number > most:
        raise ValueError(f"tqcodec: {what} is {number}, not at most {most}")


def need_options(limit: int | None, workers: int, progress: Progress | None) -> None:
    """The checks of what all that decodes has in common."""
    if limit is not None:
        need_number("limit", limit, 0)
    need_number("workers", workers, 1)
    need_function("progress", progress)


def need_function(what: str, value: object) -> None:
    """Raise TypeError unless a value can be called, or is None."""
    if not callable(value):
        need(what, value, NoneType, "a function")


def path_of(value: object) -> str:
    """A path as a string.

    Raises:
        TypeError: no path; numbers and bytes, which `open` takes, are none either.
    """
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    need("the path", path, str, "a string or a pathlib.Path")
    return str(path)


def kind_of(value: object) -> str:
    """Its type with an article, for messages."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
