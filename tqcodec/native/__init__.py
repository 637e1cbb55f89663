"""What is compiled, where a C compiler was at hand: the loops of the coder, and the decoder.

Both do what Python does here too, faster. The environment variable TQCODEC_NATIVE=0 turns them off;
it is read here and nowhere else. Importing this imports neither, so that help comes at once.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any

LOOPS, DECODER = "_loops", "_decoder"

_WANTED = os.environ.get("TQCODEC_NATIVE", "1") != "0"


def is_built(name: str) -> bool:
    """True if LOOPS or DECODER is there and not turned off."""
    return _WANTED and find_spec(f"{__name__}.{name}") is not None


def library(name: str) -> Any:
    """The compiled module LOOPS or DECODER; None where it is not there, or turned off."""
    if _WANTED:
        with suppress(ImportError):
            return import_module(f"{__name__}.{name}")
    return None
