"""tqcodec: transform coding for neural-network weights.

    data = tqcodec.encode({"weight": array}, tqcodec.Settings(bits=3))
    arrays = tqcodec.decode(data)

Names are imported when they are first used, so that the command line starts at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tqcodec.errors import (
    DecodeError,
    EncodeError,
    EncodeWarning,
    EvaluationError,
    InternalError,
    LimitError,
    MalformedError,
    TQCError,
    UnsupportedError,
)
from tqcodec.version import VERSION

if TYPE_CHECKING:
    from tqcodec.api import (
        FORMAT_VERSION,
        decode,
        encode,
        load,
        open,
        save,
        verify,
    )
    from tqcodec.encoder.findings import EncodeReport
    from tqcodec.encoder.gain import coding_gain
    from tqcodec.encoder.kinds import Origin
    from tqcodec.encoder.settings import Settings
    from tqcodec.encoder.statistics import Statistics
    from tqcodec.reading.fetching import fetch
    from tqcodec.reading.file import TensorFile
    from tqcodec.reading.multiplications import Operations, operations
    from tqcodec.reading.remote.options import Remote
    from tqcodec.reading.streaming import stream
    from tqcodec.reading.transform_tensor import TransformTensor

__version__ = VERSION
__all__ = [
    "FORMAT_VERSION",
    "DecodeError",
    "EncodeError",
    "EncodeReport",
    "EncodeWarning",
    "EvaluationError",
    "InternalError",
    "LimitError",
    "MalformedError",
    "Operations",
    "Origin",
    "Remote",
    "Settings",
    "Statistics",
    "TQCError",
    "TensorFile",
    "TransformTensor",
    "UnsupportedError",
    "coding_gain",
    "decode",
    "encode",
    "fetch",
    "load",
    "open",
    "operations",
    "save",
    "stream",
    "verify",
]
_PLACES = {
    "EncodeReport": "tqcodec.encoder.findings",
    "Origin": "tqcodec.encoder.kinds",
    "TensorFile": "tqcodec.reading.file",
    "Operations": "tqcodec.reading.multiplications",
    "Remote": "tqcodec.reading.remote.options",
    "Settings": "tqcodec.encoder.settings",
    "Statistics": "tqcodec.encoder.statistics",
    "TransformTensor": "tqcodec.reading.transform_tensor",
    "fetch": "tqcodec.reading.fetching",
    "coding_gain": "tqcodec.encoder.gain",
    "operations": "tqcodec.reading.multiplications",
    "stream": "tqcodec.reading.streaming",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(_PLACES.get(name, "tqcodec.api")), name)
    raise AttributeError(f"module 'tqcodec' has no attribute {name!r}")
