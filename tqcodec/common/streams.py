"""Inputs that need not be files: pipes can be read as well. Imports nothing but `kinds`."""

from __future__ import annotations

import builtins
import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from tqcodec.common.checks import PathLike, path_of


@contextmanager
def open(path: PathLike) -> Iterator[BinaryIO]:
    """A stream in which one can seek: the file, or all bytes of a pipe.

    Raises:
        OSError: it cannot be read; `filename` is the path as it was given.
    """
    path = path_of(path)
    with naming(path):
        file = builtins.open(path, "rb")  # noqa: PTH123, SIM115 - closed below
    with file:
        yield file if is_file(file) else io.BytesIO(file.read())


def read(path: PathLike) -> bytes:
    """All bytes of a file or a pipe.

    Raises:
        OSError: as of `open`.
    """
    path = path_of(path)
    with naming(path), builtins.open(path, "rb") as file:  # noqa: PTH123
        return file.read()


def is_file(file: BinaryIO) -> bool:
    """True for a regular file, False for a pipe or a device, whose bytes can be read once."""
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)


@contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Errors of the system name the file, also where a library left it out."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error
    except ValueError as error:
        if _is_name(os.fspath(path)):
            raise
        raise OSError(errno.EINVAL, "is not the name of a file", os.fspath(path)) from error


def _is_name(path: str) -> bool:
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False
