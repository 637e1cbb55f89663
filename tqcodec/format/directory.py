"""The directory, written and read: what is in a file and where (chapter 4).

Canonical MessagePack: maps with string keys in ascending order of their UTF-8 bytes, integers and
lengths in their shortest form, no floats, no extension types. Imports msgpack only, besides the
layers below.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgpack

from tqcodec.errors import MalformedError, UnsupportedError
from tqcodec.format import reader as io
from tqcodec.format.canonical import read_canonical
from tqcodec.format.dtypes import DTYPES, DType
from tqcodec.format.entries import Directory, Entry, Need, Segment
from tqcodec.format.reader import Reader
from tqcodec.format.registry import (
    FREE_VALUES,
    MAX_DIMENSIONS,
    MAX_ELEMENTS,
    MAX_NAME,
    MAX_TABLES_SIZE,
    RESERVED_CODINGS,
    Coding,
)

MAX_LENGTH: Final = (1 << 63) - 1  # bytes of a segment
MAX_TABLES_LENGTH: Final = 1 << 32  # of that of the tables
MAX_CRC: Final = (1 << 32) - 1
NO_TEXTS: Final = ("directory.type", "metadata that are not a map of strings to strings")
# Ancillary keys, whose types are not checked: of the directory, and of an entry.
PROVENANCE: Final = "encoder"
MOST_PROVENANCE: Final = 70  # bytes that encoders write, 80 with key and lengths
KIND: Final = "k"


def _pairs(segments: Iterable[Segment]) -> list[list[int]]:
    return [[s.length, s.crc] for s in segments]


def _entry_map(entry: Entry) -> dict[str, Any]:
    out: dict[str, Any] = {"name": entry.name}
    if entry.same_as is not None:
        out["same_as"] = entry.same_as
        return out
    out |= {"dtype": entry.dtype.name, "shape": list(entry.shape), "coding": int(entry.coding)}
    out["check"] = entry.check
    if entry.bundle is not None:
        out["bundle"] = entry.bundle
    else:
        out["segments"] = _pairs(entry.segments)
    if entry.snr is not None:
        out["snr"] = entry.snr
    if entry.kind is not None:
        out[KIND] = entry.kind
    return out


def values_allowed(stored: int) -> int:
    """Largest number of values in a directory that takes so many bytes in the file."""
    return FREE_VALUES + stored


def count_values(value: Any) -> int:
    """Values of a directory, keys and the directory itself included."""
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(count_values, value.values()))
    return 1 + sum(map(count_values, value)) if isinstance(value, list) else 1


def write_directory(directory: Directory) -> tuple[bytes, int]:
    """The element `directory`, not deflated, and the number of its values.

    Raises:
        MalformedError: metadata that are not text, or what MessagePack does not hold.
    """
    io.check(_are_texts(directory.metadata), *NO_TEXTS)
    out: dict[str, Any] = {"tensors": [_entry_map(entry) for entry in directory.entries]}
    if directory.bundles:
        out["bundles"] = _pairs(directory.bundles)
    if directory.tables is not None:
        out["tables"] = [directory.tables.length, directory.tables.crc, directory.tables_size]
    if directory.metadata:
        out["metadata"] = dict(directory.metadata)
    if directory.provenance:
        out[PROVENANCE] = directory.provenance
    return _packed(out), count_values(out)


def _packed(value: Any) -> bytes:
    try:
        return bytes(msgpack.packb(_sorted(value)))
    except OverflowError:
        raise MalformedError("directory.range", "an integer of more than 64 bits") from None
    except UnicodeEncodeError:
        raise MalformedError("directory.canonical", "a string that is not UTF-8") from None
    except TypeError as error:
        raise MalformedError("directory.type", str(error)) from None


def _are_texts(metadata: Any) -> bool:
    """True for a map of strings to strings."""
    pairs = metadata.items() if isinstance(metadata, Mapping) else [(None, None)]
    return all(isinstance(text, str) for pair in pairs for text in pair)


def check_bundles(used: Collection[int | None], count: int, check: io.Check) -> None:
    """Check that each of `count` bundles is among those that tensors name."""
    every = all(i in used for i in range(count))
    check(every, "directory.bundle", "a bundle without tensors")


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _sorted(value[k]) for k in sorted(value, key=str.encode)}
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    return value


class _Fields:
    """Typed access to a map of the directory."""

    def __init__(self, value: Any, reader: Reader, what: str) -> None:
        reader.check(isinstance(value, dict), "directory.type", f"{what} is not a map")
        self.map: dict[str, Any] = value
        self.reader, self.what = reader, what

    def fail_unless(self, condition: bool, key: str) -> None:
        self.reader.check(condition, "directory.type", f"{self.what}: bad or missing {key!r}")

    def integer(self, key: str, most: int, least: int = 0) -> int:
        return self._integer(key, self.map.get(key), least, most)

    def _integer(self, key: str, value: Any, least: int, most: int) -> int:
        self.fail_unless(type(value) is int, key)
        message = f"{self.what}: {key!r} is {value}, not {least} to {most}"
        self.reader.check(least <= value <= most, "directory.range", message)
        return int(value)

    def integers(self, key: str, value: Any, most: int) -> list[int]:
        self.fail_unless(isinstance(value, list), key)
        return [self._integer(key, v, 0, most) for v in value]

    def record(self, key: str, value: Any, *most: int) -> list[int]:
        """An array of as many integers as there are bounds."""
        self.fail_unless(isinstance(value, list) and len(value) == len(most), key)
        return [self._integer(key, v, 0, m) for v, m in zip(value, most, strict=True)]

    def items(self, key: str) -> list[Any]:
        value = self.map.get(key, [])
        self.fail_unless(isinstance(value, list), key)
        return list(value)

    def segments(self, key: str) -> tuple[Segment, ...]:
        pairs = [self.record(key, v, MAX_LENGTH, MAX_CRC) for v in self.items(key)]
        return tuple(Segment(length, crc) for length, crc in pairs)


def read_directory(data: bytes, stored: int, start: int, reader: Reader) -> Directory:
    """Inverse of `write_directory`.

    Args:
        data: the inflated directory.
        stored: bytes that it takes in the file; they bound the number of values.
        start: offset in the file at which the segments begin.
        reader: for messages.
    """
    value = read_canonical(data, values_allowed(stored), reader)
    fields = _Fields(value, reader, "directory")
    features = fields.items("features")
    if features:
        fields.fail_unless(all(isinstance(name, str) for name in features), "features")
        raise UnsupportedError("directory.features", f"needs {features[0]!r}")
    tables, tables_size = None, 0
    if "tables" in fields.map:
        bounds = (MAX_TABLES_LENGTH, MAX_CRC, MAX_TABLES_SIZE)
        length, crc, tables_size = fields.record("tables", fields.map["tables"], *bounds)
        tables = Segment(length, crc)
    bundles = fields.segments("bundles")
    entries: list[Entry] = []
    names: set[str] = set()
    for item in fields.items("tensors"):
        entry = _read_entry(item, entries, len(bundles), reader)
        fresh = entry.name not in names
        _named(reader, entry.name).check(fresh, "directory.name", "two tensors of this name")
        names.add(entry.name)
        entries.append(entry)
    used = {entry.bundle for entry in entries}
    check_bundles(used, len(bundles), reader.check)
    metadata = fields.map.get("metadata", {})
    reader.check(_are_texts(metadata), *NO_TEXTS)
    provenance = fields.map.get(PROVENANCE)
    directory = Directory(
        tuple(entries),
        bundles,
        tables,
        tables_size,
        metadata,
        provenance if isinstance(provenance, str) else "",
    )
    return _placed(directory, start)


def _read_entry(item: Any, earlier: Sequence[Entry], bundles: int, reader: Reader) -> Entry:
    fields = _Fields(item, reader, f"tensor {len(earlier)}")
    name = fields.map.get("name")
    fields.fail_unless(isinstance(name, str), "name")
    size = len(str(name).encode())
    reader.check(0 < size <= MAX_NAME, "directory.name", f"{fields.what}: name of {size} bytes")
    reader = _named(reader, str(name))
    fields = _Fields(item, reader, "entry")
    if "same_as" in fields.map:
        index = fields.integer("same_as", len(earlier) - 1)
        twin = earlier[index]
        reader.check(twin.same_as is None, "directory.same_as", "tied to a tied tensor")
        return replace(
            twin, name=str(name), same_as=index, segments=(), bundle=None, snr=None, kind=None
        )
    dtype = fields.map.get("dtype")
    fields.fail_unless(isinstance(dtype, str), "dtype")
    shape = fields.integers("shape", fields.map.get("shape"), MAX_ELEMENTS)
    reader.check(is_legal_shape(shape), "directory.shape", "a shape beyond the limits")
    code = fields.integer("coding", 255)
    needs = None
    if dtype not in DTYPES:
        needs = Need("directory.dtype", f"needs dtype {dtype!r}")
    elif code not in list(Coding):
        feature = RESERVED_CODINGS.get(code, f"coding {code}")
        needs = Need("directory.coding", f"needs {feature}")
    kind = fields.map.get(KIND)
    entry = Entry(
        name=str(name),
        dtype=DTYPES.get(str(dtype), DType(str(dtype), 0)),
        shape=tuple(shape),
        coding=Coding(code) if code in list(Coding) else code,
        check=fields.integer("check", MAX_CRC),
        segments=fields.segments("segments"),
        bundle=fields.integer("bundle", bundles - 1) if "bundle" in fields.map else None,
        snr=fields.integer("snr", 1 << 20, -(1 << 20)) if "snr" in fields.map else None,
        kind=kind if type(kind) is int and kind >= 0 else None,
        needs=needs,
    )
    if needs is None:
        _check_coding(entry, reader)
    return entry


def is_legal_shape(shape: Sequence[int]) -> bool:
    """True for what the directory takes as the shape of a tensor."""
    # Dimensions of 0 count as 1: arrays of such a shape must be possible too.
    return len(shape) <= MAX_DIMENSIONS and math.prod(max(n, 1) for n in shape) <= MAX_ELEMENTS


def _named(reader: Reader, name: str) -> Reader:
    """A reader for messages about one tensor."""
    return Reader(b"", reader.base, name)


def _check_coding(entry: Entry, reader: Reader) -> None:
    bundled = entry.bundle is not None
    fits = not bundled or (entry.coding == Coding.PLANES and not entry.segments)
    reader.check(fits, "directory.bundle", "cannot be in a bundle")
    transformed = entry.coding == Coding.TRANSFORM
    reader.check(
        not transformed or (entry.dtype.is_float and entry.elements > 0),
        "directory.transform",
        "empty or not floating point, yet transform-coded",
    )


def _placed(directory: Directory, start: int) -> Directory:
    """The directory with the offsets of its segments filled in."""
    position = start

    def place(segment: Segment) -> Segment:
        nonlocal position
        placed = Segment(segment.length, segment.crc, position)
        position += segment.length
        return placed

    tables = place(directory.tables) if directory.tables is not None else None
    bundles = tuple(place(s) for s in directory.bundles)
    entries = tuple(
        replace(e, segments=tuple(place(s) for s in e.segments)) for e in directory.entries
    )
    return replace(directory, entries=entries, bundles=bundles, tables=tables)
