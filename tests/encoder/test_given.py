"""Files of integers that were chosen elsewhere hold these, and decode to what they mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import rngs

import tqcodec
from tqcodec import InternalError, Settings
from tqcodec.arrays import patterns_of
from tqcodec.encoder import given
from tqcodec.encoder.matrix.classes import fit_levels
from tqcodec.encoder.matrix.record import with_integers
from tqcodec.encoder.tensor import Source
from tqcodec.format.container import Container
from tqcodec.format.reconstruct import domain, reconstruct
from tqcodec.format.records import CodedTensor
from tqcodec.format.registry import Coding

SETTINGS = Settings(bits=6, effort=2)  # whose quantizer is uniform
SHAPES = {"conv": (32, 24, 3, 3), "dense": (72, 64), "deep": (64, 1, 3, 3)}


def start(transform: str) -> tuple[list[Source], dict[str, CodedTensor]]:
    """Tensors as a file holds them, and the records of its matrices."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()
    }
    arrays |= {"tied": arrays["dense"], "bias": arrays["conv"][0, :, 0, 0], "count": np.arange(3)}
    data = tqcodec.encode(arrays, replace(SETTINGS, transform=transform))
    container = Container.of(data)
    records = {
        entry.name: container.record(entry)
        for entry in container.directory.entries
        if entry.coding == Coding.TRANSFORM and entry.same_as is None
    }
    assert {"conv", "dense"} <= set(records)
    decoded = tqcodec.decode(data)
    sources = []
    for name in arrays:
        dtype, patterns = patterns_of(name, decoded[name])
        sources.append(Source(name, dtype, patterns))
    return sources, records


STARTS = {transform: start(transform) for transform in ("none", "dct", "klt")}


def other_integers(
    record: CodedTensor, shape: tuple[int, ...], rng: np.random.Generator, spread: float
) -> CodedTensor:
    """The record with integers of a spread, many of its columns empty."""
    found = domain(record, shape)
    q = np.rint(rng.normal(size=found.coefficients.shape) * spread).astype(np.int32)
    q *= rng.random(q.shape[1]) < 0.7
    full = np.zeros((len(q), found.channels[1] * found.channels[2]), np.float32)
    full[:, found.columns] = np.abs(q)
    levels = fit_levels(full.reshape(found.channels))
    return with_integers(record, q, float(rng.uniform(1e-4, 1e-1)), levels)


def decoding_to(
    sources: list[Source], records: dict[str, CodedTensor], shapes: dict[str, tuple[int, ...]]
) -> list[Source]:
    """The tensors with what records decode to in place of their matrices."""
    made: dict[str, NDArray[np.unsignedinteger]] = {
        source.name: reconstruct(records[source.name], shapes[source.name], source.dtype)
        for source in sources
        if source.name in records
    }
    made["tied"] = made["dense"]
    return [replace(one, patterns=made.get(one.name, one.patterns)) for one in sources]


@pytest.mark.parametrize("transform", STARTS)
@drawn(rng=rngs, spread=st.sampled_from([0.0, 0.3, 3.0, 300.0]))
def test_the_file_holds_the_integers(
    transform: str, rng: np.random.Generator, spread: float
) -> None:
    sources, records = STARTS[transform]
    chosen = {
        name: other_integers(record, SHAPES[name], rng, spread) for name, record in records.items()
    }
    sources = decoding_to(sources, chosen, SHAPES)
    data = given.encode(sources, chosen, SETTINGS)
    assert len(data) == given.lay_out(sources, chosen, SETTINGS).size
    container = Container.of(data)
    for entry in container.directory.entries:
        if entry.name in chosen:
            one, other = container.record(entry), chosen[entry.name]
            assert np.array_equal(one.coefficients, other.coefficients)
            assert one.scale == other.scale
    decoded = tqcodec.decode(data)
    assert list(decoded) == [source.name for source in sources]
    for source in sources:
        assert np.array_equal(patterns_of(source.name, decoded[source.name])[1], source.patterns)
    assert "retrained" in container.directory.provenance


def test_tensors_that_are_not_what_the_integers_mean_are_no_file() -> None:
    sources, records = STARTS["none"]
    wrong = [
        replace(one, patterns=one.patterns ^ one.patterns.dtype.type(1))
        if one.name == "conv"
        else one
        for one in sources
    ]
    with pytest.raises(InternalError, match="'conv'"):
        given.encode(wrong, records, SETTINGS)


def test_tables_of_the_file_are_fitted_anew() -> None:
    """Smaller integers make a smaller file."""
    sources, records = STARTS["none"]
    sizes = []
    for spread in (0.2, 2.0, 20.0):
        rng = np.random.default_rng(0)
        chosen = {n: other_integers(r, SHAPES[n], rng, spread) for n, r in records.items()}
        sizes.append(len(given.encode(decoding_to(sources, chosen, SHAPES), chosen, SETTINGS)))
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("side_bits", range(7))
def test_what_was_shortened_is_not_shortened_again(side_bits: int) -> None:
    """Subnormal numbers round up, so that fewer bits would do for them the next time."""
    shortened = replace(SETTINGS, side_bits=side_bits)
    sources, records = STARTS["none"]
    least = (384, 448, 480, 496, 504, 508, 511)[side_bits] + 1  # just below a power of two
    vector = np.arange(least, 1 << 10).astype(np.uint16).view(np.float16)
    vector = np.concatenate([vector, np.ones(300, np.float16)])  # or it were kept exactly
    once = tqcodec.decode(tqcodec.encode({"v.bias": vector}, shortened))["v.bias"]
    dtype, patterns = patterns_of("v.bias", once)
    assert not np.array_equal(once, vector)
    data = given.encode([*sources, Source("v.bias", dtype, patterns)], records, shortened)
    np.testing.assert_array_equal(tqcodec.decode(data)["v.bias"], once)
