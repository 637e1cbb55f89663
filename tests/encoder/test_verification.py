"""A file that is not what it should be is not handed out: faults are put into the encoder here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from strategies import FLOATS, rngs, some_patterns, using

import tqcodec
from tqcodec import EncodeWarning, InternalError, Settings
from tqcodec.arrays import numpy_dtype
from tqcodec.cli import commands
from tqcodec.encoder import (
    assembly,
    budget,
    corrections,
    pipeline,
    plan,
    side,
    tensor,
    verification,
)
from tqcodec.format import native, native_decoder
from tqcodec.format.dtypes import DTYPES, to_float
from tqcodec.format.records import CodedTensor
from tqcodec.format.vectors import Vector

Fault = Callable[[pytest.MonkeyPatch], None]


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(32, 32)).astype(np.float32)
    return {
        "matrix": matrix,
        "tied": matrix.copy(),
        "bias": rng.normal(size=40).astype(np.float32),
        "count": np.arange(40),
        "exact": rng.normal(size=(3, 3)).astype(np.float16),
    }


SETTINGS = Settings(bits=6, metadata=(("a", "b"),), rules=[("exact", "lossless")])


def other_assembly(patch: pytest.MonkeyPatch, change: Callable[..., Any]) -> None:
    """Have the file assembled from what `change` makes of the arguments."""
    right = assembly.assemble

    def wrong(*arguments: Any) -> Any:
        return right(*change(*arguments))

    patch.setattr(pipeline, "assemble", wrong)


def other_numbers(name: str) -> Fault:
    """One number of a tensor in planes is another, and its checksum with it."""

    def fault(patch: pytest.MonkeyPatch) -> None:
        def change(sources: Any, items: Any, matrices: Any, parts: Any, *rest: Any) -> Any:
            part = parts[name]
            patterns = part.patterns.copy()
            patterns[7 % len(patterns)] = patterns[0]
            changed = {**parts, name: replace(part, patterns=patterns)}
            return (sources, items, matrices, changed, *rest)

        other_assembly(patch, change)

    return fault


def fewer_mantissa_bits(patch: pytest.MonkeyPatch) -> None:
    right = side.make_part

    def wrong(patterns: Any, dtype: Any, kept: int | None) -> Any:
        return right(patterns, dtype, None if kept is None else max(0, kept - 2))

    patch.setattr(side, "make_part", wrong)


def other_record(change: Callable[[CodedTensor], CodedTensor]) -> Fault:
    """The matrix is another one, and the checksum that of the right one."""

    def fault(patch: pytest.MonkeyPatch) -> None:
        def changed(sources: Any, items: Any, matrices: Any, *rest: Any) -> Any:
            found = {}
            for name, draft in matrices.items():
                content = replace(draft.content, record=change(draft.content.record))
                found[name] = replace(draft, content=content)
            return (sources, items, found, *rest)

        other_assembly(patch, changed)

    return fault


def another_ratio(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(assembly, "decibels", lambda error, energy: 1)


def no_metadata(patch: pytest.MonkeyPatch) -> None:
    def change(*arguments: Any) -> Any:
        *first, _, about = arguments
        return (*first, {}, about)

    other_assembly(patch, change)


def another_order(patch: pytest.MonkeyPatch) -> None:
    def change(sources: Any, items: Sequence[Any], *rest: Any) -> Any:
        return (sources, [*items[2:], *items[:2]], *rest)

    other_assembly(patch, change)


def tied_to_another(patch: pytest.MonkeyPatch) -> None:
    """Two tensors of one type and shape are taken for one."""
    right = plan._twin

    def wrong(source: Any, *rest: Any) -> Any:
        return "matrix" if source.name == "tied" else right(source, *rest)

    patch.setattr(plan, "_twin", wrong)
    monkey = tensors()
    monkey["tied"][0, 0] += 1
    patch.setitem(globals(), "tensors", lambda: monkey)


def swapped_matrices(patch: pytest.MonkeyPatch) -> None:
    """Each right in itself: checksum, ratio and all."""
    two = tensors() | {"tied": tensors()["matrix"].T * 0.7}
    patch.setitem(globals(), "tensors", lambda: two)

    def change(sources: Any, items: Any, matrices: Any, *rest: Any) -> Any:
        a, b = matrices
        return (sources, items, {a: matrices[b], b: matrices[a]}, *rest)

    other_assembly(patch, change)


def another_shape(patch: pytest.MonkeyPatch) -> None:
    def change(sources: Any, *rest: Any) -> Any:
        bias = sources["bias"]
        changed = replace(bias, patterns=bias.patterns.reshape(4, 10))
        return ({**sources, "bias": changed}, *rest)

    other_assembly(patch, change)


def corrected(name: str, change: Callable[[Any], Any]) -> Fault:
    """A vector takes up what it must not, or in a way that it must not."""

    def fault(patch: pytest.MonkeyPatch) -> None:
        def wrong(sources: Any, *_: Any) -> Any:
            return {name: change(sources[name].patterns)}

        patch.setattr(corrections, "corrected", wrong)

    return fault


def rounded_though_exact(patch: pytest.MonkeyPatch) -> None:
    """The plan forgets a rule."""
    right = plan.make_plan

    def wrong(*arguments: Any) -> Any:
        rounded = tensor.Treatment.ROUNDED
        items = right(*arguments)
        return [replace(i, treatment=rounded) if i.name == "exact" else i for i in items]

    patch.setattr(pipeline, "make_plan", wrong)


def coarser(record: CodedTensor) -> CodedTensor:
    mantissa, exponent = record.scale
    return replace(record, scale=(mantissa, exponent + 1))


def too_many_tables(patch: pytest.MonkeyPatch) -> None:
    """What encoders did before they counted all tables of a file."""
    patch.setattr(budget, "within_limits", list)
    patch.setattr("tqcodec.format.tables.MAX_TABLES", 2)


FAULTS: dict[str, tuple[str, str | None, Fault]] = {
    "vector": ("source.bound", "bias", other_numbers("bias")),
    "integers": ("source.exact", "count", other_numbers("count")),
    "exact": ("tensor.check", "exact", other_numbers("exact")),
    "mantissa": ("source.bound", "bias", fewer_mantissa_bits),
    "scale": ("tensor.check", "matrix", other_record(coarser)),
    "depths": (
        "payload.depth",
        "matrix",
        other_record(lambda r: replace(r, depths=Vector.constant(1, len(r.depths.values)))),
    ),
    "ratio": ("source.snr", "matrix", another_ratio),
    "swapped": ("source.snr", "matrix", swapped_matrices),
    "metadata": ("source.metadata", None, no_metadata),
    "order": ("source.names", None, another_order),
    "shape": ("source.type", "bias", another_shape),
    "ties": ("source.tie", "tied", tied_to_another),
    "corrected integers": ("source.exact", "count", corrected("count", lambda p: p + 1)),
    "corrected to fewer": ("source.type", "bias", corrected("bias", lambda p: p[:7])),
    "corrected to NaN": ("source.bound", "bias", corrected("bias", lambda p: p | 0x7FC00000)),
    "plan": ("source.exact", "exact", rounded_though_exact),
    "tables": ("table.count", None, too_many_tables),
}
decoders = pytest.mark.parametrize("decoder", ["C", "Python"])


@decoders
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_file_is_not_handed_out(
    fault: str, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if decoder == "C" and not native_decoder.available():
        pytest.skip("the decoder in C is not built")
    rule, name, put_in = FAULTS[fault]
    assert tqcodec.decode(tqcodec.encode(tensors(), SETTINGS))
    put_in(monkeypatch)
    loops = using("native" if native.AVAILABLE else "portable")
    with loops if decoder == "Python" else nullcontext(), pytest.raises(InternalError) as caught:
        tqcodec.encode(tensors(), SETTINGS)
    assert (caught.value.rule, caught.value.tensor) == (rule, name)
    assert f"[{rule}]" in str(caught.value)


def test_the_command_line_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(tensors(), tmp_path / "m.safetensors")
    (tmp_path / "m.tqc").write_bytes(b"old")
    other_numbers("bias")(monkeypatch)
    command = ["encode", str(tmp_path / "m.safetensors"), "--bits", "6", "-f"]
    assert commands.main(command) == 70
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tqcodec: internal error: [source.bound] tensor 'bias': ")
    assert err.count("\n") == 1
    assert (tmp_path / "m.tqc").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors", "m.tqc"]
    assert commands.main([*command, "--no-verify"]) == 0
    bias = tqcodec.load(tmp_path / "m.tqc")["bias"]
    assert bias[7] == bias[0]


def test_a_decoder_that_refuses_what_another_takes_is_a_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not native_decoder.available():
        pytest.skip("the decoder in C is not built")
    monkeypatch.setattr(native_decoder.NativeFile, "visit", lambda *_: False)
    with pytest.raises(InternalError, match="decoder in C"):
        tqcodec.encode(tensors())


def test_progress_of_the_verification_is_shown() -> None:
    stages: list[str] = []
    tqcodec.encode(tensors(), progress=lambda stage, done, of: stages.append(stage))
    assert stages[-1] == "verify"
    stages.clear()
    tqcodec.encode(tensors(), progress=lambda stage, done, of: stages.append(stage), verify=False)
    assert "verify" not in stages


# ---- the bound of vectors ----


@given(
    rngs,
    st.sampled_from(FLOATS),
    st.integers(0, 52),
    st.sampled_from(["weights", "any", "special"]),
)
def test_shortened_numbers_are_within_the_bound(
    rng: np.random.Generator, dtype: Any, kept: int, kind: str
) -> None:
    """Subnormal numbers and those next to the largest, too."""
    patterns = some_patterns(rng, dtype, 200, kind)
    patterns = patterns[np.isfinite(to_float(patterns, dtype))]
    for some in (patterns, *np.split(patterns[:8], 8)) if len(patterns) >= 8 else (patterns,):
        part = side.make_part(some, dtype, kept)
        old, new = (to_float(p, dtype).astype(np.longdouble) for p in (some, part.patterns))
        assert (np.abs(new - old) <= np.abs(old) * np.longdouble(2) ** -(kept + 1)).all()
        assert verification.within_bound(some, part.patterns, dtype, kept)
    if kept < dtype.mantissa_bits and patterns.astype(bool).any():
        sign = dtype.pattern.type(1 << 8 * dtype.size - 1)
        other = patterns ^ sign
        wrong = (patterns & ~sign).any()  # but for zeros
        assert verification.within_bound(patterns, other, dtype, kept) != wrong


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
def test_numbers_just_beyond_the_bound_are_seen(dtype: Any) -> None:
    """Of every size, subnormal ones too: the next number away from the bound is refused."""
    kept = dtype.mantissa_bits // 2
    step = 1 << dtype.mantissa_bits - kept
    for exponent in (0, 1, (1 << dtype.exponent_bits) - 2):
        base = (exponent << dtype.mantissa_bits) + (1 << dtype.mantissa_bits - 1)
        before = np.array([base], dtype.pattern)
        assert not verification.within_bound(before, before + dtype.pattern.type(step), dtype, kept)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
def test_vectors_of_small_and_large_numbers_keep_their_bound(dtype: Any) -> None:
    """float16 below 6e-5 used to lose everything."""
    rng = np.random.default_rng(0)
    tiny = rng.integers(1, 1 << dtype.mantissa_bits, 100).astype(dtype.pattern)
    huge = (((1 << dtype.exponent_bits) - 2) << dtype.mantissa_bits) + tiny
    vectors = {
        "tiny.bias": tiny,
        "mixed.bias": np.concatenate([tiny, some_patterns(rng, dtype, 100, "weights")]),
        "huge.bias": huge.astype(dtype.pattern),
    }
    for side_bits in (0, 3, 7):
        arrays = {name: p.view(numpy_dtype(dtype)) for name, p in vectors.items()}
        found = tqcodec.decode(tqcodec.encode(arrays, Settings(side_bits=side_bits)))
        for name, wanted in arrays.items():
            old, new = wanted.astype(np.longdouble), found[name].astype(np.longdouble)
            assert (np.abs(new - old) <= np.abs(old) * 2.0 ** -(side_bits + 1)).all(), name


@pytest.mark.parametrize("kept", [1, 2])
def test_types_without_infinities_round_up_to_the_end(kept: int) -> None:
    """The exponent of all ones is that of numbers there."""
    dtype = DTYPES["F8_E4M3"]
    patterns = np.arange(0x78, 0x7F, dtype=np.uint8)  # 256 to 448
    found = to_float(side.make_part(patterns, dtype, kept).patterns, dtype)
    values = to_float(patterns, dtype)
    assert (np.abs(found - values) <= 2.0 ** -(kept + 1) * values).all()


# ---- files that decode to more than a decoder takes by default ----


def test_a_file_that_decodes_to_very_much_is_warned_of() -> None:
    zeros = {"w": np.zeros((3000, 4000), np.float32)}
    with pytest.warns(EncodeWarning, match="limit=48000000 .--limit 48000000."):
        data = tqcodec.encode(zeros)
    with pytest.raises(tqcodec.LimitError):
        tqcodec.decode(data)
    assert not tqcodec.decode(data, limit=48_000_000)["w"].any()


def test_the_command_line_says_which_option_decodes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "zeros.safetensors"
    save_file({"w": np.zeros((3000, 4000), np.float32)}, path)
    assert commands.main(["encode", str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("tqcodec: warning: ")
    assert "--limit 48000000" in err
    assert '"warnings": [\n' in out
    packed = str(tmp_path / "zeros.tqc")
    assert commands.main(["verify", packed]) == 4
    assert commands.main(["verify", packed, "--limit", "48000000"]) == 0
