"""The four verbs on numpy arrays, encode, decode, save, load; and open, for single tensors."""

from __future__ import annotations

import builtins
import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType, TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tqcodec.common import foreign, streams
from tqcodec.common.atomic import check_writable, replacing
from tqcodec.common.checks import need, need_function, need_options, path_of
from tqcodec.common.progress import Progress
from tqcodec.errors import EncodeError
from tqcodec.format import native_decoder
from tqcodec.format.container import Container
from tqcodec.format.dtypes import DTYPES, DType, to_float
from tqcodec.format.header import Header
from tqcodec.format.registry import MAJOR, MINOR

if TYPE_CHECKING:
    from tqcodec.encoder.findings import EncodeReport, Finding
    from tqcodec.encoder.kinds import Origin
    from tqcodec.encoder.plan import Source
    from tqcodec.encoder.settings import Settings
    from tqcodec.encoder.statistics import Statistics

Array = NDArray[Any]
Refine = Callable[[bytes], Mapping[str, Array]]
PathLike = str | os.PathLike[str]

BYTES = (bytes, bytearray, memoryview)
_SEEKING = threading.Lock()  # only where a file cannot be read at a position

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


def dtype_of(name: str, array: Array) -> DType:
    """The element type of an array, the tensor `name`.

    Raises:
        EncodeError: the format has none for it.
    """
    if array.dtype.name not in _NAMES:
        raise EncodeError(f"tensor {name!r}: dtype {array.dtype} is not one that the format holds")
    return DTYPES[_NAMES[array.dtype.name]]


