"""The four verbs on numpy arrays, encode, decode, save, load; and open, for single tensors."""

from __future__ import annotations

import builtins
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tqcodec.atomic import replacing
from tqcodec.errors import EncodeError, EncodeWarning
from tqcodec.format import native_decoder
from tqcodec.format.container import Container, default_limit
from tqcodec.format.dtypes import DTYPES, DType
from tqcodec.format.registry import MAJOR, MINOR

if TYPE_CHECKING:
    from tqcodec.encoder.kinds import Origin
    from tqcodec.encoder.plan import Source
    from tqcodec.encoder.settings import Settings
    from tqcodec.encoder.statistics import Statistics

Array = NDArray[Any]
Refine = Callable[[bytes], Mapping[str, Array]]
Progress = Callable[[str, int, int], None]  # (stage, done, of)
PathLike = str | os.PathLike[str]

FORMAT_VERSION = f"{MAJOR}.{MINOR}"

_NATIVE = {
    "BOOL": "?",
    **{f"U{8 * n}": f"<u{n}" for n in (1, 2, 4, 8)},
    **{f"I{8 * n}": f"<i{n}" for n in (1, 2, 4, 8)},
    **{f"F{8 * n}": f"<f{n}" for n in (2, 4, 8)},
}
_EXTENDED = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
_NAMES = {
    **{np.dtype(code).name: name for name, code in _NATIVE.items()},
    **{extended: name for name, extended in _EXTENDED.items()},
}


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """The numpy type of an element type; ml_dtypes has those that numpy lacks."""
    if dtype.name in _NATIVE:
        return np.dtype(_NATIVE[dtype.name])
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, _EXTENDED[dtype.name]))


def _patterns(name: str, array: Array) -> tuple[DType, NDArray[np.unsignedinteger]]:
    """Element type and little-endian bit patterns of an array, in C order."""
    array = np.asarray(array)
    if array.dtype.name not in _NAMES:
        raise EncodeError(f"tensor {name!r}: dtype {array.dtype} is not one that the format holds")
    dtype = DTYPES[_NAMES[array.dtype.name]]
    if dtype.name == "BOOL":
        # Views and other programs leave bytes above 1; every byte but 0 means true.
        return dtype, (np.ascontiguousarray(array).view(np.uint8) != 0).view(np.uint8).reshape(
            array.shape
        )
    little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    # reshape: ascontiguousarray would make a scalar 1-D
    return dtype, np.ascontiguousarray(little).reshape(array.shape).view(dtype.pattern)


def encode(
    tensors: Mapping[str, Array],
    settings: Settings | None = None,
    statistics: Statistics | None = None,
    *,
    origins: Mapping[str, Origin] | None = None,
    refine: Refine | None = None,
    progress: Progress | None = None,
    verify: bool = True,
) -> bytes:
    """A `.tqc` file for named arrays.

    Args:
        tensors: arrays of any shape; dtypes of numpy (bool, integers, float16 to float64) and of
            ml_dtypes (bfloat16, float8_e4m3fn, float8_e5m2). They are not changed. A bool is true
            by any byte but 0.
        settings: how to encode; `Settings()` if None.
        statistics: what calibration data says of the weights (`tqcodec.torch.calibrate`); None
            encodes without data. Weights that it lacks are encoded without data.
        origins: what tensors are in the module that they come from, by name; what is not said is
            told by numbers and names, in doubt exact (docs/encoder.md, Plan).
        refine: given the finished file, new values of 1-D tensors (biases, batch normalisation)
            that go better with the decoded weights; called once.
        progress: called with (stage, done, of).
        verify: decode the file and compare it with the tensors before it is handed out.

    Raises:
        EncodeError: tensors or settings that cannot be encoded as asked.
        InternalError: a fault of tqcodec: the file is not what it should be.

    Warns:
        EncodeWarning: the file decodes to more than a decoder takes by default; statistics of
            weights that have changed since.
    """
    from tqcodec.encoder.pipeline import encode as run
    from tqcodec.encoder.plan import Source
    from tqcodec.encoder.settings import Settings

    known = origins if origins is not None else {}
    sources = []
    for name, array in tensors.items():
        if not isinstance(name, str):
            raise EncodeError(f"tensor name {name!r} is not a string")
        sources.append(Source(name, *_patterns(name, array), known.get(name)))
    by_name = {source.name: source for source in sources}
    if statistics is not None:
        _warn_of_statistics(statistics, by_name)

    def refined(data: bytes) -> dict[str, NDArray[np.unsignedinteger]]:
        assert refine is not None, "wrapped only where there is one"
        found = {}
        for name, array in refine(data).items():
            dtype, patterns = _patterns(name, array)
            old = by_name.get(name)
            if old is None or not old.dtype.is_float:
                continue
            if dtype != old.dtype or patterns.shape != old.patterns.shape:
                raise EncodeError(f"refine: {name!r} has another type or shape than the tensor")
            found[name] = patterns
        return found

    data = run(
        sources,
        settings if settings is not None else Settings(),
        statistics if statistics is not None else {},
        refined if refine is not None else None,
        progress,
        verify,
    )
    _warn_of_size(data, sum(source.patterns.nbytes for source in sources))
    return data


