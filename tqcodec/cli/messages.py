"""What the command line says on standard error: warnings, and errors with their exit codes."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tqcodec.common import foreign
from tqcodec.errors import (
    DecodeError,
    EncodeWarning,
    InternalError,
    LimitError,
    UnsupportedError,
)

INTERNAL = 70  # EX_SOFTWARE of sysexits.h


def exit_code(error: Exception) -> int:
    """How a process ends that failed with an error of ours or of the operating system."""
    if isinstance(error, UnsupportedError):
        return 3
    if isinstance(error, LimitError):
        return 4
    if isinstance(error, InternalError):
        return INTERNAL
    return 1 if isinstance(error, DecodeError) else 2


def message_of(error: Exception) -> str:
    """What went wrong, and with which file where the error says so."""
    file = getattr(error, "filename", None)
    return reason(error) if file is None else f"{file}: {reason(error)}"


def reason(error: Exception) -> str:
    """What went wrong, without the name of the file."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def complain(message: str) -> None:
    """Say something in one line."""
    with suppress(OSError):  # nowhere to say it
        print(f"tqcodec: {' '.join(message.split())}", file=sys.stderr, flush=True)


class _Log(logging.Handler):
    """Says what libraries log, where nobody else takes it."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(f"warning: {foreign.message(Warning(record.getMessage()))}")


def _text(message: Warning | str) -> str:
    return message if isinstance(message, str) else foreign.message(message)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings of libraries, and what they log of that kind, are messages like ours."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        complain(f"warning: {_text(message)}")

    before = warnings.showwarning
    if before.__module__ != "warnings":  # somebody else takes them
        yield
        return
    last, logging.lastResort = logging.lastResort, _Log(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", EncodeWarning)
            warnings.showwarning = show
            yield
    finally:
        logging.lastResort = last


@contextmanager
def encode_warnings() -> Iterator[list[str]]:
    """Warnings of the block: each is shown at once, and kept to be counted and for ``--json``."""
    found: list[str] = []
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        found.append(_text(message))
        if issubclass(category, EncodeWarning):
            complain(f"warning: {message}")
        else:
            others(message, category, *place, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always", EncodeWarning)
        warnings.showwarning = show
        yield found
