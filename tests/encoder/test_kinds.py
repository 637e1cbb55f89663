"""Which tensors are weights, which are vectors, which are exact: by numbers, names and modules."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from document import chapter, rows
from hypothesis import given
from hypothesis import strategies as st
from strategies import FLOATS, Array, rngs

import tqcodec
from tqcodec import EncodeError, Settings
from tqcodec.arrays import numpy_dtype
from tqcodec.cli import commands, describe
from tqcodec.encoder import kinds
from tqcodec.encoder.kinds import Class, Kind, Origin
from tqcodec.format.dtypes import DTYPES
from tqcodec.format.entries import Entry
from tqcodec.format.registry import Coding

RNG = np.random.default_rng(0)


def normal(*shape: int, dtype: str = "f4") -> Array:
    return RNG.normal(0, 0.05, shape).astype(dtype)


def kinds_of(tensors: dict[str, Array], *rules: tuple[str, str], **more: Any) -> dict[str, Kind]:
    """Kinds that the file states."""
    settings = Settings(quality=90, effort=1, rules=rules, **more)
    with tqcodec.open(tqcodec.encode(tensors, settings)) as file:
        entries = file.container.directory.entries
        assert all(e.kind is not None for e in entries if e.same_as is None)
        return {e.name: Kind(e.kind) for e in entries if e.kind is not None}


# ---- by names and numbers ----


def sinusoids(length: int, width: int, layout: str) -> Array:
    angles = np.arange(length)[:, None] / 10000 ** (np.arange(width // 2) / (width // 2))
    pair = np.sin(angles), np.cos(angles)
    if layout == "halves":
        return np.concatenate(pair, 1).astype("f4")
    if layout == "pairs":
        return np.stack(pair, 2).reshape(length, width).astype("f4")
    quarter = np.concatenate(pair, 1)[:, ::2]  # of two directions
    both = np.concatenate([quarter, np.roll(quarter, 1, 0)], 1)
    return np.concatenate([np.zeros((1, width)), both]).astype("f4")  # and a class token


def windows(n: int) -> Array:
    return np.hanning(n).astype("f4")


BETAS = np.linspace(1e-4, 0.02, 1000)
GRID = np.stack(np.meshgrid(np.arange(32) / 31, np.arange(24) / 23), -1)
ANGLES = np.arange(64)[:, None] / 10000 ** (np.arange(16) / 16)

CONSTANTS = {
    # masks
    "attn_mask": np.triu(normal(64, 64), 1),
    "transformer.h.0.attn.bias": np.tril(np.ones((1, 1, 64, 64), "f4")),
    "transformer.h.0.attn.masked_bias": np.float32(-1e4),
    "layers.0.blocks.1.attn_mask": np.where(RNG.random((4, 49, 49)) < 0.2, -100, 0).astype("f4"),
    "h.alibi": (np.arange(128) * 2.0 ** -np.arange(1, 9)[:, None, None]).astype("f4"),
    "h.slopes": (2.0 ** -np.arange(1, 9)).astype("f4")[:, None, None],
    # positions
    "embeddings.position_ids": np.arange(512.0, dtype="f4")[None],
    "attn.relative_position_index": RNG.integers(0, 169, (49, 49)).astype("f4"),
    "attn.rp_bucket": RNG.integers(0, 32, (64, 64)).astype("f4"),
    "attn.relative_coords_table": normal(1, 15, 15, 2),
    "points": GRID.astype("f4"),
    "head.anchors": np.abs(normal(3, 3, 2)) * 1000,
    "priors": np.abs(normal(8732, 4)),
    # schedules
    "betas": BETAS.astype("f4"),
    "model.beta": BETAS.astype("f4"),
    "alphas_cumprod": np.cumprod(1 - BETAS).astype("f4"),
    "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - np.cumprod(1 - BETAS)),
    "timesteps": np.arange(1000.0, dtype="f4"),
    # frequencies and sinusoids
    "rotary_emb.inv_freq": (1 / 10000 ** (np.arange(32) / 32)).astype("f4"),
    "weights.weight": (1 / 10000 ** (np.arange(32) / 32)).astype("f4"),
    "freqs_cis": np.stack([np.cos(ANGLES), np.sin(ANGLES)], -1).astype("f4"),
    "layers.0.cos_cached": np.cos(ANGLES).astype("f4"),
    "rotary_emb.table": normal(64, 32),
    "pos_encoder.pe": sinusoids(200, 64, "pairs")[:, None],
    "embed_positions.weights": sinusoids(200, 64, "halves"),
    "encoder.pos_embed": sinusoids(196, 64, "quarters")[None],
    "decoder.pos": sinusoids(64, 32, "halves").T.reshape(1, 32, 8, 8),
    "half.pe": sinusoids(200, 64, "pairs").astype("f2"),
    "brain.pe": sinusoids(200, 64, "pairs").astype(ml_dtypes.bfloat16),
    "pe_layer.positional_encoding_gaussian_matrix": normal(2, 128),
    # windows and filterbanks
    "stft.window": windows(400),
    "stft.forward_basis": normal(100, 1, 64),
    "spectrogram_extractor.stft.conv_real.weight": normal(65, 1, 128),
    "logmel_extractor.melW": np.abs(normal(65, 64)),
    "mel_scale.fb": np.abs(normal(201, 80)),
    "mel_basis": np.abs(normal(80, 201)),
    # normalisation of pixels, counters, single numbers
    "mean": np.array([0.485, 0.456, 0.406], "f4"),
    "pixel_std": np.array([0.229, 0.224, 0.225], "f4")[:, None, None],
    "bn.num_batches_tracked": np.int64(7),
    "quantize.ema_count": np.abs(normal(512)),
    "logit_scale": np.float32(4.6052),
    "conv.weight_u": normal(64),
    "conv.weight_v": normal(64),
    "dfl.conv.weight": np.arange(16.0, dtype="f4").reshape(1, 16, 1, 1),
    "anchor_generator.cell_anchors.0": np.abs(normal(16, 4)),
    "loss.pos_weight": np.abs(normal(80)),
    # codebooks
    "codebooks": normal(8, 256, 8),
    "shared.weight": RNG.choice(normal(16), (64, 64)),
    "blur.weight": np.tile(np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64, (8, 1, 1, 1)).astype("f4"),
    "lora_B.weight": np.zeros((64, 8), "f4"),
    "gate.e_score_correction_bias": 6 + normal(256),
    "unheard_of": normal(100),
    "small": normal(5, 7),
}
WEIGHTS = {
    "conv.weight": normal(16, 3, 3, 3),
    "depthwise.weight": normal(16, 1, 3, 3),
    "embeddings.position_embeddings.weight": normal(128, 32),
    "vit.pos_embed": normal(1, 65, 32),
    "positional_embedding": normal(77, 32),
    "attn.relative_position_bias_table": normal(169, 4),
    "attn.rel_pos_h": normal(27, 16),
    "mask_decoder.transformer.q_proj.weight": normal(32, 32),
    "window_attention.qkv.weight": normal(96, 32),
    "up.lora_A.weight": normal(4, 64),
    "adapter.up": normal(64, 4),
    "rnn.weight_ih_l0": normal(64, 16),
    "normed.weight_v": normal(16, 8, 3),
    "parametrizations.weight.original1": normal(16, 8, 3),
    "params/Dense_0/kernel": normal(16, 32),
    "dense/kernel:0": normal(16, 32),
    "f8": normal(16, 32).astype(ml_dtypes.float8_e4m3fn),
    "half.weight": normal(16, 32, dtype="f2"),
}
VECTORS = {
    "bn.weight": normal(32),
    "bn.bias": normal(32),
    "bn.running_mean": normal(32),
    "bn.running_var": np.abs(normal(32)),
    "LayerNorm.gamma": normal(32),
    "LayerNorm.beta": normal(32),
    "params/LayerNorm_0/scale": normal(32),
    "batch_norm/beta:0": normal(32),
    "block.gamma_1": normal(32),
    "block.layer_scale": normal(32, 1, 1),
    "ls.gamma": normal(1, 32, 1, 1),
    "weight_g": normal(32, 1, 1),
    "masked_spec_embed": normal(32),
    "parametrizations.weight.original0": normal(32, 1, 1),
    "lora_magnitude_vector.default": normal(32),
    "rnn.bias_hh_l0": normal(64),
    "in_proj_bias": normal(96),
    "cls_token": normal(1, 1, 32),
    "beit.mask_token": normal(1, 1, 32),
    "class_embedding": normal(32),
    "value.weight": normal(1, 64),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_are_exact(name: str) -> None:
    tensors = {"w.weight": normal(64, 64), name: CONSTANTS[name]}
    found = tqcodec.decode(tqcodec.encode(tensors, Settings(quality=60, effort=1)))[name]
    assert found.tobytes() == np.asarray(CONSTANTS[name]).tobytes()
    assert kinds.class_of(kinds_of(tensors)[name]) is Class.EXACT


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_weights(name: str) -> None:
    assert kinds_of({name: WEIGHTS[name]}) == {name: Kind.WEIGHT}


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_keep_their_bound_wherever_their_axis_stands(name: str) -> None:
    vector = VECTORS[name]
    n = vector.size
    for scale in (1e-3, 1):
        for shape in ((n,), (n, 1, 1), (1, n, 1, 1), (n, 1), (1, n)):
            given = (scale * vector).reshape(shape).astype("f4")
            tensors = {"w.weight": normal(64, 64), name: given}
            found = tqcodec.decode(tqcodec.encode(tensors, Settings(quality=30, effort=1)))[name]
            assert (np.abs(found - given) <= 2.0**-8 * np.abs(given)).all()
            assert kinds_of(tensors)[name] == Kind.VECTOR


def test_a_small_matrix_is_a_vector() -> None:
    assert kinds_of({"a.weight": normal(7, 9)}) == {"a.weight": Kind.VECTOR_SMALL}


@given(st.integers(1, 20), st.integers(17, 5000), rngs, st.sampled_from(FLOATS))
def test_distinct_values_are_counted(values: int, size: int, rng: Any, dtype: Any) -> None:
    """Wherever in the tensor they turn up; the seventeenth decides."""
    alphabet = rng.choice(1 << 7, values, replace=False).astype(dtype.pattern)
    patterns = rng.choice(alphabet, size)
    count = len(np.unique(patterns))
    assert (kinds.by_numbers(patterns, dtype) == Kind.FEW) == (count <= 16)


def test_the_seventeenth_value_may_be_the_last() -> None:
    patterns = np.zeros(300_000, np.uint32)
    patterns[-16:] = np.arange(1, 17)
    f32 = DTYPES["F32"]
    assert kinds.by_numbers(patterns, f32) != Kind.FEW
    assert kinds.by_numbers(patterns[:-1], f32) == Kind.FEW


@given(
    rngs,
    st.sampled_from([d for d in FLOATS if d.size > 1]),
    st.integers(8, 200),
    st.floats(1e-3, 1e3),
    st.floats(-1e3, 1e3),
    st.booleans(),
)
def test_progressions_are_seen(
    rng: Any, dtype: Any, n: int, span: float, start: float, geometric: bool
) -> None:
    values = np.geomspace(span, 1e9 * span, n) if geometric else start + np.linspace(0, span, n)
    if dtype.name in ("F16", "BF16"):
        values = np.geomspace(6e-5, 6e4, n) if geometric else np.linspace(0, span, n)
    patterns = values.astype(numpy_dtype(dtype)).view(dtype.pattern)
    coarse = np.abs(start) > 100 * span and dtype.name == "F32"  # few ulps from end to end
    if not coarse:
        assert kinds.by_numbers(patterns, dtype) is not None
    grid = np.tile(patterns, (9, 1))
    for axes in (grid, grid.T):
        assert coarse or kinds.by_numbers(axes, dtype) is not None
    noisy = rng.normal(size=(9, n)).astype(numpy_dtype(dtype)).view(dtype.pattern)
    assert kinds.by_numbers(noisy, dtype) is None


@given(rngs, st.sampled_from(FLOATS), st.floats(-3, 3), st.floats(0.3, 2))
def test_trained_numbers_are_not_taken_for_constants(
    rng: Any, dtype: Any, mean: float, octaves: float
) -> None:
    for shape in ((64,), (16, 16), (8, 3, 3, 3), (64, 1, 5, 5), (300, 2)):
        values = rng.normal(mean, 1, shape) * 2.0 ** rng.normal(0, octaves, shape[0]).reshape(
            -1, *[1] * (len(shape) - 1)
        )
        patterns = values.astype(numpy_dtype(dtype)).view(dtype.pattern)
        if len(np.unique(patterns)) > 16:
            assert kinds.by_numbers(patterns, dtype) is None


# ---- beside quantized weights ----


def packed(*shape: int, dtype: str = "i4") -> Array:
    return RNG.integers(0, 100, shape).astype(dtype)


QUANTIZED: dict[str, dict[str, Array]] = {
    "GPTQ": {
        "q.qweight": packed(64, 64),
        "q.qzeros": packed(2, 8),
        "q.scales": normal(2, 64, dtype="f2"),
        "q.g_idx": packed(64),
        "q.bias": normal(64, dtype="f2"),
    },
    "FP8 by block": {
        "q.weight": normal(128, 128).astype(ml_dtypes.float8_e4m3fn),
        "q.weight_scale_inv": normal(16, 8),
    },
    "FP4": {
        "q.weight": packed(64, 32, dtype="u1"),
        "q.weight_scale": np.abs(normal(64, 4)).astype(ml_dtypes.float8_e4m3fn),
        "q.weight_scale_2": normal(),
        "q.input_scale": normal(),
    },
    "NF4": {
        "q.weight": packed(512, 1, dtype="u1"),
        "q.weight.absmax": normal(64),
        "q.weight.quant_map": normal(16),
        "q.weight.nested.absmax": normal(64),
    },
    "INT8": {"q.weight": packed(64, 64, dtype="i1"), "q.SCB": normal(64), "q.bias": normal(64)},
    "INT8 with zero points": {
        "q.weight": packed(64, 64, dtype="i1"),
        "q.weight_zero": normal(64, 4),
        "q.anything": normal(64, 64),
    },
    "in training": {"q.fake.scale": normal(64), "q.fake.zero_point": packed(64, dtype="i8")},
    "codebooks": {"q.codes": packed(64, 8, dtype="i2"), "q.centres": normal(256, 8)},
    "no modules": {"weight": packed(64, 64, dtype="i1"), "weight_gain": normal(64, 2)},
    "underscores": {"fc1_weight": packed(64, 64, dtype="u1"), "fc1_gain": normal(64, 2)},
    "slashes": {"a/fc/w": packed(64, 64, dtype="u1"), "a/fc/gain": normal(64, 2)},
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_what_stands_beside_quantized_weights_is_exact(kind: str) -> None:
    tensors = QUANTIZED[kind] | {"other.weight": normal(64, 64), "other.bias": normal(64)}
    found = kinds_of(tensors)
    eight = kind == "FP8 by block"
    assert found.pop("q.weight" if eight else "other.weight") == Kind.WEIGHT
    assert found.pop("other.bias") == Kind.VECTOR
    found.pop("other.weight", None)
    assert all(kinds.class_of(k) is Class.EXACT for k in found.values()), found


def test_masks_positions_and_counters_are_no_quantized_weights() -> None:
    tensors = {
        "attn.relative_position_bias_table": normal(169, 4),
        "attn.relative_position_index": packed(49, 49),
        "attn.causal_mask": packed(64, 64, dtype="u1"),
        "attn.seen": np.ones((64, 64), bool),
        "attn.num_batches_tracked": packed(1),
        "attn.order": packed(100, dtype="i8"),
        "attn.bias": normal(64),
    }
    found = kinds_of(tensors)
    assert found["attn.relative_position_bias_table"] == Kind.WEIGHT
    assert found["attn.bias"] == Kind.VECTOR


# ---- by the module ----


def test_a_module_tells_weights_from_buffers() -> None:
    pytest.importorskip("torch")
    import torch

    import tqcodec.torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 16, 3), torch.nn.BatchNorm2d(16)
            self.unheard_of = torch.nn.Parameter(torch.randn(32))
            self.causal_mask = torch.nn.Parameter(torch.randn(32, 32))
            self.frozen = torch.nn.Parameter(torch.randn(32, 32), requires_grad=False)
            self.freqs = torch.nn.Parameter(torch.randn(32, 32), requires_grad=False)
            self.register_buffer("weight", torch.randn(32, 32))
            self.register_buffer("running_mean", torch.randn(32))
            self.register_buffer("bias", torch.randn(32))
            for tensor in self.norm.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand(tensor.shape))
            self.twice = self.conv

    torch.manual_seed(0)
    model = Net()
    data = tqcodec.torch.encode(model, Settings(quality=90, effort=1))
    with tqcodec.open(data) as file:
        found = {e.name: e.kind for e in file.container.directory.entries}
    assert found == {
        "unheard_of": Kind.VECTOR,
        "causal_mask": Kind.WEIGHT,
        "frozen": Kind.WEIGHT,
        "freqs": Kind.NAME,
        "weight": Kind.BUFFER,
        "running_mean": Kind.BUFFER,
        "bias": Kind.BUFFER,
        "conv.weight": Kind.WEIGHT,
        "conv.bias": Kind.VECTOR,
        "norm.weight": Kind.VECTOR,
        "norm.bias": Kind.VECTOR,
        "norm.running_mean": Kind.VECTOR,
        "norm.running_var": Kind.VECTOR,
        "norm.num_batches_tracked": Kind.INTEGERS,
        "twice.weight": None,
        "twice.bias": Kind.VECTOR,
    }
    state = tqcodec.torch.decode(data)
    for name in ("weight", "running_mean", "bias", "freqs"):
        assert torch.equal(state[name], model.state_dict()[name])


def test_a_buffer_is_not_tied_to_a_weight_of_the_same_bytes() -> None:
    matrix = normal(32, 32)
    origins = {"ema": Origin.BUFFER, "weight": Origin.PARAMETER}
    for names in (("weight", "ema"), ("ema", "weight")):
        data = tqcodec.encode(dict.fromkeys(names, matrix), Settings(quality=80), origins=origins)
        found = tqcodec.decode(data)
        assert np.array_equal(found["ema"], matrix)
        assert not np.array_equal(found["weight"], matrix)


# ---- rules ----


def test_rules_decide() -> None:
    tensors: dict[str, Array] = {
        "a.mask": normal(32, 32),
        "b.weight": normal(32, 32),
        "c": normal(100),
        "d.bias": normal(100),
        "e": np.array(0.1234567, np.float32),
        "f": np.arange(100),
        "g.weight": np.full((8, 8), np.inf, "f4"),
    }
    rules = [("*", "weight"), ("b.*", "exact"), ("d.*", "side:3")]
    found = kinds_of(tensors, *rules)
    assert found == {
        "a.mask": Kind.WEIGHT_RULE,
        "b.weight": Kind.WEIGHT_ASKED,
        "c": Kind.WEIGHT_RULE,
        "d.bias": Kind.VECTOR_RULE,
        "e": Kind.WEIGHT_RULE,
        "f": Kind.INTEGERS,
        "g.weight": Kind.WEIGHT_RANGE,
    }
    assert kinds_of(tensors, ("c", "side:3"))["c"] == Kind.VECTOR_RULE
    assert kinds_of(tensors, ("d.*", "lossless"))["d.bias"] == Kind.ASKED
    assert kinds_of(tensors, side_bits=None)["d.bias"] == Kind.VECTOR_ASKED
    with pytest.raises(EncodeError, match="not exact, weight"):
        Settings(rules=[("*", "weights")])


def test_a_vector_that_is_called_a_weight_is_coded_at_the_rate() -> None:
    vector = normal(20_000)
    for shape in ((20_000,), (20_000, 1), (1, 20_000)):
        rules = [("v", "weight")]
        data = tqcodec.encode({"v": vector.reshape(shape)}, Settings(bits=3, rules=rules))
        assert len(data) * 8 == pytest.approx(3 * 20_000, rel=0.02)
        found = tqcodec.decode(data)["v"].ravel()
        assert np.square(found - vector).sum() < 0.05 * np.square(vector).sum()


def test_lossless_files_count_the_same_weights() -> None:
    tensors = {"a.mask": normal(64, 64), "b.weight": normal(64, 64), "c.bias": normal(64)}
    counts = [
        describe.summary(tqcodec.open(tqcodec.encode(tensors, s)).container)["weights"]
        for s in (Settings(quality=80), Settings(lossless=True), Settings(rules=[("*", "exact")]))
    ]
    assert counts == [4096] * 3


# ---- what a file states of it ----


def test_the_specification_has_the_numbers() -> None:
    table = {int(a): (b, c) for a, b, c in rows(chapter("11.5"), "k")}
    for kind in Kind:
        found = kinds.class_of(kind)
        assert found is not None
        assert table.pop(kind) == (found.name.lower(), kinds.REASONS[kind] or "-")
    assert not table


def test_the_key_takes_three_bytes() -> None:
    from tqcodec.format.directory import write_directory
    from tqcodec.format.entries import Directory

    plain = Entry("a", DTYPES["F32"], (8, 8), Coding.RAW, 0)
    sizes = [
        len(write_directory(Directory((Entry(**{**vars(plain), "kind": k}),)))[0])
        for k in (None, *Kind)
    ]
    assert all(size - sizes[0] <= 3 for size in sizes)


def test_files_without_it_are_judged_by_shape() -> None:
    f32 = DTYPES["F32"]
    assert kinds.is_weight(None, f32, (8, 8))
    assert kinds.is_weight(None, f32, (64, 1))
    assert not kinds.is_weight(None, f32, (100,))
    assert not kinds.is_weight(None, DTYPES["I8"], (8, 8))
    assert kinds.describe(None) is None


def test_kinds_of_newer_encoders_still_have_a_class() -> None:
    assert kinds.is_weight(15, DTYPES["F32"], ())
    assert kinds.describe(31) == "vector: reason 31"
    assert kinds.class_of(48) is None and kinds.describe(1 << 60) is None
    assert all(kinds.class_of(k) == Class(k // 16) for k in Kind)
    assert all(a < b for a, b in pairwise(Kind))


def test_info_and_report_show_and_count_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "a.tqc"
    tensors = {"a.mask": normal(64, 64), "b.weight": normal(64, 64), "c.bias": normal(64)}
    path.write_bytes(tqcodec.encode({**tensors, "d.bias": tensors["c.bias"]}, Settings(quality=95)))
    assert commands.main(["info", "--json", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kinds"] == {"exact: name of a constant": 1, "weight": 1, "vector": 1}
    assert found["weights"] == 4096
    assert [t["kind"] for t in found["tensors"]] == [*found["kinds"], None]
    assert commands.main(["info", str(path)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^a\.mask .* exact: name of a constant ", out, re.M)
    assert "kinds: 1 exact: name of a constant; 1 weight; 1 vector" in out
    assert commands.main(["dump", "--json", str(path)]) == 0
    entries = json.loads(capsys.readouterr().out)["directory"]["tensors"]
    assert [e.get("k") for e in entries] == [Kind.NAME, Kind.WEIGHT, Kind.VECTOR, None]
    assert commands.main(["report", str(path)]) == 0
    assert "exact: name of a constant" in path.with_suffix(".html").read_text()


def test_every_number_of_a_network_has_its_bound() -> None:
    """All kinds at once, at a low rate: nothing but weights is worse than its class promises."""
    tensors = {**CONSTANTS, **WEIGHTS, **VECTORS}
    data = tqcodec.encode(tensors, Settings(quality=30, effort=1))
    found = tqcodec.decode(data)
    for name, array in tensors.items():
        if name in CONSTANTS:
            assert found[name].tobytes() == np.asarray(array).tobytes(), name
        elif name in VECTORS:
            assert (np.abs(found[name] - array) <= 2.0**-8 * np.abs(array)).all(), name
