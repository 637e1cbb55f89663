"""Code of the user that the command line names as FILE.py:FUNCTION."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from tqcodec.common import foreign, streams
from tqcodec.errors import EncodeError


def load_model(spec: str, device: str = "cpu") -> nn.Module:
    """The network that a function FILE.py:FUNCTION returns, on a device.

    Raises:
        EncodeError: no such file, function, network or device, or the function fails.
    """
    model = call(spec)
    if not isinstance(model, nn.Module):
        raise EncodeError(f"{spec} returned a {type(model).__name__}, not an nn.Module")
    try:
        return model.to(device)
    except Exception as error:  # of torch's device, or of the network's own `to`
        raise EncodeError(f"device {device!r}: {foreign.described(error)}") from error


def call(spec: str) -> Any:
    """What a function FILE.py:FUNCTION returns; its folder can be imported from meanwhile.

    Raises:
        EncodeError: not of this form, no such function, or it fails.
        OSError: no such file.
    """
    file, colon, function = spec.rpartition(":")
    path = Path(file)
    if not colon or path.suffix != ".py" or not function.isidentifier():
        raise EncodeError(f"{spec}: not of the form FILE.py:FUNCTION")
    with streams.naming(path):
        path.stat()
    with _importing_from(path.resolve().parent):
        try:
            about = importlib.util.spec_from_file_location(path.stem, path)
            assert about is not None and about.loader is not None  # because of the suffix
            module = importlib.util.module_from_spec(about)
            about.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise EncodeError(f"{file}: {foreign.described(error)}") from error
        if not callable(getattr(module, function, None)):
            raise EncodeError(f"{file} has no function {function!r}")
        try:
            return getattr(module, function)()
        except (Exception, SystemExit) as error:
            raise EncodeError(f"{spec}: {foreign.described(error)}") from error


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
