"""Which names of files are addresses. Standard library only."""

from __future__ import annotations

import os
import re
from typing import Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

# fsspec's: schemes, perhaps one behind the other. One letter is a drive of Windows.
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::[A-Za-z][A-Za-z0-9+.-]+)*://")
_FILE: Final = re.compile("(file|local)://", re.IGNORECASE)


def is_url(name: object) -> bool:
    """True for what is read over a network, or by fsspec at all; not for local files."""
    return isinstance(name, str) and _URL.match(name) is not None and not _is_file(name)


def local(path: str) -> str:
    """The path of a local file, which may be given as ``file://PATH``, relative ones too."""
    if not _is_file(path):
        return path
    parts = urlsplit(path)
    place = "" if parts.netloc.lower() == "localhost" else parts.netloc
    return url2pathname(place + parts.path) or path


def shown(url: str) -> str:
    """An address for messages: without a password, and what signs it."""
    plain = url.partition("?")[0]
    return re.sub(r"//[^/@]*@", "//", plain)


def base_name(url: str) -> str:
    """The last part of an address, for a file of that name; `tensors.tqc` where there is none."""
    return os.path.basename(url2pathname(urlsplit(shown(url)).path)) or "tensors.tqc"  # noqa: PTH119


def _is_file(name: str) -> bool:
    return _FILE.match(name) is not None