def _patterns(name: str, array: Array) -> tuple[DType, NDArray[np.unsignedinteger]]:
    """Element type and little-endian bit patterns of an array, in C order."""
    try:
        if isinstance(array, np.ma.MaskedArray):
            raise EncodeError(f"tensor {name!r}: a masked array; its mask would be lost, fill it")
        array = np.asarray(array)
    except EncodeError:
        raise
    except Exception as error:  # of whatever somebody takes for an array
        raise EncodeError(f"tensor {name!r}: no array ({foreign.message(error)})") from error
    dtype = dtype_of(name, array)
    if dtype.name == "BOOL":
        # Views and other programs leave bytes above 1; every byte but 0 means true.
        true = np.ascontiguousarray(array).view(np.uint8) != 0
        return dtype, true.view(np.uint8).reshape(array.shape)
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
    report: EncodeReport | None = None,
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
        report: filled with what came out: what was warned of, and how good each matrix is.

    Raises:
        EncodeError: tensors or settings that cannot be encoded as asked.
        InternalError: a fault of tqcodec: the file is not what it should be.
        TypeError: an argument of another type.

    Warns:
        EncodeWarning: for each finding of `EncodeReport`: matrices that are much worse than the
            others, a target that was missed, statistics of weights that have changed since, a file
            beyond a decoder's default limit.
    """
    from tqcodec.encoder.pipeline import encode as run
    from tqcodec.encoder.plan import Source
    from tqcodec.encoder.settings import Settings
    from tqcodec.encoder.statistics import WeightStatistics

    need("tensors", tensors, Mapping, "a mapping of names to arrays")
    need("settings", settings, (Settings, NoneType), "tqcodec.Settings")
    need("statistics", statistics, (Mapping, NoneType), "tqcodec.Statistics")
    for name, one in (statistics or {}).items():
        need(f"statistics of {name!r}", one, WeightStatistics, "WeightStatistics")
    need("origins", origins, (Mapping, NoneType), "a mapping of names to Origin")
    need_function("refine", refine)
    need_function("progress", progress)
    need("verify", verify, bool, "True or False")
    known = origins if origins is not None else {}
    sources = []
    for name, array in tensors.items():
        if not isinstance(name, str):
            raise EncodeError(f"tensor name {name!r} is not a string")
        sources.append(Source(name, *_patterns(name, array), known.get(name)))
    by_name = {source.name: source for source in sources}
    settings = settings if settings is not None else Settings()
    stale = _of_statistics(statistics, by_name)

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
            if not np.isfinite(to_float(patterns, dtype)).all():
                raise EncodeError(f"refine: {name!r} has become infinite or NaN")
            found[name] = patterns
        return found

    data, found = run(
        sources,
        settings,
        statistics if statistics is not None else {},
        refined if refine is not None else None,
        progress,
        verify,
    )
    found.findings[:0] = stale
    found.warn(stacklevel=3)
    if report is not None:
        report.findings, report.snr = found.findings, found.snr
    return data


def _of_statistics(statistics: Any, sources: Mapping[str, Source]) -> list[Finding]:
    """Whether statistics are of other weights than these."""
    from tqcodec.encoder.findings import Finding
    from tqcodec.encoder.statistics import Statistics, sampled_places

    def sampled(name: str) -> NDArray[np.float64] | None:
        source = sources.get(name)
        if source is None or source.patterns.shape != statistics[name].shape:
            return None  # an error of the plan
        flat = source.patterns.reshape(-1)
        return to_float(flat[sampled_places(flat.size)], source.dtype)

    found = statistics.objection(sampled) if isinstance(statistics, Statistics) else None
    return [] if found is None else [Finding("statistics", found)]


def _look_at_nothing(index: int, patterns: Array) -> None:
    """What a verification makes of tensors that decode."""


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
        TypeError: an argument of another type, such as the name of a file, which `load` takes.
    """
    need("data", data, BYTES, "the bytes of a file (load takes its path)")
    need_options(limit, workers, progress)
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
    report: EncodeReport | None = None,
) -> None:
    """`encode` into a file. The file appears whole or not at all; an old one is replaced.

    Raises:
        EncodeError: as in `encode`.
        OSError: the file cannot be written, said before any work is done.
    """
    check_writable(path)
    data = encode(
        tensors,
        settings,
        statistics,
        origins=origins,
        refine=refine,
        progress=progress,
        verify=verify,
        report=report,
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
    return decode(streams.read(path), limit=limit, workers=workers, progress=progress)


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
    need_options(limit, workers, progress)
    if native_decoder.available():
        # Read once: it may be a pipe.
        source = source if isinstance(source, BYTES) else streams.read(source)
        with suppress(MemoryError):  # one tensor after the other takes less
            if native_decoder.visit(bytes(source), limit, workers, _look_at_nothing, progress):
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

    Threads and forked processes may share it: reads have positions of their own. It is pickled (and
    copied) as the path of the file, which is opened again there, or as the bytes that it was made
    of. Once it is closed, names and metadata are still there, tensors are not (ValueError).

    Attributes:
        container: the file as the format layer sees it.
    """

    def __init__(self, source: bytes | PathLike, limit: int | None = None) -> None:
        need_options(limit, 1, None)
        self._limit = limit
        self._closed = False
        self._path: str | None = None
        self._file: BinaryIO | None = None
        self._data = memoryview(b"")
        if isinstance(source, BYTES):
            self._data = memoryview(source).cast("B")
        else:
            source = path_of(source)
            with streams.naming(source):
                file = builtins.open(source, "rb", buffering=0)  # noqa: PTH123, SIM115
                if streams.is_file(file):
                    # Opened again by another process, perhaps one in another folder.
                    self._path, self._file = os.path.abspath(source), file  # noqa: PTH100
                else:
                    with file:
                        self._data = memoryview(file.read())
        try:
            self.container = Container(self._fetch, self._size(), limit)
        except BaseException:
            self.close()
            raise

    def _size(self) -> int:
        return len(self._data) if self._file is None else os.fstat(self._file.fileno()).st_size

    def _fetch(self, offset: int, length: int) -> bytes:
        self._check_open()
        if self._file is None:
            return bytes(self._data[offset : offset + length])
        data = _read_at(self._file, offset, length)
        self._check_open()  # else the bytes may be those of a file opened meanwhile
        return data

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"tqcodec: {self._path or 'the file'} is closed, open it again")

    def metadata(self) -> dict[str, str]:
        """The file's free strings."""
        return dict(self.container.directory.metadata)

    def __getitem__(self, name: str) -> Array:
        entry = self.container.directory.entries[self.container.index[name]]
        self._check_open()
        return self.container.decode(entry).view(numpy_dtype(entry.dtype))

    def __contains__(self, name: object) -> bool:
        return name in self.container.index

    def __iter__(self) -> Iterator[str]:
        return iter(self.container.index)

    def __len__(self) -> int:
        return len(self.container.index)

    def __reduce__(self) -> tuple[Any, ...]:
        self._check_open()
        if self._path is None:
            return TensorFile, (bytes(self._data), self._limit)
        return _reopened, (self._path, self._limit, self.container.header)

    def close(self) -> None:
        """Close the file; arrays already decoded stay."""
        self._closed = True
        self._data = memoryview(b"")
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


def _read_at(file: BinaryIO, offset: int, length: int) -> bytes:
    """Bytes of a file, fewer at its end; no position is shared with other readers of it."""
    if not hasattr(os, "pread"):  # where there is none, processes cannot share an open file either
        with _SEEKING:
            file.seek(offset)
            return _all(file.read, length)
    descriptor, done = file.fileno(), 0

    def more(wanted: int) -> bytes:
        nonlocal done
        part = os.pread(descriptor, wanted, offset + done)
        done += len(part)
        return part

    return _all(more, min(length, max(0, os.fstat(descriptor).st_size - offset)))


def _all(read: Callable[[int], bytes], length: int) -> bytes:
    """As many bytes, where each call may give fewer; fewer only at the end of the file."""
    parts: list[bytes] = []
    while length and (part := read(length)):
        parts.append(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _reopened(path: str, limit: int | None, header: Header) -> TensorFile:
    """An opened file in another process.

    Raises:
        OSError: it is gone, or another file than the one that was opened.
    """
    file = TensorFile(path, limit)
    if file.container.header != header:
        file.close()
        raise OSError(errno.ESTALE, "has been replaced since it was opened", path)
    return file
