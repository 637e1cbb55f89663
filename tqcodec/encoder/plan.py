"""Plan: how each tensor is to be coded, by its shape, type and name."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tqcodec.encoder.kinds import (
    BY_NUMBERS,
    LEAST_WEIGHTS,
    Class,
    Kind,
    Neighbours,
    Origin,
    class_of,
    kind_of,
)
from tqcodec.encoder.means import bits_needed
from tqcodec.encoder.settings import Settings, TensorOptions, options_for
from tqcodec.encoder.statistics import WeightStatistics
from tqcodec.encoder.tensor import Item, Source, Treatment, roles_of
from tqcodec.errors import EncodeError
from tqcodec.format.directory import is_legal_shape
from tqcodec.format.dtypes import to_float
from tqcodec.format.registry import MAX_DIRECTORY, MAX_NAME

SMALL = 1 << 14  # tensors up to this many elements share bundles
LEAST_LARGEST, MOST_LARGEST = 2.0**-50, 2.0**50  # of a matrix that is transformed


def make_plan(
    sources: Sequence[Source], settings: Settings, statistics: Mapping[str, WeightStatistics]
) -> list[Item]:
    """Plan of all tensors, in their order.

    Raises:
        EncodeError: names, metadata or a shape that the format cannot hold, a rule without a match,
            or statistics of another network.
    """
    _check_texts([s.name for s in sources], settings)
    shapes = {s.name: s.patterns.shape for s in sources}
    for name, one in statistics.items():
        if name not in shapes:
            raise EncodeError(f"statistics: there is no tensor {name!r}")
        if shapes[name] != one.shape:
            raise EncodeError(
                f"statistics: {name!r} has shape {one.shape}, the tensor's is {shapes[name]}"
            )
    options = options_for(settings.rules, list(shapes))
    around = Neighbours.of((s.name, s.dtype, s.patterns.size) for s in sources)
    # Statistics know what is used as a weight, and what as a bias or a norm.
    used = {*statistics, *(n for one in statistics.values() for n in (one.shift, one.gain))}
    seen: dict[bytes, str] = {}
    finer = {} if settings.side_bits is None else bits_needed(sources, settings.side_bits)
    items = []
    for source in sources:
        _check_shape(source)
        known = source
        if source.origin is None and source.name in used:
            known = replace(source, origin=Origin.PARAMETER)
        beside = around.has(source.name, source.dtype)
        own = options[source.name]
        kind = _kind(known, settings, own, beside)
        rows = statistics[source.name].rows if source.name in statistics else 0
        if source.name in finer and own.side_bits is None and class_of(kind) is Class.VECTOR:
            own = replace(own, side_bits=finer[source.name])
        items.append(_item(source, own, kind, rows, seen))
    return items


def _check_texts(names: Iterable[str], settings: Settings) -> None:
    """Refuse names and metadata that no directory holds, before there is any work.

    Raises:
        EncodeError: they take more bytes than a directory may have.
    """
    metadata = _bytes(text for pair in settings.metadata for text in pair)
    named = _bytes(names)
    if metadata + named > MAX_DIRECTORY:
        raise directory_full(f"{metadata} bytes of metadata and {named} of names")


def _bytes(texts: Iterable[str]) -> int:
    return sum(len(text.encode(errors="replace")) for text in texts)


def directory_full(what: str) -> EncodeError:
    """The error for names and metadata that are too much."""
    return EncodeError(
        f"names and metadata are too much for one file: {what}, its directory takes at most "
        f"{MAX_DIRECTORY} bytes"
    )


def _check_shape(source: Source) -> None:
    shape, name = source.patterns.shape, source.name
    if not name or len(name.encode(errors="replace")) > MAX_NAME:
        raise EncodeError(f"tensor {name[:40]!r}: names take 1 to {MAX_NAME} bytes")
    if any("\ud800" <= c <= "\udfff" for c in name):
        raise EncodeError(f"tensor {name!r}: the name is not a UTF-8 string")
    if not is_legal_shape(shape):
        raise EncodeError(f"tensor {name!r}: shape {shape} is beyond the limits of the format")


def _kind(source: Source, settings: Settings, options: TensorOptions, beside: bool) -> Kind:
    """The kind of a tensor, rules included."""
    name, dtype, patterns = source.name, source.dtype, source.patterns
    side = options.side_bits is not None
    if options.weight and dtype.is_float and patterns.size:
        kind = Kind.WEIGHT_RULE
    else:
        kind = kind_of(name, dtype, patterns, source.origin, beside, side)
    found = class_of(kind)
    if settings.lossless or options.lossless:
        return Kind.WEIGHT_ASKED if found is Class.WEIGHT else Kind.ASKED
    if found is Class.VECTOR and settings.side_bits is None and not side:
        return Kind.VECTOR_ASKED
    if found is not Class.EXACT and not _in_range(source):
        return Kind.WEIGHT_RANGE if found is Class.WEIGHT else Kind.RANGE
    return kind


def _item(
    source: Source, options: TensorOptions, kind: Kind, rows: int, seen: dict[bytes, str]
) -> Item:
    roles = roles_of(source.patterns.shape, rows)
    twin = _twin(source, options, kind, seen)
    if twin is not None:
        return Item(source.name, Treatment.TIED, kind, roles, options, twin)
    return Item(source.name, _treatment(kind), kind, roles, options)


def _treatment(kind: Kind) -> Treatment:
    if kind in (Kind.WEIGHT, Kind.WEIGHT_RULE):
        return Treatment.TRANSFORM
    rounded = class_of(kind) is Class.VECTOR and kind is not Kind.VECTOR_ASKED
    return Treatment.ROUNDED if rounded else Treatment.EXACT


def adjusted(item: Item, settings: Settings) -> Item:
    """The plan of a vector whose numbers changed: they say nothing any more of what it is."""
    if item.kind not in BY_NUMBERS:
        return item
    exact = settings.side_bits is None and item.options.side_bits is None
    kind = Kind.VECTOR_ASKED if exact else Kind.VECTOR
    return replace(item, kind=kind, treatment=_treatment(kind))


def _twin(source: Source, options: TensorOptions, kind: Kind, seen: dict[bytes, str]) -> str | None:
    """Name of an earlier tensor with the same type, shape, bytes, class and wishes."""
    constant = source.origin is Origin.CONSTANT
    if source.patterns.size < LEAST_WEIGHTS and not constant:
        return None
    # What may change is not tied to what may not.
    about = f"{source.dtype.name}{source.patterns.shape}{class_of(kind)}{constant}"
    digest = hashlib.sha256(f"{about}{options}".encode())
    digest.update(source.patterns.reshape(-1).view(np.uint8).data)
    key = digest.digest()
    if key in seen:
        return seen[key]
    seen[key] = source.name
    return None


def _in_range(source: Source) -> bool:
    """True for finite numbers whose magnitudes leave room for squares and steps in float32."""
    flat, largest = source.patterns.reshape(-1), 0.0
    for i in range(0, len(flat), SMALL):
        block = np.abs(to_float(flat[i : i + SMALL], source.dtype))
        largest = max(largest, float(block.max()) if np.isfinite(block).all() else math.inf)
    return largest == 0 or LEAST_LARGEST < largest < MOST_LARGEST
