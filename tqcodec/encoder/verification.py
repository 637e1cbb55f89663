"""Verification: a file is decoded and held against what went in, before anybody gets it.

It looks at the tensors themselves, not at what the encoder noted of them on the way. What differs
is named by a tag of its own, ``source.names``, ``source.type`` and so on, where no rule of the
specification is broken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np

from tqcodec.common.progress import Progress
from tqcodec.encoder import side
from tqcodec.encoder.matrix.error import BLOCK, Patterns, decibels, error_of
from tqcodec.encoder.settings import Settings
from tqcodec.encoder.tensor import Item, Source, Treatment
from tqcodec.errors import InternalError
from tqcodec.format.container import EVERYTHING, Container
from tqcodec.format.dtypes import DType, to_float
from tqcodec.format.entries import Entry
from tqcodec.format.native_decoder import NativeFile, available
from tqcodec.format.registry import Coding


def check(
    data: bytes,
    sources: Mapping[str, Source],
    items: Sequence[Item],
    changed: Mapping[str, Patterns],
    settings: Settings,
    progress: Progress | None,
) -> None:
    """Decode a file, in C where that decoder is there, and compare everything with the sources.

    Args:
        data: the file.
        sources: the tensors as they were given, by name.
        items: the plan, in the order of the file.
        changed: new values of side tensors that make up for the coding.
        settings: with which it was made.
        progress: called with ("verify", tensors done, of how many).

    Raises:
        DecodeError: it does not decode.
        InternalError: it decodes to something else; names tensor and rule.
    """
    container = Container.of(data, EVERYTHING)
    entries = container.directory.entries
    _check_directory(container, sources, items, settings)
    faults: dict[int, InternalError] = {}
    lock = Lock()

    def compare(index: int, patterns: Patterns) -> None:
        item = items[index]
        try:
            new = changed.get(item.name)
            _check_tensor(sources[item.name], item, new, settings, entries[index], patterns)
        except InternalError as fault:
            with lock:
                faults[index] = fault

    decoder = NativeFile.of(data, len(data))
    taken = decoder is not None and decoder.visit(settings.workers, compare, progress)
    if not taken:
        done, of = 0, sum(entry.same_as is None for entry in entries)
        for entry, patterns in container.decode_all():
            if entry.same_as is None:
                compare(container.index[entry.name], patterns)
                done += 1
                if progress is not None:
                    progress("verify", done, of)
    if faults:  # the first in the file, whatever thread found it
        raise faults[min(faults)]
    if available() and not taken:
        raise InternalError("source.decoders", "the decoder in C does not take what Python decodes")


def _expect(condition: bool, rule: str, message: str, tensor: str | None = None) -> None:
    if not condition:
        raise InternalError(rule, message, tensor)


def _check_directory(
    container: Container, sources: Mapping[str, Source], items: Sequence[Item], settings: Settings
) -> None:
    entries = container.directory.entries
    names = [entry.name for entry in entries]
    _expect(names == list(sources), "source.names", "other names, or another order")
    _expect(names == [item.name for item in items], "source.names", "another order than planned")
    for entry in entries:
        source = sources[entry.name]
        same = entry.dtype == source.dtype and entry.shape == source.patterns.shape
        found = f"a {entry.dtype.name} of shape {entry.shape}"
        _expect(same, "source.type", found, entry.name)
        if entry.same_as is not None:
            twin = names[entry.same_as]
            same = _are_same(source.patterns, sources[twin].patterns)
            _expect(same, "source.tie", f"tied to {twin!r}, which differs", entry.name)
    same = dict(container.directory.metadata) == dict(settings.metadata)
    _expect(same, "source.metadata", "other metadata")


def _check_tensor(
    source: Source,
    item: Item,
    changed: Patterns | None,
    settings: Settings,
    entry: Entry,
    patterns: Patterns,
) -> None:
    """Hold the decoded elements of a tensor against what went in."""
    name, dtype, wanted = item.name, source.dtype, source.patterns
    exact = settings.lossless or item.options.lossless or not dtype.is_float
    if changed is not None:
        may_change = not exact and _is_finite(wanted, dtype)
        _expect(may_change, "source.exact", "changed, though it must not be", name)
        same = changed.shape == wanted.shape and _is_finite(changed, dtype)
        _expect(same, "source.bound", "changed to what no vector is", name)
        wanted = changed
    if item.treatment == Treatment.TRANSFORM and not exact:
        error, energy = error_of(wanted, patterns, dtype)
        finite = math.isfinite(error) and math.isfinite(energy)
        _expect(finite, "source.snr", "decodes to what is no number", name)
        found = decibels(error, energy)
        close = found == entry.snr
        if found is not None and entry.snr is not None:
            close = abs(found - entry.snr) <= 1  # sums in another order
        _expect(close, "source.snr", f"{found} hundredths of a decibel, not {entry.snr}", name)
        return
    _expect(entry.coding != Coding.TRANSFORM, "source.exact", "transform-coded", name)
    kept = None if exact or item.treatment != Treatment.ROUNDED else side.kept_bits(item, settings)
    if kept is None:
        _expect(_are_same(wanted, patterns), "source.exact", "not what it was", name)
        return
    old, new = wanted.reshape(-1), patterns.reshape(-1)
    for start in range(0, len(old), BLOCK):
        close = within_bound(old[start : start + BLOCK], new[start : start + BLOCK], dtype, kept)
        _expect(close, "source.bound", f"off by more than 2^-{kept + 1}", name)


def _is_finite(patterns: Patterns, dtype: DType) -> bool:
    return bool(np.isfinite(to_float(patterns, dtype)).all())


def _are_same(before: Patterns, after: Patterns) -> bool:
    """True for the same elements, compared block by block."""
    old, new = before.reshape(-1), after.reshape(-1)
    blocks = (slice(start, start + BLOCK) for start in range(0, len(old), BLOCK))
    return old is new or all(np.array_equal(old[block], new[block]) for block in blocks)


def within_bound(before: Patterns, after: Patterns, dtype: DType, kept: int) -> bool:
    """True where no relative error is above 2^-(kept + 1), and all is equal without any loss."""
    if kept >= dtype.mantissa_bits:
        return bool(np.array_equal(before, after))
    old, new = to_float(before, dtype), to_float(after, dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        return bool((np.abs(new - old) <= np.abs(old) * 2.0 ** -(kept + 1)).all())
