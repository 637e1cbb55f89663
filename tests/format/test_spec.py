"""Binds spec/tqc.md to the code: rule tags, registries, Python blocks and the worked example."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

import example_file
import numpy as np
import pytest
from document import DOCUMENT, chapter, rows
from numpy.typing import NDArray

import tqcodec
from tqcodec.errors import MalformedError
from tqcodec.format import native, planes, reconstruct, records, registry, stream, tables, trellis
from tqcodec.format import reader as io
from tqcodec.format.dct import DCT_COSINES, dct
from tqcodec.format.dtypes import DTYPES
from tqcodec.format.range_coder import Model, RangeWriter
from tqcodec.format.reader import Reader
from tqcodec.format.tables import Table, Tables

ROOT = Path(__file__).resolve().parents[2]
FORMAT = ROOT / "tqcodec" / "format"
VECTORS = json.loads((ROOT / "tests" / "golden" / "range_coder.json").read_text("utf-8"))
TAG = r"[a-z]+\.[a-z_]+"


def number(text: str) -> int:
    base, _, power = text.partition("^")
    return int(base) ** int(power or 1)


def python_blocks(table_bits: int) -> dict[str, Any]:
    """Names that the Python blocks of the document define."""
    names: dict[str, Any] = {"TABLE_BITS": table_bits, "TABLE_SUM": 1 << table_bits}
    for block in re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.M | re.S):
        exec(compile(block, "spec/tqc.md", "exec"), names)
    return names


SPEC = python_blocks(registry.TABLE_BITS)


# ---- rule tags ----


def tags_of_code() -> set[str]:
    """String literals of the format layer that look like a rule tag."""
    found = set()
    for path in FORMAT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= {node.value} if re.fullmatch(TAG, node.value) else set()
    return found


def test_tags_are_defined_once() -> None:
    defined = re.findall(rf"\*\*\[({TAG})\]\*\*", DOCUMENT)
    assert len(defined) == len(set(defined))
    assert set(defined) == tags_of_code()
    assert set(re.findall(rf"\[({TAG})\]", DOCUMENT)) == set(defined)


def test_tags_in_python_blocks_exist() -> None:
    raised = set(re.findall(rf'ValueError\("({TAG})"\)', DOCUMENT))
    assert raised == {"payload.invalid", "payload.end"}


# ---- registries ----


def test_constants() -> None:
    stated = {name: number(value) for name, value, _ in rows(DOCUMENT, "name")}
    modules = (registry, records, reconstruct, tables, planes)
    for name, value in stated.items():
        known = [vars(module)[name] for module in modules if name in vars(module)]
        assert known, name
        assert set(known) == {value}, name
    in_code = {
        name
        for module in modules
        for name, value in vars(module).items()
        if re.fullmatch(r"MAX_[A-Z_]+|[A-Z_]+_(SUM|BITS|SIZE|MANTISSA)", name)
        and isinstance(value, int)
    }
    assert in_code <= set(stated)


def test_signature_and_header() -> None:
    signature = re.search(r"`signature` MUST be `([0-9A-F ]+)`", DOCUMENT)
    assert signature is not None
    assert bytes.fromhex(signature.group(1)) == registry.SIGNATURE
    sizes = {"bytes(8)": 8, "u8": 1, "u16": 2, "u32": 4}
    table = re.search(r"^    header\( \).*?\n\n", DOCUMENT, re.M | re.S)
    assert table is not None
    fields = [line.split()[-1] for line in table.group().splitlines()[1:] if line.strip()]
    assert sum(sizes[field] for field in fields) == registry.HEADER_SIZE
    assert f"version {tqcodec.FORMAT_VERSION}\n" in DOCUMENT.splitlines(keepends=True)[0]


@pytest.mark.parametrize(
    ("enum", "reserved"),
    [
        (registry.Coding, registry.RESERVED_CODINGS),
        (registry.Quantizer, registry.RESERVED_QUANTIZERS),
        (registry.PayloadKind, {}),
        (registry.Axis, {}),
        (registry.BasisKind, {}),
        (registry.VectorKind, {}),
        (registry.PlaneKind, {}),
    ],
)
def test_enumerations(enum: type[IntEnum], reserved: dict[int, str]) -> None:
    stated = rows(chapter("11"), enum.__name__)
    names = {int(row[0]): row[1] for row in stated if row[1] != "reserved"}
    assert names == {int(member): member.name for member in enum}
    assert {int(row[0]): row[2] for row in stated if row[1] == "reserved"} == reserved


def test_escape_sizes() -> None:
    assert "`escape_size` MUST be 1, 2 or 4 " in DOCUMENT
    assert stream.ESCAPE_SIZES == (1, 2, 4)


def test_element_types() -> None:
    stated = {}
    for name, size, exponent, mantissa, infinities in rows(chapter("4.6"), "dtype"):
        stated[name] = (int(size), int(exponent or 0), int(mantissa or 0), infinities != "no")
    known = {
        d.name: (d.size, d.exponent_bits, d.mantissa_bits, d.infinities) for d in DTYPES.values()
    }
    assert list(stated.items()) == list(known.items())


def test_trellis() -> None:
    stated = [[int(cell) for cell in row] for row in rows(chapter("7.2"), "state")]
    assert stated == [[s, s & 1, *after] for s, after in enumerate(trellis.TRANSITIONS)]
    indices = np.arange(-3, 4, dtype=np.int32)
    for quantizer in (0, 1):
        expected = [2 * k - quantizer * int(np.sign(k)) for k in range(-3, 4)]
        chosen = np.full(7, quantizer, np.uint8)
        assert trellis.coefficients_of(indices, chosen).tolist() == expected


def test_dct() -> None:
    stated = {
        int(length): tuple(map(int, row.split())) for length, row in rows(chapter("10.2"), "N")
    }
    assert stated == DCT_COSINES
    assert max(stated) == registry.MAX_DCT
    for length, cosines in stated.items():
        entries = [[SPEC["dct_entry"](cosines, k, n) for n in range(length)] for k in range(length)]
        assert dct(length).tolist() == entries


@pytest.mark.parametrize(
    "mantissa", [reconstruct.ROW_SCALE_MANTISSA, reconstruct.MULTIPLIER_MANTISSA]
)
def test_expand(mantissa: int) -> None:
    codes = np.arange(256, dtype=np.uint8)
    expected = [SPEC["expand"](int(code), mantissa) for code in codes]
    assert reconstruct.expand(codes, mantissa).tolist() == expected


# ---- range coder ----


def encode(names: dict[str, Any], pairs: list[tuple[list[int], int]]) -> list[int]:
    coder = names["RangeEncoder"]()
    for weights, symbol in pairs:
        coder.encode(sum(weights[:symbol]), weights[symbol])
    return list(coder.finish())


def decode(words: list[int], runs: list[list[int]]) -> tuple[list[int], str | None]:
    """Symbols and the rule that the document's decoder finds broken."""
    try:
        coder = SPEC["RangeDecoder"](words)
        out = [coder.decode(weights) for weights in runs]
        coder.end()
    except ValueError as error:
        return [], str(error)
    return out, None


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["name"]))
def test_vectors(vector: dict[str, Any]) -> None:
    """The small vectors, whose weights have 24 bits."""
    names = python_blocks(24)
    words = [int(word, 16) for word in vector["words_hex"]]
    coder = names["RangeDecoder"](words)
    assert [coder.decode(vector["freqs"]) for _ in vector["symbols"]] == vector["symbols"]
    coder.end()
    assert encode(names, [(vector["freqs"], s) for s in vector["symbols"]]) == words


