"""Code of the user that the command line names as FILE.py:FUNCTION."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from tqcodec.common import foreign, streams
from tqcodec.errors import EncodeError

_stamps: dict[Path, tuple[int, int]] = {}  # times of change and sizes of files that were run
_folders: set[Path] = set()  # that they lie in


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
    """What a function FILE.py:FUNCTION returns; its folder can be imported from, from now on.

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
    path = path.resolve()
    with _importing_from(path.parent):
        try:
            module = _module_of(path)
        except (Exception, SystemExit) as error:
            raise EncodeError(f"{file}: {foreign.described(error)}") from error
        if not callable(getattr(module, function, None)):
            raise EncodeError(f"{file} has no function {function!r}")
        try:
            return getattr(module, function)()
        except (Exception, SystemExit) as error:
            raise EncodeError(f"{spec}: {foreign.described(error)}") from error


def _module_of(path: Path) -> ModuleType:
    """The file as a module, run anew each time, as what is global in it may be drawn or used up.

    The module of the first time can be imported by its name, which torch.compile, dataclasses and
    pickle do with that of a class; by another name where that is taken, as of a file `json.py`.
    """
    name = path.stem if _is_free(path) else f"{path.stem}_{zlib.crc32(bytes(path)):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # because of the suffix
    module = importlib.util.module_from_spec(spec)
    about = path.stat()
    stamp = (about.st_mtime_ns, about.st_size)
    if _stamps.setdefault(path, stamp) != stamp:  # another text by now
        sys.modules.pop(name, None)
        _stamps[path] = stamp
    first = sys.modules.setdefault(name, module)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if first is module:
            sys.modules.pop(name, None)
        raise
    return module


def _is_free(path: Path) -> bool:
    """Whether the name of a file is that of no other module."""
    name = path.stem
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None) == str(path)
    if name in sys.stdlib_module_names:
        return False
    others = [folder for folder in sys.path if Path(folder).resolve() != path.parent]
    found = importlib.machinery.PathFinder.find_spec(name, others)
    return found is None or found.loader is None  # a mere folder


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Look for modules in a folder first; afterwards last, for what is imported when it runs.

    Meanwhile those of other folders of users that have the name of a file here are not found.
    """
    hidden = {}
    for name, module in list(sys.modules.items()):
        file = Path(str(getattr(module, "__file__", None) or ""))
        if file.parent in _folders - {folder} and (folder / file.name).exists():
            hidden[name] = sys.modules.pop(name)
    _folders.add(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.modules.update(hidden)
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
