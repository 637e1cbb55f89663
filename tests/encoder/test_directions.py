"""Slices that weight normalisation divides by their lengths: none is lost without a word."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tqcodec
from tqcodec.arrays import patterns_of
from tqcodec.encoder.directions import directions, evened
from tqcodec.encoder.kinds import Origin
from tqcodec.encoder.tensor import Source

RANDOM = np.random.default_rng(0)
V = RANDOM.normal(size=(64, 48)).astype(np.float32)
SHORT = V * np.where(np.arange(64) < 5, 1e-3, 1.0)[:, None].astype(np.float32)
NEW = "a.parametrizations.weight.original1", "a.parametrizations.weight.original0"
OLD = "a.weight_v", "a.weight_g"


def sources_of(tensors: dict[str, np.ndarray]) -> dict[str, Source]:
    return {name: Source(name, *patterns_of(name, array)) for name, array in tensors.items()}


@pytest.mark.parametrize(("name", "length"), [NEW, OLD])
@pytest.mark.parametrize(
    ("shape", "axis"), [((64, 1), 0), ((1, 48), 1), ((1, 1), None), ((), None)]
)
def test_directions_are_known_by_their_lengths(
    name: str, length: str, shape: tuple[int, ...], axis: int | None
) -> None:
    tensors = {name: V, length: np.ones(shape, np.float32)}
    assert directions(sources_of(tensors)) == {name: axis}


@pytest.mark.parametrize(
    "tensors",
    [
        {"a.weight_v": V},
        {"a.weight_v": V, "a.weight_g": np.ones((63, 1), np.float32)},
        {"a.weight_v": V, "a.weight_g": np.ones((64, 48), np.float32)},
        {"a.weight_v": V, "a.weight_g": np.ones(64, np.float32)},
        {"a.weight_v": V, "a.weight_g": np.ones((64, 1), np.float16)},
        {"a.weight_v": V[0], "a.weight_g": np.ones(1, np.float32)},
        {"a.w_v": V, "a.w_g": np.ones((64, 1), np.float32)},
        {"a.original1": V, "a.original0": np.ones((64, 1), np.float32)},
    ],
)
def test_other_tensors_are_no_directions(tensors: dict[str, np.ndarray]) -> None:
    assert not directions(sources_of(tensors))


@pytest.mark.parametrize(("origin", "known"), [(Origin.PARAMETER, 0), (Origin.DIRECTION, 1)])
def test_a_module_knows_better_than_names(origin: Origin, known: int) -> None:
    sources = sources_of({OLD[0]: V, OLD[1]: np.ones((64, 1), np.float32)})
    sources[OLD[0]] = replace(sources[OLD[0]], origin=origin)
    assert len(directions(sources)) == known


def encoded(
    tensors: dict[str, np.ndarray], **wishes: Any
) -> tuple[dict[str, np.ndarray], list[tuple[str, tuple[str, ...]]]]:
    report = tqcodec.EncodeReport()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tqcodec.EncodeWarning)
        data = tqcodec.encode(tensors, tqcodec.Settings(**wishes), report=report)
    told = [(one.kind, one.tensors) for one in report.findings]
    return tqcodec.decode(data), [one for one in told if one[0] in ("lost", "directions")]


def weights(v: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    v = v.astype(np.float64)
    return lengths * v / np.sqrt(np.square(v).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize(("name", "length"), [NEW, OLD])
def test_slices_that_would_be_lost_get_other_lengths(name: str, length: str, kind: Any) -> None:
    lengths = np.exp(RANDOM.normal(size=(64, 1)))
    tensors = {name: SHORT.astype(kind), length: lengths.astype(kind)}
    found, told = encoded(tensors, bits=3)
    assert told == [("directions", (name,))]
    one, other = (weights(state[name], lengths) for state in (tensors, found))
    assert np.isfinite(other).all()
    assert np.square(one - other).sum() < 0.1 * np.square(one).sum()


def test_nothing_is_changed_without_need() -> None:
    tensors = {"a.weight_v": SHORT, "a.weight_g": np.ones((64, 1), np.float32)}
    found, told = encoded(tensors, lossless=True)
    assert not told
    assert np.array_equal(found["a.weight_v"], SHORT)
    found, told = encoded({**tensors, "a.weight_v": V}, bits=4)
    assert not told
    assert found["a.weight_v"].any(axis=1).all()
    other = {"a.weight_v": SHORT}  # which nothing divides by
    assert not encoded(other, bits=3)[1]


def test_slices_that_are_lost_anyway_are_named() -> None:
    tensors = {"a.weight_v": SHORT, "a.weight_g": np.ones((64, 1), np.float32)}
    tensors |= {"b": RANDOM.normal(size=(256, 256)).astype(np.float32) * 10}
    found, told = encoded(tensors, snr=3)
    assert told == [("lost", ("a.weight_v",))]
    assert not found["a.weight_v"].any(axis=1).all()


def test_slices_that_were_zeros_before_say_nothing() -> None:
    tensors = {"a.weight_v": SHORT * (np.arange(64) >= 5)[:, None].astype(np.float32)}
    tensors |= {"a.weight_g": np.ones((64, 1), np.float32)}
    found, told = encoded(tensors, bits=4)
    assert not told
    assert not found["a.weight_v"][:5].any()


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@settings(max_examples=50)
@given(data=st.data())
def test_lengths_change_by_powers_of_two(data: st.DataObject, kind: Any) -> None:
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    axis = data.draw(st.integers(0, 1))
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    spread = data.draw(st.floats(0, 20))
    with np.errstate(over="ignore"):
        v = (random.normal(size=shape) * np.exp(spread * random.normal(size=shape))).astype(kind)
        g = np.exp(spread * random.normal(size=shape[axis])).astype(kind)
    assume(np.isfinite(v).all() and np.isfinite(g).all() and v.size > 1)
    lengths = g.reshape((-1, 1) if axis == 0 else (1, -1))
    sources = sources_of({"weight_v": v, "weight_g": lengths})
    assume(directions(sources) == {"weight_v": axis})
    changed = {**sources, **evened(sources, ["weight_v"])}
    made = changed["weight_v"].patterns.view(kind).astype(np.float64)
    for old, new in zip(np.moveaxis(v, axis, 0), np.moveaxis(made, axis, 0), strict=True):
        there = old != 0
        ratio = new[there] / old[there].astype(np.float64)
        assert not new[~there].any()
        assert len(set(ratio)) <= 1
        assert all(float(np.log2(one)).is_integer() for one in ratio)


def test_what_is_the_same_as_another_tensor_stays() -> None:
    lengths = np.ones((64, 1), np.float32)
    alone = {"a.weight_v": SHORT, "a.weight_g": lengths}
    found, told = encoded(alone | {"embedding.weight": SHORT}, bits=3)
    assert told == [("lost", ("a.weight_v",))]
    assert np.array_equal(found["a.weight_v"], found["embedding.weight"])
    found, told = encoded(alone | {"b.weight_v": SHORT, "b.weight_g": lengths}, bits=3)
    assert told == [("directions", ("a.weight_v", "b.weight_v"))]
    assert np.array_equal(found["a.weight_v"], found["b.weight_v"])
    found, told = encoded(alone | {"b.weight_v": SHORT, "b.weight_g": 2 * lengths}, bits=3)
    assert told[0][0] == "lost"
    assert np.array_equal(found["a.weight_v"], found["b.weight_v"])


@pytest.mark.parametrize("bits", [3, 8])
def test_vectors_are_refined_once(bits: float) -> None:
    tensors = {
        "a.weight_v": SHORT,
        "a.weight_g": np.ones((64, 1), np.float32),
        "a.bias": RANDOM.normal(size=64).astype(np.float32),
    }
    seen = []

    def refine(data: bytes) -> dict[str, np.ndarray]:
        seen.append(tqcodec.decode(data))
        return {"a.bias": np.full(64, 2.5, np.float32)}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tqcodec.EncodeWarning)
        found = tqcodec.decode(tqcodec.encode(tensors, tqcodec.Settings(bits=bits), refine=refine))
    assert len(seen) == 1
    assert np.array_equal(seen[0]["a.weight_v"], found["a.weight_v"])
    assert (found["a.bias"] == 2.5).all()


def test_a_size_that_other_lengths_would_exceed_is_kept() -> None:
    tensors = {"a.weight_v": SHORT, "a.weight_g": np.ones((64, 1), np.float32)}
    for size in range(200, 1500, 100):
        report = tqcodec.EncodeReport()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", tqcodec.EncodeWarning)
            try:
                data = tqcodec.encode(tensors, tqcodec.Settings(max_size=size), report=report)
            except tqcodec.EncodeError as error:
                assert "smallest file" in str(error)
                continue
        assert len(data) <= size
        whole = tqcodec.decode(data)["a.weight_v"].any(axis=1).all()
        assert whole == (not any(one.kind == "lost" for one in report.findings))
