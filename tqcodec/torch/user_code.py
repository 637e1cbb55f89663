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

# What was loaded: time of change and size of the file, and the module.
_modules: dict[Path, tuple[tuple[int, int], ModuleType]] = {}


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
    """What a function FILE.py:FUNCTION returns; its folder can be imported from.

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
    """The file as a module, run once as long as it stays the same.

    It can be imported by its name, which torch.compile, dataclasses and pickle do with the module
    of a class; by another name where that is taken, as of a file `json.py`.
    """
    about = path.stat()
    stamp = (about.st_mtime_ns, about.st_size)
    known = _modules.get(path)
    if known is not None and known[0] == stamp:
        return known[1]
    name = path.stem if _is_free(path) else f"{path.stem}_{zlib.crc32(bytes(path)):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # because of the suffix
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        if before is not None:
            sys.modules[name] = before
        raise
    _modules[path] = (stamp, module)
    return module


def _is_free(path: Path) -> bool:
    """Whether the name of a file is that of no other module."""
    name = path.stem
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None) == str(path)
    if name in sys.stdlib_module_names:
        return False
    others = [folder for folder in sys.path if Path(folder).resolve() != path.parent]
    return importlib.machinery.PathFinder.find_spec(name, others) is None


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Look for modules in a folder first; afterwards last, for what is imported when it runs.

    Files of another folder that were loaded before do not stand for those of the same name here.
    """
    others = [
        module.__name__
        for path, (_, module) in _modules.items()
        if path.parent != folder and (folder / path.name).exists()
    ]
    hidden = {name: sys.modules.pop(name) for name in others if name in sys.modules}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.modules.update(hidden)
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
