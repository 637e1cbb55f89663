"""Directions: matrices whose slices a network divides by their lengths (weight normalisation).

W = g v / |v| for each slice of v (Salimans and Kingma, NeurIPS 2016): what decodes to zeros makes a
network that gives no numbers, however little the slice was worth.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.findings import Finding, names_of
from tqcodec.encoder.kinds import Origin
from tqcodec.encoder.tensor import Source
from tqcodec.format.container import EVERYTHING, Container
from tqcodec.format.dtypes import round_to, to_float
from tqcodec.format.registry import Coding

# Names of directions and of their lengths, as torch.nn.utils.parametrizations.weight_norm and the
# older torch.nn.utils.weight_norm have them: what tells of them where there is no module.
PAIRS = (
    (re.compile(r"(.*\bparametrizations\..*\.original)1"), "0"),
    (re.compile(r"((?:.*\.)?weight(?:_\w+)?_)v"), "g"),
)


def directions(sources: Mapping[str, Source]) -> dict[str, int | None]:
    """Axis along which each direction has a length, by name; None where the whole has one.

    Args:
        sources: all tensors, by name.
    """
    found: dict[str, int | None] = {}
    for name, source in sources.items():
        if source.origin not in (None, Origin.DIRECTION):
            continue
        lengths = sources.get(_lengths_of(name, sources))
        if lengths is None or lengths.dtype != source.dtype or source.patterns.ndim < 2:
            continue
        shape, whole = lengths.patterns.shape, source.patterns.shape
        if lengths.patterns.size >= source.patterns.size:
            continue
        if lengths.patterns.size == 1:
            found[name] = None
        elif len(shape) == len(whole):
            kept = [axis for axis, length in enumerate(shape) if length != 1]
            if len(kept) == 1 and shape[kept[0]] == whole[kept[0]]:
                found[name] = kept[0]
    return found


def _lengths_of(name: str, sources: Mapping[str, Source]) -> str:
    """Name of the lengths of a direction; "" where there are none."""
    for pattern, ending in PAIRS:
        match = pattern.fullmatch(name)
        # The older one takes the weight itself away.
        if match and match[1] + ending in sources and match[1].removesuffix("_") not in sources:
            return match[1] + ending
    return ""


def lost(data: bytes, sources: Mapping[str, Source]) -> dict[str, int]:
    """Directions of a file with slices that decode to zeros and were none: how many, by name.

    Args:
        data: the file.
        sources: the tensors that it was made of, by name.
    """
    known, found = directions(sources), {}
    if not known:
        return {}
    container = Container.of(data, EVERYTHING)
    for entry in container.directory.entries:
        if entry.name not in known or entry.coding != Coding.TRANSFORM:
            continue
        axis, source = known[entry.name], sources[entry.name]
        before = _is_there(source.patterns, axis)
        after = _is_there(container.decode(entry), axis)
        if count := int((before & ~after).sum()):
            found[entry.name] = count
    return found


def evened(sources: Mapping[str, Source], names: Collection[str]) -> dict[str, Source]:
    """Directions whose slices are about as long as the weights that are made of them.

    Each is multiplied by a power of two, by which nothing is rounded, and so makes the same
    weights; those of small weights become as long as the middle one. A slice that has no room for
    it in its type stays, and so does what is the same as another tensor that is none, or that has
    other lengths: a network in which they are one would get the wrong one.

    Args:
        sources: all tensors, by name.
        names: of the directions.
    """
    found = {}
    known = directions(sources)
    for name in names:
        axis, source = known[name], sources[name]
        partner = sources[_lengths_of(name, sources)]
        twins = [n for n, other in sources.items() if n != name and _are_same(other, source)]
        others = [sources.get(_lengths_of(n, sources)) for n in twins if n in names]
        alike = [one for one in others if one is not None and _are_same(one, partner)]
        if axis is None or len(alike) < len(twins):
            continue
        values = to_float(source.patterns, source.dtype)
        over = tuple(i for i in range(values.ndim) if i != axis)
        own = np.sqrt(np.square(values).sum(axis=over, keepdims=True))
        lengths = np.abs(to_float(partner.patterns, partner.dtype))
        lengths = np.maximum(lengths.reshape(own.shape), np.median(lengths))
        with np.errstate(all="ignore"):
            powers = np.exp2(np.round(np.log2(lengths / own)))
        powers = np.where(np.isfinite(powers) & (powers > 0), powers, 1.0)
        values *= powers
        scaled = round_to(values, source.dtype)
        same = (to_float(scaled, source.dtype) == values).all(axis=over, keepdims=True)
        patterns = np.where(same, scaled, source.patterns)
        if not np.array_equal(patterns, source.patterns):
            found[name] = replace(source, patterns=patterns)
    return found


def _are_same(one: Source, other: Source) -> bool:
    return one.dtype == other.dtype and np.array_equal(one.patterns, other.patterns)


def findings_of(counts: Mapping[str, int], changed: Collection[str]) -> list[Finding]:
    """What to know of a file with such slices.

    Args:
        counts: as of `lost`.
        changed: names of directions that are `evened`.
    """
    if changed:
        message = (
            f"{names_of(sorted(changed))}: slices that weight normalisation divides by their "
            "lengths are multiplied by powers of two, so that none is lost: the network's weights "
            "are the same"
        )
        return [Finding("directions", message, tuple(sorted(changed)))]
    if not counts:
        return []
    ordered = sorted(counts, key=counts.__getitem__, reverse=True)
    named = names_of([f"{name} ({counts[name]})" for name in ordered])
    message = (
        "the decoded network gives no numbers: slices that weight normalisation divides by their "
        f"lengths decode to zeros: {named}; more bits, or a rule 'NAME=exact'"
    )
    return [Finding("lost", message, tuple(ordered))]


def _is_there(patterns: NDArray[np.unsignedinteger], axis: int | None) -> NDArray[np.bool_]:
    """Whether slices of a float type along an axis have anything but zeros."""
    sign = patterns.dtype.type(1 << (8 * patterns.itemsize - 1))
    over = tuple(i for i in range(patterns.ndim) if i != axis)
    return np.asarray((patterns & ~sign).any(axis=over))