def streams(count: int) -> Iterator[tuple[Tables, list[int], NDArray[np.int32], list[int]]]:
    """Tables; the table of each symbol; symbols; and the words that constriction writes."""
    rng = np.random.default_rng(20)
    for case in range(count):
        sizes = rng.integers(2, 7, 3)
        parts = []
        for size in sizes:
            cuts = np.sort(rng.choice(np.arange(1, 4096), size - 1, replace=False))
            if case % 3 == 0:  # one weight takes nearly all: carries and words held back
                cuts = np.arange(size - 1) + (1 if case % 2 else 4096 - size + 1)
            parts.append(np.diff(cuts, prepend=0, append=4096))
        known = Tables(Table(0, tuple(map(int, part))) for part in parts)
        length = int(rng.integers(0, 60))
        ids = sorted(int(i) for i in rng.integers(0, 3, length))
        values = np.array([rng.choice(sizes[i], p=parts[i] / 4096) for i in ids], np.int32)
        writer = RangeWriter()
        for i in range(3):
            run = values[np.array(ids, np.int64) == i] if length else values
            if len(run):
                writer.put(run, Model(known[i].weights))
        yield known, ids, values, np.frombuffer(writer.words(), "<u4").tolist()


def read(words: list[int], ids: list[int], known: Tables) -> tuple[list[int], str | None]:
    """What the code makes of a stream of these words."""
    data = io.uv(len(words)) + io.uv(0) + np.array(words, "<u4").tobytes()
    try:
        _, out = stream.read_stream(Reader(data), np.array([ids], np.uint8), known)
    except MalformedError as error:
        return [], error.rule
    return list(map(int, out[0])), None


