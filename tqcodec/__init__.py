"""tqcodec: transform coding for neural-network weights.

    data = tqcodec.encode({"weight": array}, tqcodec.Settings(bits=3))
    arrays = tqcodec.decode(data)

Names are imported when they are first used, so that the command line starts at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tqcodec.errors import (
    VERSION,
    DecodeError,
    EncodeError,
    EvaluationError,
    LimitError,
    MalformedError,
    TQCError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from tqcodec.api import (
        FORMAT_VERSION,
        TensorFile,
        decode,
        encode,
        load,
        open,
        save,
        verify,
    )
    from tqcodec.encoder.settings import Settings

__version__ = VERSION
__all__ = [
    "FORMAT_VERSION",
    "DecodeError",
    "EncodeError",
    "EvaluationError",
    "LimitError",
    "MalformedError",
    "Settings",
    "TQCError",
    "TensorFile",
    "UnsupportedError",
    "decode",
    "encode",
    "load",
    "open",
    "save",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "Settings":
        from tqcodec.encoder.settings import Settings

        return Settings
    if name in __all__:
        from tqcodec import api

        return getattr(api, name)
    raise AttributeError(f"module 'tqcodec' has no attribute {name!r}")
