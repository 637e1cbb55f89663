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
from tqcodec.common.checks import kind_of
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
        raise EncodeError(f"{spec} returned {kind_of(model)}, not an nn.Module")
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
    path = path.absolute()  # a link stays what it is called
    with _importing_from(path), _found_by_name(path) as module:
        try:
            _run(module)
        except (Exception, SystemExit) as error:
            raise EncodeError(f"{file}: {foreign.described(error)}") from error
        if not callable(getattr(module, function, None)):
            raise EncodeError(f"{file} has no function {function!r}")
        try:
            return getattr(module, function)()
        except (Exception, SystemExit) as error:
            raise EncodeError(f"{spec}: {foreign.described(error)}") from error


@contextmanager
def _found_by_name(path: Path) -> Iterator[ModuleType]:
    """The file as a module, not run yet; anew each time, as what is global may be used up.

    Meanwhile it can be imported by its name, which torch.compile, dataclasses and pickle do with
    that of a class; afterwards the one of the first time. Where the name is taken, as of a file
    `json.py`, it has another one.
    """
    name = path.stem
    if not _is_free(path):
        name = f"{name.replace('.', '_')}_{zlib.crc32(bytes(path)):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # because of the suffix
    about = path.stat()
    stamp = (about.st_mtime_ns, about.st_size)
    if _stamps.setdefault(path, stamp) != stamp:  # another text by now
        sys.modules.pop(name, None)
        _stamps[path] = stamp
    first = sys.modules.get(name)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        yield module
    except BaseException:
        sys.modules.pop(name, None)
        raise
    finally:
        if first is not None:
            sys.modules[name] = first


def _run(module: ModuleType) -> None:
    assert module.__spec__ is not None and module.__spec__.loader is not None
    module.__spec__.loader.exec_module(module)


def _is_free(path: Path) -> bool:
    """Whether the name of a file is that of no other module."""
    name = path.stem
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None) == str(path)
    if "." in name or name in sys.stdlib_module_names:
        return False
    own = {path.parent, path.resolve().parent}
    others = [folder for folder in sys.path if not {Path(folder).absolute()} <= own]
    found = importlib.machinery.PathFinder.find_spec(name, others)
    return found is None or found.loader is None  # a mere folder


@contextmanager
def _importing_from(path: Path) -> Iterator[None]:
    """Look for modules beside a file first; afterwards last, for what is imported when it runs.

    Meanwhile those of other folders of users that have the name of a file here are not found.
    """
    folder = path.resolve().parent
    own = {folder, path.parent}
    others, hidden = _folders - own, {}
    for name, module in list(sys.modules.items()) if others else ():
        file = Path(str(getattr(module, "__file__", None) or ""))
        if file.parent in others and (folder / file.name).exists():
            hidden[name] = sys.modules.pop(name)
    _folders.update(own)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.modules.update(hidden)
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
