"""Encode and decode of arrays of every type, shape and setting."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import FLOATS, SPECIAL, Array, arrays, examples, some_patterns

import tqcodec
from tqcodec import EncodeError, Settings, decode, encode
from tqcodec.arrays import numpy_dtype
from tqcodec.format.dtypes import DTYPES
from tqcodec.format.registry import Coding

SHAPES = {
    "linear": (24, 40),
    "tall": (300, 1),
    "wide": (1, 300),
    "conv1d": (16, 8, 5),
    "conv2d": (16, 12, 3, 3),
    "depthwise": (48, 1, 3, 3),
    "conv3d": (6, 5, 2, 3, 3),
    "embedding": (200, 8),
    "pairs": (3, 2, 40, 30),
}


def gaussian(shape: tuple[int, ...], seed: int = 0, scale: float = 0.05) -> Array:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def assert_described(found: dict[str, Array], wanted: dict[str, Array]) -> None:
    """Same names in the same order, dtypes and shapes."""
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype.newbyteorder("="), name
        assert found[name].shape == array.shape, name


def assert_exact(found: dict[str, Array], wanted: dict[str, Array]) -> None:
    assert_described(found, wanted)
    for name, array in wanted.items():
        assert found[name].tobytes() == array.astype(found[name].dtype).tobytes(), name


def is_finite(array: Array) -> bool:
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return bool(np.isfinite(array.astype(np.float64)).all())


def snr(found: Array, wanted: Array) -> float:
    truth = wanted.astype(np.float64)
    error = np.square(found.astype(np.float64) - truth).sum()
    return 10 * math.log10(np.square(truth).sum() / error) if error else math.inf


@given(st.lists(arrays(), max_size=4))
def test_lossless_is_exact(values: list[Array]) -> None:
    named = {f"tensor {i}": value for i, value in enumerate(values)}
    copies = {name: value.copy() for name, value in named.items()}
    assert_exact(decode(encode(named, Settings(lossless=True))), copies)
    for name, value in named.items():
        assert value.tobytes() == copies[name].tobytes()


def wishes() -> st.SearchStrategy[dict[str, Any]]:
    targets: st.SearchStrategy[dict[str, Any]] = st.one_of(
        st.builds(dict, snr=st.floats(0, 100)),
        st.builds(dict, quality=st.floats(0, 100)),
        st.builds(dict, bits=st.floats(0.01, 32)),
        st.just({}),
    )
    others = st.fixed_dictionaries(
        {
            "transform": st.sampled_from(["auto", "none", "dct", "klt"]),
            "payload": st.sampled_from(["range", "fixed"]),
            "effort": st.sampled_from([1, 3, 5, 9]),
            "side_bits": st.sampled_from([None, 0, 7, 52]),
        }
    )
    return st.builds(lambda a, b: a | b, targets, others)


@examples(200)
@given(st.lists(arrays(), max_size=3), wishes())
def test_any_arrays_with_any_settings(values: list[Array], wish: dict[str, Any]) -> None:
    named = {f"tensor {i}": value for i, value in enumerate(values)}
    copies = {name: value.copy() for name, value in named.items()}
    try:
        found = decode(encode(named, Settings(**wish)))
    except tqcodec.EncodeError as error:
        assert "bits" in wish and "cannot be reached, the least is" in str(error)
        return
    assert_described(found, copies)
    for name, value in copies.items():
        assert named[name].tobytes() == value.tobytes()
        if value.dtype.kind in "biu" or not is_finite(value):
            assert found[name].tobytes() == value.tobytes()
        else:
            assert is_finite(found[name])


@pytest.mark.parametrize(
    ("effort", "transform", "payload"),
    [
        (1, "auto", "range"),
        (9, "auto", "fixed"),
        (5, "auto", "range"),
        (1, "none", "fixed"),
        (5, "dct", "range"),
        (5, "klt", "fixed"),
    ],
)
def test_the_signal_to_noise_ratio_is_met(effort: int, transform: str, payload: str) -> None:
    weights = {name: gaussian(shape, i) for i, (name, shape) in enumerate(SHAPES.items())}
    wish = Settings(snr=20, effort=effort, transform=transform, payload=payload)
    found = decode(encode(weights, wish))
    assert_described(found, weights)
    names = [name for name in weights if name not in ("tall", "wide")]  # these are vectors
    joined = [np.concatenate([d[name].ravel() for name in names]) for d in (found, weights)]
    assert snr(*joined) == pytest.approx(20, abs=0.1)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize("target", [3, 15])
def test_every_floating_point_type_is_transform_coded(dtype: Any, target: float) -> None:
    weights = {"w": gaussian((48, 32)).astype(numpy_dtype(dtype))}
    data = encode(weights, Settings(snr=target))
    (entry,) = tqcodec.open(data).container.directory.entries
    assert entry.coding == Coding.TRANSFORM
    assert snr(decode(data)["w"], weights["w"]) == pytest.approx(target, abs=0.3)


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_quality_is_a_signal_to_noise_ratio(quality: float) -> None:
    weights = gaussian((64, 64))
    found = decode(encode({"w": weights}, Settings(quality=quality)))["w"]
    assert snr(found, weights) == pytest.approx(0.4 * quality, abs=0.1)


@pytest.mark.parametrize("payload", ["range", "fixed"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_bits_a_weight_are_met(bits: float, payload: str) -> None:
    weights = {
        "a": gaussian((96, 64)),
        "b": gaussian((64, 16, 3, 3), 1),
        "bias": gaussian((64,), 2),
    }
    data = encode(weights, Settings(bits=bits, payload=payload))
    count = weights["a"].size + weights["b"].size
    assert 8 * len(data) / count == pytest.approx(bits, rel=0.02)


@pytest.mark.parametrize("size", [2000, 5000, 20000])
def test_the_largest_size_is_kept_and_used(size: int) -> None:
    data = encode({"w": gaussian((96, 128))}, Settings(max_size=size))
    assert 0.97 * size <= len(data) <= size


def test_bits_that_exact_tensors_use_up_are_refused_with_the_least() -> None:
    weights = {"exact": gaussian((40, 40)), "other": gaussian((40, 40), 1)}
    rules = [("exact", "lossless")]
    with pytest.raises(tqcodec.EncodeError, match="cannot be reached, the least is") as caught:
        encode(weights, Settings(bits=4, rules=rules))
    least = float(str(caught.value).split("the least is ")[1].split()[0])
    found = decode(encode(weights, Settings(bits=1.05 * least, rules=rules)))
    assert np.array_equal(found["exact"], weights["exact"])
    assert found["other"].any()


def test_a_size_that_cannot_be_met_is_an_error() -> None:
    with pytest.raises(EncodeError, match="max_size"):
        encode({"w": gaussian((96, 128))}, Settings(max_size=60))
    with pytest.raises(EncodeError, match="max_size"):
        encode({"w": gaussian((96, 128))}, Settings(max_size=60, rules=[("w", "lossless")]))


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(np.float64, scale) for scale in (1e-300, 1e-150, 1e-40, 1e40, 1e150, 1e300)]
    + [(dtype, scale) for dtype in (np.float32, ml_dtypes.bfloat16) for scale in (1e-36, 1e36)],
)
def test_scale_does_not_matter(dtype: Any, scale: float) -> None:
    weights = (np.random.default_rng(0).normal(size=(32, 32)) * scale).astype(dtype)
    unit = weights.astype(np.float64) / scale
    found = decode(encode({"w": weights}, Settings(snr=20)))["w"].astype(np.float64) / scale
    assert snr(found, unit) >= 19.7


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
def test_numbers_near_the_largest_stay_finite(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    largest = float(ml_dtypes.finfo(numpy_dtype(dtype)).max)
    weights = (rng.uniform(-1, 1, (32, 32)) * largest).astype(numpy_dtype(dtype))
    found = decode(encode({"w": weights}, Settings(snr=3)))["w"]
    assert np.isfinite(found.astype(np.float64)).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
def test_weights_that_are_not_finite_stay_exact(dtype: Any) -> None:
    weights = gaussian((10, 10)).astype(numpy_dtype(dtype))
    weights.view(dtype.pattern)[0] = SPECIAL[dtype.name]
    arrays = {"w": weights, "v": weights[0], "finite": gaussian((20, 20))}
    found = decode(encode(arrays, Settings(snr=20, side_bits=2)))
    for name in ("w", "v"):
        assert found[name].tobytes() == arrays[name].tobytes()


@pytest.mark.parametrize("side_bits", [0, 3, 7, None])
def test_side_tensors_are_within_their_bound(side_bits: int | None) -> None:
    vector = np.random.default_rng(0).lognormal(0, 4, 500).astype(np.float32)
    found = decode(encode({"bias": vector}, Settings(side_bits=side_bits)))["bias"]
    bound = 0 if side_bits is None else 2.0 ** -(side_bits + 1)
    error = np.abs(found.astype(np.float64) - vector) / vector
    assert error.max() <= bound


def test_rules_choose_for_single_tensors() -> None:
    weights = {f"layer{i}.weight": gaussian((32, 32), i) for i in range(3)} | {
        "bias": gaussian((9,))
    }
    rules = [("*", "step:4"), ("layer0.*", "lossless"), ("layer1.*", "step:1"), ("bias", "side:20")]
    found = decode(encode(weights, Settings(snr=25, rules=rules)))
    assert np.array_equal(found["layer0.weight"], weights["layer0.weight"])
    ratios = [snr(found[f"layer{i}.weight"], weights[f"layer{i}.weight"]) for i in (1, 2)]
    assert ratios[0] - ratios[1] == pytest.approx(20 * math.log10(4), abs=1.5)
    assert np.abs(found["bias"] / weights["bias"] - 1).max() <= 2.0**-21
    with pytest.raises(EncodeError, match="matches no tensor"):
        encode(weights, Settings(rules=[("nothing.*", "lossless")]))


def test_tied_tensors_are_stored_once() -> None:
    weights = gaussian((128, 64))
    once = encode({"a": weights}, Settings(bits=8))
    twice = encode({"a": weights, "b": weights, "c": weights.copy()}, Settings(bits=8))
    assert len(twice) < len(once) + 100
    found = decode(twice)
    assert np.array_equal(found["a"], found["b"]) and np.array_equal(found["a"], found["c"])


@pytest.mark.parametrize(
    "wish", [Settings(lossless=True), Settings(bits=3), Settings(max_size=4000)]
)
def test_layout_and_order_of_bytes_do_not_matter(wish: Settings) -> None:
    weights = gaussian((40, 60))
    views = [
        np.asfortranarray(weights),
        weights.astype(">f4"),
        np.repeat(weights, 2, axis=0)[::2],
        weights[::-1, ::-1][::-1, ::-1],
    ]
    plain = encode({"w": weights}, wish)
    assert [encode({"w": view}, wish) for view in views] == [plain] * len(views)


def test_the_same_bytes_again_and_with_any_number_of_workers() -> None:
    weights = {name: gaussian(shape, i) for i, (name, shape) in enumerate(SHAPES.items())}
    weights |= {"bias": gaussian((64,)), "half": gaussian((40, 40)).astype(np.float16)}
    files = {encode(weights, Settings(bits=3, workers=n)) for n in (1, 1, 2)}
    assert len(files) == 1


def test_nothing_else_is_touched(capfd: pytest.CaptureFixture[str]) -> None:
    weights = gaussian((64, 32))
    weights.flags.writeable = False
    np.random.seed(3)
    before = np.random.get_state(legacy=False)
    decode(encode({"w": weights, "b": weights[0]}, Settings(bits=2)))
    after = np.random.get_state(legacy=False)
    assert np.array_equal(before["state"].pop("key"), after["state"].pop("key"))
    assert before == after
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("wish", [Settings(lossless=True), Settings()])
def test_arrays_read_again_are_the_same(wish: Settings) -> None:
    arrays = {"w": gaussian((32, 32)), "b": gaussian((32,)), "i": np.arange(5)}
    with tqcodec.open(encode(arrays, wish)) as file:
        first = {name: array.copy() for name, array in file.items()}
        for array in file.values():
            array[...] = 0  # the caller's own
        assert_exact(dict(file), first)


def test_files_on_disk(tmp_path: Path) -> None:
    arrays = {"w": gaussian((32, 32)), "b": gaussian((32,)), "empty": np.zeros((0, 3), np.float16)}
    path, wish = tmp_path / "file.tqc", Settings(bits=5, metadata=(("origin", "test"),))
    tqcodec.save(arrays, path, wish)
    assert path.read_bytes() == encode(arrays, wish)
    assert [p.name for p in tmp_path.iterdir()] == ["file.tqc"]
    assert_exact(tqcodec.load(path), decode(path.read_bytes()))
    tqcodec.verify(path)
    with tqcodec.open(path) as file:
        assert list(file) == list(arrays) and len(file) == 3
        assert file.metadata() == {"origin": "test"}
        assert file["w"].shape == (32, 32)
        with pytest.raises(KeyError):
            file["nothing"]


def test_progress_counts_to_its_end() -> None:
    calls: list[tuple[str, int, int]] = []
    data = encode({"w": gaussian((32, 32))}, progress=lambda *call: calls.append(call))
    decode(data, progress=lambda *call: calls.append(call))
    assert {"analyse", "encode", "decode"} <= {stage for stage, _, _ in calls}
    assert all(1 <= done <= of for _, done, of in calls)


@pytest.mark.parametrize(
    ("arrays", "wish"),
    [
        ({"w": np.array([None])}, {}),
        ({"w": np.zeros(2, np.complex64)}, {}),
        ({"w": np.array(["text"])}, {}),
        ({3: np.zeros(2)}, {}),
        ({"": np.zeros(2)}, {}),
        ({"n" * 5000: np.zeros(2)}, {}),
        ({"\ud800": np.zeros(2)}, {}),
        ({"w": np.zeros((1,) * 17)}, {}),
        ({"w": np.zeros((0, 1 << 50), np.uint8)}, {}),
        ({}, {"bits": 1, "snr": 2}),
        ({}, {"bits": 0}),
        ({}, {"bits": math.nan}),
        ({}, {"bits": True}),
        ({}, {"max_size": 0}),
        ({}, {"max_size": 10.5}),
        ({}, {"quality": 101}),
        ({}, {"effort": 0}),
        ({}, {"effort": 1.5}),
        ({}, {"workers": 1.5}),
        ({}, {"side_bits": 1.5}),
        ({}, {"side_bits": -1}),
        ({}, {"transform": "fft"}),
        ({}, {"payload": "huffman"}),
        ({}, {"rules": [("*", "steps:2")]}),
        ({}, {"rules": [("*", "step:nan")]}),
        ({}, {"metadata": (("key", 3),)}),
        ({}, {"metadata": (("key", "\ud800"),)}),
    ],
)
def test_what_cannot_be_encoded_is_an_encode_error(
    arrays: dict[Any, Array], wish: dict[str, Any]
) -> None:
    with pytest.raises(EncodeError):
        encode(arrays, Settings(**wish))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((32, 32), np.float32),
        -np.zeros((32, 32), np.float32),
        np.ones((32, 32), np.float32),
        np.eye(32, dtype=np.float32),
        np.eye(64, 2, dtype=np.float32),
        np.full((32, 32), 1e-45, np.float32),
        np.zeros((9, 9, 3, 3), np.float16),
        np.float32(3),
        np.zeros((0, 7), np.float32),
    ],
)
@pytest.mark.parametrize("transform", ["auto", "none", "klt"])
@pytest.mark.parametrize("target", [{"snr": 30}, {"bits": 1}, {"bits": 32}, {"snr": 0}], ids=str)
def test_degenerate_weights(array: Array, transform: str, target: dict[str, Any]) -> None:
    found = decode(encode({"w": array}, Settings(transform=transform, **target)))["w"]
    assert_described({"w": found}, {"w": np.asarray(array)})
    if not np.any(array):
        assert not found.any()


@examples(10)
@given(st.sampled_from(list(DTYPES.values())), st.integers(0, 99))
def test_incompressible_bytes_never_grow(dtype: Any, seed: int) -> None:
    patterns = some_patterns(np.random.default_rng(seed), dtype, 40000, "any")
    data = encode({"w": patterns.view(numpy_dtype(dtype))}, Settings(lossless=True))
    assert len(data) <= patterns.nbytes + 64 + tqcodec.open(data).container.directory_size


@pytest.mark.parametrize(
    ("dtype", "share"), [(ml_dtypes.bfloat16, 0.71), (np.float32, 0.86), (np.float16, 0.92)]
)
def test_lossless_weights_shrink(dtype: Any, share: float) -> None:
    weights = gaussian((256, 256), scale=0.02).astype(dtype)
    data = encode({"w": weights}, Settings(lossless=True))
    assert len(data) <= share * weights.nbytes
    assert_exact(decode(data), {"w": weights})
