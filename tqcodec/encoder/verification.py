"""Verification: a file is decoded and held against what went in, before anybody gets it.

It looks at the tensors themselves, not at what the encoder noted of them on the way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder import side
from tqcodec.encoder.plan import Item, Source, Treatment
from tqcodec.encoder.settings import Progress, Settings
from tqcodec.errors import InternalError
from tqcodec.format import native_decoder
from tqcodec.format.container import Container
from tqcodec.format.dtypes import DType, to_float
from tqcodec.format.entries import Entry
from tqcodec.format.registry import Coding

Patterns = NDArray[np.unsignedinteger]

BLOCK = 1 << 18  # elements compared at a time, to bound memory
EVERYTHING = 1 << 63  # decoded bytes: what went in may come out
CHECK = "tensor.check"  # the rule of what decodes to something else


def check(
    data: bytes,
    sources: Mapping[str, Source],
    items: Sequence[Item],
    settings: Settings,
    progress: Progress | None,
) -> None:
    """Decode a file, in C where that decoder is there, and compare everything with the sources.

    Args:
        data: the file.
        sources: the tensors that it has to hold, by name.
        items: the plan, in the order of the file.
        settings: with which it was made.
        progress: called with ("verify", tensors done, of how many).

    Raises:
        DecodeError: it does not decode.
        InternalError: it decodes to something else; names tensor and rule.
    """
    container = Container(lambda offset, n: data[offset : offset + n], len(data), EVERYTHING)
    entries = container.directory.entries
    _check_directory(container, sources, items, settings)

    def compare(index: int, patterns: Patterns) -> None:
        item = items[index]
        _check_tensor(sources[item.name], item, settings, entries[index], patterns)

    if native_decoder.visit(data, EVERYTHING, settings.workers, compare, progress):
        return
    for done, (entry, patterns) in enumerate(container.decode_all(), 1):
        if entry.same_as is None:
            compare(container.index[entry.name], patterns)
        if progress is not None:
            progress("verify", done, len(entries))
    if native_decoder.available():
        raise InternalError(CHECK, "the decoder in C does not take what the one in Python does")


def _check_directory(
    container: Container, sources: Mapping[str, Source], items: Sequence[Item], settings: Settings
) -> None:
    entries = container.directory.entries
    names = [entry.name for entry in entries]
    _expect(names == [item.name for item in items], CHECK, "other names, or another order", None)
    for entry, item in zip(entries, items, strict=True):
        source = sources[item.name]
        same = entry.dtype == source.dtype and entry.shape == source.patterns.shape
        _expect(same, CHECK, f"a {entry.dtype.name} of shape {entry.shape}", entry.name)
        tied = None if entry.same_as is None else names[entry.same_as]
        same = tied == item.same_as
        if tied is not None:
            same = same and np.array_equal(source.patterns, sources[tied].patterns)
        _expect(same, "directory.same_as", f"tied to {tied!r}", entry.name)
    same = dict(container.directory.metadata) == dict(settings.metadata)
    _expect(same, "directory.type", "other metadata", None)


def _expect(condition: bool, rule: str, message: str, tensor: str | None) -> None:
    if not condition:
        raise InternalError(rule, message, tensor)


def _check_tensor(
    source: Source, item: Item, settings: Settings, entry: Entry, patterns: Patterns
) -> None:
    """Hold the decoded elements of a tensor against what went in."""
    treatment = item.treatment
    if entry.coding == Coding.TRANSFORM:
        _expect(treatment == Treatment.TRANSFORM, CHECK, "transform-coded", item.name)
        found = decibels(*error_of(source.patterns, patterns, source.dtype))
        stated = (found is None) == (entry.snr is None)
        close = stated and (found is None or entry.snr is None or abs(found - entry.snr) <= 1)
        _expect(close, CHECK, f"the signal-to-noise ratio is {found}, not {entry.snr}", item.name)
        return
    old, new = source.patterns.reshape(-1), patterns.reshape(-1)
    kept = side.kept_bits(item, settings) if treatment == Treatment.ROUNDED else None
    for start in range(0, len(old), BLOCK):
        before, after = old[start : start + BLOCK], new[start : start + BLOCK]
        if kept is None:
            _expect(np.array_equal(before, after), CHECK, "not what it was", item.name)
        else:
            close = within_bound(before, after, source.dtype, kept)
            _expect(close, CHECK, f"off by more than 2^-{kept + 1}", item.name)


def within_bound(before: Patterns, after: Patterns, dtype: DType, kept: int) -> bool:
    """True where no relative error is above 2^-(kept + 1), and all is equal without any loss."""
    if kept >= dtype.mantissa_bits:
        return bool(np.array_equal(before, after))
    old, new = to_float(before, dtype), to_float(after, dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        return bool((np.abs(new - old) <= np.abs(old) * 2.0 ** -(kept + 1)).all())


def error_of(before: Patterns, after: Patterns, dtype: DType) -> tuple[float, float]:
    """Squared error of decoded elements, and energy of the original ones."""
    error = energy = 0.0
    old, new = before.reshape(-1), after.reshape(-1)
    for start in range(0, len(old), BLOCK):
        truth = to_float(old[start : start + BLOCK], dtype)
        difference = truth - to_float(new[start : start + BLOCK], dtype)
        error += float(np.dot(difference, difference))
        energy += float(np.dot(truth, truth))
    return error, energy


def decibels(error: float, energy: float) -> int | None:
    """Signal-to-noise ratio in hundredths of a decibel; None where there is no noise."""
    if error <= 0 or energy <= 0:
        return None
    return round(1000 * math.log10(energy / error))
