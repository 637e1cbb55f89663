"""Directions: matrices whose slices a network divides by their lengths (weight normalisation).

W = g v / |v| for each slice of v (Salimans and Kingma, NeurIPS 2016): what decodes to zeros makes a
network that gives no numbers, however little the slice was worth.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from tqcodec.encoder.findings import Finding, names_of
from tqcodec.encoder.tensor import Source
from tqcodec.format.container import EVERYTHING, Container
from tqcodec.format.dtypes import to_float
from tqcodec.format.registry import Coding

# Names of directions and of their lengths, as torch.nn.utils.parametrizations.weight_norm and the
# older torch.nn.utils.weight_norm have them.
PAIRS = (
    (re.compile(r"(.*\bparametrizations\..*\.original)1"), "0"),
    (re.compile(r"(.*_)v"), "g"),
)


def directions(sources: Mapping[str, Source]) -> dict[str, int | None]:
    """Axis along which each direction has a length, by name; None where the whole has one.

    Args:
        sources: all tensors, by name.
    """
    found: dict[str, int | None] = {}
    for name, source in sources.items():
        for pattern, ending in PAIRS:
            match = pattern.fullmatch(name)
            lengths = sources.get(match[1] + ending) if match else None
            if lengths is None or lengths.dtype != source.dtype or source.patterns.ndim < 2:
                continue
            shape, whole = lengths.patterns.shape, source.patterns.shape
            if lengths.patterns.size == 1 and source.patterns.size > 1:
                found[name] = None
            elif len(shape) == len(whole):
                kept = [axis for axis, length in enumerate(shape) if length != 1]
                if len(kept) == 1 and shape[kept[0]] == whole[kept[0]]:
                    found[name] = kept[0]
    return found


def lost(data: bytes, sources: Mapping[str, Source]) -> list[Finding]:
    """Directions of a file of which slices decode to zeros that were none.

    Args:
        data: the file.
        sources: the tensors that it was made of, by name.
    """
    known = directions(sources)
    if not known:
        return []
    container, counts = Container.of(data, EVERYTHING), {}
    for entry in container.directory.entries:
        if entry.name not in known or entry.same_as is not None:
            continue
        if entry.coding != Coding.TRANSFORM:
            continue
        axis, source = known[entry.name], sources[entry.name]
        before, after = (
            _is_there(to_float(patterns, source.dtype), axis)
            for patterns in (source.patterns, container.decode(entry))
        )
        if count := int((before & ~after).sum()):
            counts[entry.name] = count
    if not counts:
        return []
    ordered = sorted(counts, key=counts.__getitem__, reverse=True)
    named = names_of([f"{name} ({counts[name]})" for name in ordered])
    message = (
        "the decoded network gives no numbers: slices that weight normalisation divides by their "
        f"lengths decode to zeros: {named}; more bits, or a rule 'NAME=exact' or 'NAME=step:0.25'"
    )
    return [Finding("lost", message, tuple(ordered))]


def _is_there(values: np.ndarray, axis: int | None) -> np.ndarray:
    """Whether slices along an axis have anything but zeros."""
    over = tuple(i for i in range(values.ndim) if i != axis)
    return np.asarray((values != 0).any(axis=over))
