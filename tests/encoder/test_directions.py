"""Slices that weight normalisation divides by their lengths: none is lost without a word."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import tqcodec
from tqcodec.arrays import patterns_of
from tqcodec.encoder.directions import directions
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
        {"a.original1": V, "a.original0": np.ones((64, 1), np.float32)},
    ],
)
def test_other_tensors_are_no_directions(tensors: dict[str, np.ndarray]) -> None:
    assert not directions(sources_of(tensors))


def findings(tensors: dict[str, np.ndarray], **settings: Any) -> list[tuple[str, ...]]:
    report = tqcodec.EncodeReport()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tqcodec.EncodeWarning)
        data = tqcodec.encode(tensors, tqcodec.Settings(**settings), report=report)
    zeros = {n for n, a in tqcodec.decode(data).items() if a.ndim > 1 and not a.any(axis=1).all()}
    lost = [finding.tensors for finding in report.findings if finding.kind == "lost"]
    assert zeros == {name for names in lost for name in names}  # said if and only if it is so
    return lost


@pytest.mark.parametrize(("name", "length"), [NEW, OLD])
def test_slices_that_become_zeros_are_named(name: str, length: str) -> None:
    tensors = {name: SHORT, length: np.ones((64, 1), np.float32)}
    assert findings(tensors, bits=3) == [(name,)]
    assert not findings(tensors, lossless=True)
    assert not findings({**tensors, name: V}, bits=4)


def test_slices_that_were_zeros_before_say_nothing() -> None:
    tensors = {"a.weight_v": SHORT * (SHORT > 1e-2), "a.weight_g": np.ones((64, 1), np.float32)}
    report = tqcodec.EncodeReport()
    tqcodec.encode(tensors, tqcodec.Settings(bits=6), report=report)
    assert not [finding for finding in report.findings if finding.kind == "lost"]
