"""What a file holds, as plain data: for `info`, `dump` and `report`.

Everything here is made of dicts, lists, strings and numbers, so that it can be printed as JSON.
Imports numpy only, besides the layers below.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqcodec.common.progress import Progress
from tqcodec.encoder import kinds
from tqcodec.format.container import Container, block_lengths
from tqcodec.format.entries import Entry
from tqcodec.format.planes import Part, read_block
from tqcodec.format.records import Basis, CodedTensor, axis_lengths
from tqcodec.format.registry import (
    HEADER_SIZE,
    MAJOR,
    MINOR,
    SIGNATURE,
    Axis,
    BasisKind,
    Coding,
    Quantizer,
)
from tqcodec.format.vectors import Vector
from tqcodec.reading.file import TensorFile
from tqcodec.reading.multiplications import operations as operations_of

Data = dict[str, Any]


def summary(container: Container) -> Data:
    """Counts and sizes of a whole file, from its directory alone.

    `weights` counts the elements of all weight matrices, tied ones once; `bits_per_weight` is the
    whole file over them (null without any). `kinds` counts tensors by class and reason, as far as
    the file states them. `decoded_bytes` counts tied tensors each time.
    """
    directory = container.directory
    entries = directory.entries
    weights = sum(entry.elements for entry in entries if _is_weight(entry))
    decoded = sum(entry.size for entry in entries)
    return {
        "format": f"{MAJOR}.{MINOR}",
        "bytes": container.length,
        "decoded_bytes": decoded,
        "ratio": round(decoded / container.length, 4),
        "weights": weights,
        "bits_per_weight": _bits(container.length, weights),
        "counts": dict(Counter(_coding(entry) for entry in entries)),
        "kinds": dict(Counter(filter(None, map(_kind, entries)))),
        "directory_bytes": HEADER_SIZE + container.directory_size,
        "tables_bytes": directory.tables.length if directory.tables is not None else 0,
        "bundles": [
            {"bytes": bundle.length, "tensors": len(members)}
            for bundle, members in zip(directory.bundles, container.members, strict=True)
        ],
        "encoder": directory.provenance or None,
        "metadata": dict(directory.metadata),
    }


def info(file: TensorFile, progress: Progress | None = None, *, full: bool = True) -> Data:
    """`summary`, and a description of each tensor under `tensors`.

    Args:
        file: the file.
        full: read payloads as well, for `transform`, `kept`, `channels` and `depths`, which are
            null without.
        progress: called with ("info", tensors done, of how many).

    Raises:
        DecodeError: a transform-coded tensor whose record cannot be read.
    """
    entries = file.container.directory.entries
    tensors = {}
    for done, entry in enumerate(file.arrivals() if full else entries, 1):
        tensors[entry.name] = _tensor(file, entry, full)
        if progress is not None:
            progress("info", done, len(entries))
    return {**summary(file.container), "tensors": [tensors[entry.name] for entry in entries]}


def _tensor(file: TensorFile, entry: Entry, full: bool) -> Data:
    tied, own = entry.same_as is not None, bool(entry.segments)
    size = sum(segment.length for segment in entry.segments)
    out: Data = {
        "name": entry.name,
        "shape": list(entry.shape),
        "dtype": entry.dtype.name,
        "coding": _coding(entry),
        "kind": _kind(entry),
        "weight": _is_weight(entry),
        "same_as": _twin(file.container, entry),
        "bundle": entry.bundle,
        "bytes": size if own else 0 if tied or not entry.elements else None,
        "bits_per_weight": _bits(size, entry.elements) if own else None,
        "snr": None if entry.snr is None else entry.snr / 100,
        "transform": None,
        "kept": None,
        "channels": None,
        "depths": None,
    }
    if full and entry.coding == Coding.TRANSFORM and not tied and entry.needs is None:
        out |= _channels(file.record(entry), entry)
    return out


def operations(file: TensorFile) -> Data:
    """Multiplications of each layer, of `tqcodec.operations`, and their sums.

    `least` is what a network in the mode "transform" takes for each position; where that is dense,
    `rebuilding` comes once a pass.
    """
    layers = [
        {**asdict(layer), "way": layer.way, "least": layer.least} for layer in operations_of(file)
    ]
    sums = {key: sum(layer[key] for layer in layers) for key in ("dense", "least")}
    return {"layers": layers, **sums}


def _is_weight(entry: Entry) -> bool:
    return entry.same_as is None and kinds.is_weight(entry.kind, entry.dtype, entry.shape)


def _kind(entry: Entry) -> str | None:
    return kinds.describe(entry.kind)


def _coding(entry: Entry) -> str:
    return "tied" if entry.same_as is not None else _name(entry.coding)


def _name(coding: Coding | int) -> str:
    return coding.name.lower() if isinstance(coding, Coding) else f"coding {coding}"


def _twin(container: Container, entry: Entry) -> str | None:
    return None if entry.same_as is None else container.directory.entries[entry.same_as].name


def _bits(size: int, elements: int) -> float | None:
    return round(8 * size / elements, 4) if elements else None


def _channels(coded: CodedTensor, entry: Entry) -> Data:
    """Bases, and how many columns need how many bits.

    `depths[b]` counts the columns whose indices need b bits as signed integers: 0 for a column
    that is absent or all zero. `kept` counts the columns that are present, of all `channels`.
    """
    lengths = axis_lengths(entry.shape, coded.roles)
    total, kept = lengths[Axis.IN] * lengths[Axis.TAPS], len(coded.kept)
    needed = np.bincount(_needed_bits(coded), minlength=1)
    needed[0] += total - kept
    bases = {
        axis.name.lower(): basis.kind.name.lower()
        for axis, basis in zip(Axis, coded.bases, strict=True)
        if basis.kind != BasisKind.NONE
    }
    return {"transform": bases, "kept": kept, "channels": total, "depths": needed.tolist()}


def _needed_bits(coded: CodedTensor) -> NDArray[np.int32]:
    """Bits of the signed range of the indices of each kept column."""
    if not coded.coefficients.size:
        return np.zeros(coded.coefficients.shape[1], np.int32)
    high = coded.coefficients.max(axis=0).astype(np.int64)
    low = coded.coefficients.min(axis=0).astype(np.int64)
    if coded.quantizer == Quantizer.TRELLIS:  # coefficients of index k are 2k and 2k - sign(k)
        high, low = (high + 1) // 2, -((1 - low) // 2)
    length = np.frexp(np.maximum(high, -1 - low).astype(np.float64))[1]
    return np.where((high == 0) & (low == 0), 0, length + 1).astype(np.int32)


def dump(container: Container) -> Data:
    """Header, directory, tables and the heads of all tensors, by the specification's names.

    Coefficients and other payloads are left out.

    Raises:
        DecodeError: a segment that cannot be read.
    """
    directory = container.directory
    return {
        "header": {"signature": SIGNATURE.hex(" "), "major": MAJOR, "minor": MINOR}
        | asdict(container.header),
        "directory": {
            "encoder": directory.provenance or None,
            "metadata": dict(directory.metadata),
            "tables": None if directory.tables is None else asdict(directory.tables),
            "tables_size": directory.tables_size,
            "bundles": [asdict(bundle) for bundle in directory.bundles],
            "tensors": [_entry(container, entry) for entry in directory.entries],
        },
        "tables": [asdict(table) for table in container.tables],
        "bundles": [_bundle_head(container, i) for i in range(len(directory.bundles))],
        "heads": [
            {"name": entry.name, **_head(container, entry)}
            for entry in directory.entries
            if entry.segments and entry.coding != Coding.RAW and entry.needs is None
        ],
    }


def _entry(container: Container, entry: Entry) -> Data:
    if entry.same_as is not None:
        return {"name": entry.name, "same_as": entry.same_as}
    out: Data = {
        "name": entry.name,
        "dtype": entry.dtype.name,
        "shape": list(entry.shape),
        "coding": _name(entry.coding),
        "check": entry.check,
    }
    if entry.bundle is not None:
        out["bundle"] = entry.bundle
    else:
        out["segments"] = [asdict(segment) for segment in entry.segments]
    ancillary = {"snr": entry.snr, "k": entry.kind}
    return out | {key: value for key, value in ancillary.items() if value is not None}


def _bundle_head(container: Container, index: int) -> Data:
    members = container.members[index]
    container.check_limit(members)
    named = zip(members, container.bundle_parts(index), strict=True)
    return {"parts": [{"name": entry.name, **_part(part)} for entry, part in named]}


def _head(container: Container, entry: Entry) -> Data:
    if entry.coding == Coding.TRANSFORM:
        return _transform_head(container.head(entry)[0])
    container.check_limit([entry])
    blocks = zip(entry.segments, block_lengths(entry.elements), strict=False)
    parts = [
        read_block(container.segment(s, entry.name), [(entry.dtype, n)], container.tables)
        for s, n in blocks
    ]
    return {"parts": [_part(part) for (part,) in parts]}


def _part(part: Part) -> Data:
    head: Data = {"kept": part.kept}
    if part.dtype.is_float:
        head |= {"unsigned": part.unsigned, "table": part.table, "offset": part.offset}
    return head


def _transform_head(coded: CodedTensor) -> Data:
    axes = [axis.name.lower() for axis in Axis]
    return {
        "roles": [role.name.lower() for role in coded.roles],
        "scale": list(coded.scale),
        "quantizer": coded.quantizer.name.lower(),
        "steps": coded.steps,
        "payload_kind": coded.payload_kind.name.lower(),
        "tile": list(coded.tile),
        "bases": dict(zip(axes, map(_basis, coded.bases), strict=True)),
        "depths": _vector(coded.depths),
        "table_map": list(coded.table_map),
        "levels": dict(zip(axes, map(_vector, coded.levels), strict=True)),
        "row_scales": _vector(coded.row_scales),
        "multipliers": _vector(coded.multipliers),
    }


def _basis(basis: Basis) -> Data:
    out: Data = {"kind": basis.kind.name.lower()}
    if basis.entries is not None and basis.shifts is not None and basis.tables is not None:
        out["rows"] = len(basis.entries)
        out["tables"] = _vector(basis.tables)
        out["shifts"] = _vector(basis.shifts)
        out["entries"] = basis.entries.tolist()
    return out


def _vector(vector: Vector) -> Data:
    return {"table": vector.table, "values": vector.values.tolist()}
