"""The process of the command line: its standard streams, and the signals that end it."""

from __future__ import annotations

import _thread
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import ExtensionFileLoader
from types import FrameType
from typing import Any

ENDING = ("SIGINT", "SIGTERM", "SIGHUP")


def hold_streams() -> None:
    """Standard streams that are closed fail when they are used, and no file gets their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        # The wrong way round, so that using them is an error, but for messages, which may vanish.
        wrong = os.O_WRONLY if number == 0 else os.O_RDONLY if number == 1 else os.O_WRONLY
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, wrong)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        mode = "r" if number == 0 else "w"
        setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def drop_stdout() -> None:
    """What could not be written goes nowhere: Python tries once more at its end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def stdout_kept() -> Iterator[None]:
    """What a network of the user's or a library prints goes where messages go.

    Standard output is for what a command gives, such as a file or a document of JSON.
    """
    ours, kept = sys.stdout, None
    with suppress(OSError, ValueError, AttributeError):
        ours.flush()
        kept = os.dup(1) if ours.fileno() == 1 else None
    if kept is None:  # somebody else takes what is printed
        sys.stdout = sys.stderr
    else:
        os.dup2(2, 1)
        options: Any = {"encoding": ours.encoding, "errors": ours.errors, "closefd": False}
        sys.stdout = open(2, "w", buffering=1, **options)  # noqa: SIM115
    try:
        yield
    finally:
        # What is in buffers by now goes there, too: of those who took the stream before, and of C.
        for stream in (ours, sys.stdout):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        sys.stdout = ours
        if kept is not None:
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).fflush(None)
            os.dup2(kept, 1)
            os.close(kept)


class Ended(BaseException):
    """A signal that asks the process to end; nothing but `main` catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def ending(number: int) -> BaseException:
    """What a signal raises."""
    return KeyboardInterrupt() if number == signal.SIGINT else Ended(number)


def _is_loading(library: str) -> bool:
    """Whether a library is being imported."""
    about = getattr(sys.modules.get(library), "__spec__", None)
    return getattr(about, "_initializing", False) is True


def _is_inside_of_c(frame: FrameType | None) -> bool:
    """Whether a library's C code has called what runs, which may clear away what is raised there.

    So does torch's, which even ends the process, and so do modules made by Cython as they load.
    """
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
            return True
        frame = frame.f_back
    return _is_loading("torch")


def _again(number: int) -> None:
    """Let a signal come once more, a little later."""
    if os.name == "nt":  # where os.kill ends the process
        later = threading.Timer(0.05, _thread.interrupt_main, (number,))
    else:
        later = threading.Timer(0.05, os.kill, (os.getpid(), number))
    later.daemon = True
    later.start()


@contextmanager
def tidy_ending() -> Iterator[list[int]]:
    """Signals that would end the process at once run what tidies up first; those that came."""
    came: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        if _is_inside_of_c(frame):
            _again(number)
            return
        came.append(number)
        raise ending(number)

    def dropped(what: Any) -> None:
        """Python goes on after what is raised in finalizers and in what C calls back."""
        if isinstance(what.exc_value, (KeyboardInterrupt, Ended)):
            _again(getattr(what.exc_value, "number", signal.SIGINT))
        else:
            hook(what)

    numbers = [getattr(signal, name) for name in ENDING if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # elsewhere Python allows no handlers
    before = {number: signal.getsignal(number) for number in numbers}
    # One that is ignored, as by nohup, stays so.
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: handler for number, handler in before.items() if handler in usual}
    for number in before:
        signal.signal(number, end)
    hook = sys.unraisablehook
    if before:
        sys.unraisablehook = dropped
    try:
        yield came
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
