"""The four verbs on numpy arrays, encode, decode, save, load; and open, for single tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tqcodec.arrays import Array, patterns_of
from tqcodec.common.atomic import check_writable, replacing
from tqcodec.common.checks import PathLike, need, need_function, path_of
from tqcodec.common.progress import Progress
from tqcodec.errors import EncodeError
from tqcodec.format.dtypes import to_float
from tqcodec.format.registry import MAJOR, MINOR
from tqcodec.reading.file import Reading, TensorFile, need_bytes

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tqcodec.encoder.findings import EncodeReport, Finding
    from tqcodec.encoder.kinds import Origin
    from tqcodec.encoder.settings import Settings
    from tqcodec.encoder.statistics import Statistics
    from tqcodec.encoder.tensor import Source

Refine = Callable[[bytes], Mapping[str, Array]]
FORMAT_VERSION = f"{MAJOR}.{MINOR}"


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
    from tqcodec.encoder.kinds import Origin
    from tqcodec.encoder.pipeline import encode as run
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
    sources = sources_of(tensors, known)
    by_name = {source.name: source for source in sources}
    settings = settings if settings is not None else Settings()
    if settings.inference and Origin.CONSTANT not in known.values():
        raise EncodeError(
            "inference: a module says which tensors are normalisations and which eps they have: "
            "tqcodec.torch.encode(model, ...), or --model"
        )
    stale = _of_statistics(statistics, by_name)

    def refined(data: bytes) -> dict[str, NDArray[np.unsignedinteger]]:
        assert refine is not None, "wrapped only where there is one"
        found = {}
        for name, array in refine(data).items():
            dtype, patterns = patterns_of(name, array)
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


def sources_of(tensors: Mapping[str, Array], origins: Mapping[str, Origin]) -> list[Source]:
    """Arrays by name as the encoder takes them, with what a module says of each.

    Raises:
        EncodeError: tensors that the format cannot hold.
    """
    from tqcodec.encoder.tensor import Source

    sources = []
    for name, array in tensors.items():
        if not isinstance(name, str):
            raise EncodeError(f"tensor name {name!r} is not a string")
        sources.append(Source(name, *patterns_of(name, array), origins.get(name)))
    return sources


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


def decode(data: bytes, **options: Unpack[Reading]) -> dict[str, Array]:
    """Arrays of a `.tqc` file, by name, in the order of the file.

    Args:
        data: the whole file.
        options: `limit`, `workers`, `progress`, `remote`, as in `tqcodec.reading.file.Reading`.

    Raises:
        DecodeError: the bytes cannot be decoded.
        TypeError: an argument of another type, such as the name of a file, which `load` takes.
    """
    need_bytes(data)
    with open(data, **options) as file:
        return file.decode_all()


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


def load(path: PathLike, **options: Unpack[Reading]) -> dict[str, Array]:
    """`decode` of a file. `open` takes less memory: it reads one tensor at a time."""
    with open(path_of(path), **options) as file:
        return file.decode_all()


def verify(source: bytes | PathLike, **options: Unpack[Reading]) -> None:
    """Decode everything and check every checksum; options as of `decode`.

    Raises:
        DecodeError: at the first fault.
    """
    with open(source, **options) as file:
        file.verify()


def open(source: bytes | PathLike, **options: Unpack[Reading]) -> TensorFile:
    """A file whose tensors are decoded when they are asked for.

    Args:
        source: path of a file, its address (`https://`, `s3://`, `hf://` and what else fsspec
            knows, with `tqcodec[remote]`), or its bytes. Of an address the directory is read by one
            or two requests, a tensor by one more.
        options: as in `decode`.

    Raises:
        DecodeError: the header or the directory cannot be decoded.
        OSError: the file cannot be opened; one with an address has changed since.
    """
    return TensorFile(source, **options)