@pytest.mark.parametrize("loops", ["portable", "native"])
def test_streams_and_damage(loops: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Document and code agree on what a stream holds, and on which streams are canonical."""
    if loops == "native" and not native.AVAILABLE:
        pytest.skip("built without the native loops")
    monkeypatch.setattr(native, "AVAILABLE", loops == "native")
    rng = np.random.default_rng(21)
    accepted = 0
    for known, ids, values, words in streams(150):
        if not ids:
            continue
        runs = [list(known[i].weights) for i in ids]
        assert encode(SPEC, list(zip(runs, map(int, values), strict=True))) == words
        assert decode(words, runs) == read(words, ids, known) == (values.tolist(), None)
        damaged = [words[:-1], [*words, 0], [*words, 1], words[1:], [*words[:-1], words[-1] ^ 1]]
        for _ in range(12):
            bit = int(rng.integers(0, 32 * len(words)))
            flipped = list(words)
            flipped[bit // 32] ^= 1 << bit % 32
            damaged.append(flipped)
        damaged.append([int(w) for w in rng.integers(0, 1 << 32, len(words))])
        for other in damaged:
            mine = decode(other, runs)
            assert mine == read(other, ids, known)
            accepted += mine[1] is None
            if mine[1] is None:  # only what the encoder writes is accepted
                assert encode(SPEC, list(zip(runs, mine[0], strict=True))) == other
    assert accepted < 200  # of 2,700: a flipped bit may give another canonical stream


# ---- worked example ----


def test_example_bytes() -> None:
    text = chapter("13")
    data, table = example_file.build(), rows(text, "offset")
    position = 0
    for offset, hexadecimal, _ in table:
        assert int(offset) == position
        position += len(bytes.fromhex(hexadecimal))
    assert bytes.fromhex(" ".join(row[1] for row in table)) == data
    assert f"This file of {len(data)} bytes" in text


def test_example_values() -> None:
    decoded = tqcodec.decode(example_file.build())
    assert {name: array.tobytes() for name, array in decoded.items()} == example_file.decoded()
    stated = {row[0]: row[1] for row in rows(chapter("13"), "tensor")}
    assert list(stated) == list(decoded)
    for name, array in decoded.items():
        values = [] if stated[name] == "none" else [float(v) for v in stated[name].split()]
        assert values == array.ravel().tolist()


def test_example_walk() -> None:
    """The document's decoder and trellis table reproduce the walk through the payload of `w`."""
    match = re.search(r"Its word ([0-9a-f]{8})\n", chapter("13"))
    assert match is not None
    coder = SPEC["RangeDecoder"]([int(match.group(1), 16)])
    after = [[int(cell) for cell in row[2:]] for row in rows(chapter("7.2"), "state")]
    states = dict.fromkeys([(group, column) for group in (0, 1) for column in (0, 1)], 0)
    weights = [list(table.all_weights) for table in example_file.TABLES]
    steps = example_file.STEPS
    for step, place, state, table, symbol, index, coefficient in rows(chapter("13"), "step"):
        row, column = map(int, place.split(","))
        key = (row // steps, column)
        assert (row % steps, states[key]) == (int(step), int(state))
        assert int(table) == states[key] % 2
        decoded = coder.decode(weights[int(table)])
        assert symbol == ("escape" if decoded == 3 else str(decoded - 1))
        k, quantizer = int(index), states[key] % 2
        assert k == int(example_file.INDICES[row, column])
        assert int(coefficient) == 2 * k - quantizer * int(np.sign(k))
        states[key] = after[states[key]][k % 2]
    coder.end()