def _warn_of_statistics(statistics: Statistics, sources: Mapping[str, Source]) -> None:
    from tqcodec.encoder.statistics import sampled_places
    from tqcodec.format.dtypes import to_float

    def sampled(name: str) -> NDArray[np.float64] | None:
        source = sources.get(name)
        if source is None or source.patterns.shape != statistics[name].shape:
            return None  # an error of the plan
        flat = source.patterns.reshape(-1)
        return to_float(flat[sampled_places(flat.size)], source.dtype)

    found = statistics.objection(sampled)
    if found is not None:
        warnings.warn(found, EncodeWarning, stacklevel=3)


def _warn_of_size(data: bytes, decoded: int) -> None:
    limit = default_limit(len(data))
    if decoded > limit:
        warnings.warn(
            f"{len(data)} bytes decode to {decoded}, above the default limit of {limit}: "
            f"decode with limit={decoded} (--limit {decoded})",
            EncodeWarning,
            stacklevel=3,
        )


def decode(
    data: bytes,
    *,
    limit: int | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> dict[str, Array]:
    """Arrays of a `.tqc` file, by name, in the order of the file.

    Args:
        data: the whole file.
        limit: largest number of decoded bytes; None for 32 MiB plus 1000 times the file's length.
        workers: threads that decode; only the decoder in C has use for more than one.
        progress: called with (stage, done, of).

    Raises:
        DecodeError: the bytes cannot be decoded.
    """
    found = native_decoder.decode(data, limit, workers, progress)
    if found is not None:
        return {name: patterns.view(numpy_dtype(dtype)) for name, dtype, patterns in found}
    with open(data, limit=limit) as file:
        return _decode_all(file, progress)


def save(
    tensors: Mapping[str, Array],
    path: PathLike,
    settings: Settings | None = None,
    statistics: Statistics | None = None,
    *,
    origins: Mapping[str, Origin] | None = None,
    refine: Refine | None = None,
    progress: Progress | None = None,
    verify: bool = True,
) -> None:
    """`encode` into a file. The file appears whole or not at all; an old one is replaced."""
    data = encode(
        tensors,
        settings,
        statistics,
        origins=origins,
        refine=refine,
        progress=progress,
        verify=verify,
    )
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(data)


def load(
    path: PathLike,
    *,
    limit: int | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> dict[str, Array]:
    """`decode` of a file. `open` takes less memory: it reads one tensor at a time."""
    return decode(Path(path).read_bytes(), limit=limit, workers=workers, progress=progress)


def verify(
    source: bytes | PathLike,
    *,
    limit: int | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Decode everything and check every checksum.

    Raises:
        DecodeError: at the first fault.
    """
    if native_decoder.available():
        if isinstance(source, (bytes, bytearray, memoryview)):
            data = bytes(source)
        else:
            data = Path(source).read_bytes()
        if native_decoder.visit(data, limit, workers, lambda index, patterns: None, progress):
            return
    with open(source, limit=limit) as file:
        for done, _ in enumerate(file.container.decode_all(), 1):
            if progress is not None:
                progress("verify", done, len(file))


def _decode_all(file: TensorFile, progress: Progress | None) -> dict[str, Array]:
    out: dict[str, Array] = {}
    for done, (entry, patterns) in enumerate(file.container.decode_all(), 1):
        out[entry.name] = patterns.view(numpy_dtype(entry.dtype))
        if progress is not None:
            progress("decode", done, len(file))
    return {name: out[name] for name in file}


def open(source: bytes | PathLike, *, limit: int | None = None) -> TensorFile:
    """A file whose tensors are decoded when they are asked for.

    Args:
        source: path of a file, or its bytes.
        limit: as in `decode`.

    Raises:
        DecodeError: the header or the directory cannot be decoded.
        OSError: the file cannot be opened.
    """
    return TensorFile(source, limit)


class TensorFile(Mapping[str, Array]):
    """Read-only mapping from names to arrays, each decoded when it is asked for.

    Attributes:
        container: the file as the format layer sees it.
    """

    def __init__(self, source: bytes | PathLike, limit: int | None = None) -> None:
        self._file: BinaryIO | None = None
        if isinstance(source, (bytes, bytearray, memoryview)):
            data = memoryview(source)
            self.container = Container(lambda o, n: bytes(data[o : o + n]), len(data), limit)
            return
        self._file = file = builtins.open(source, "rb")  # noqa: PTH123, SIM115 - closed by `close`

        def fetch(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        try:
            size = os.fstat(file.fileno()).st_size
            self.container = Container(fetch, size, limit)
        except BaseException:
            file.close()
            raise

    def metadata(self) -> dict[str, str]:
        """The file's free strings."""
        return dict(self.container.directory.metadata)

    def __getitem__(self, name: str) -> Array:
        entry = self.container.directory.entries[self.container.index[name]]
        return self.container.decode(entry).view(numpy_dtype(entry.dtype))

    def __iter__(self) -> Iterator[str]:
        return iter(self.container.index)

    def __len__(self) -> int:
        return len(self.container.index)

    def close(self) -> None:
        """Close the file; arrays already decoded stay."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
