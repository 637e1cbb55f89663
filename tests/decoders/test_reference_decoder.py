"""Binds spec/decoder.py to the document, which it quotes, and to the package, a stranger to it."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import damage
import example_file
import ml_dtypes
import msgpack
import numpy as np
import pytest

import tqcodec
from tqcodec import DecodeError, Settings

SPEC = Path(__file__).resolve().parents[2] / "spec"
DOCUMENT = (SPEC / "tqc.md").read_text("utf-8")
SOURCE = (SPEC / "decoder.py").read_text("utf-8")
TAG = r"[a-z]+\.[a-z_]+"
VERDICTS = {"MalformedError": 1, "UnsupportedError": 3, "LimitError": 4}


def load() -> ModuleType:
    """The module spec/decoder.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("tqc_decoder", SPEC / "decoder.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


decoder = load()


# ---- the source ----


def test_it_imports_the_standard_library_only() -> None:
    names = set()
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_each_rule_of_the_document_is_a_rule_of_the_decoder() -> None:
    found = {
        node.value
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(TAG, node.value)
    }
    assert found == set(re.findall(rf"\[({TAG})\]", DOCUMENT))


def quotations() -> Iterator[tuple[str, str]]:
    """(section, text) of each quotation, which ends in ` -- ` and the number of its section."""
    lines: list[str] = []
    for line in SOURCE.splitlines():
        if match := re.fullmatch(r" *# > (.*)", line):
            lines.append(match.group(1))
            if end := re.search(r" -- (\d+(\.\d+)?)$", " ".join(lines)):
                yield end.group(1), " ".join(lines)[: -len(end.group())]
                lines = []
        else:
            assert not lines, f"a quotation without section: {lines}"


def section(number: str) -> str:
    """The text of a section, or of a chapter without its sections."""
    hashes = "#" * (2 + number.count("."))
    match = re.search(rf"^{hashes} {re.escape(number)} .*?(?=^###? |\Z)", DOCUMENT, re.M | re.S)
    assert match is not None, number
    return match.group()


def plain(text: str) -> str:
    """Text without the marks of lists, in single spaces."""
    return " ".join(re.sub(r"^(- |\d\. )", "", text, flags=re.M).split())


def test_quotations_are_in_the_document() -> None:
    found = list(quotations())
    assert len(found) > 80
    missing = [pair for pair in found if plain(pair[1]) not in plain(section(pair[0]))]
    assert not missing


def test_constants_are_those_of_the_document() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\d+)(?:\^(\d+))? \|", section("11.1"), re.M)
    assert len(rows) > 40
    for name, base, power in rows:
        assert getattr(decoder, name) == int(base) ** int(power or 1), name


def test_cosines_are_those_of_the_document() -> None:
    rows = re.findall(r"^\| (\d+) \| (1024[ \d]*) \|$", DOCUMENT, re.M)
    assert [int(length) for length, _ in rows] == list(range(1, 17))
    assert [tuple(map(int, row.split())) for _, row in rows] == list(decoder.COSINES)


# ---- decoded files ----


def check(data: bytes) -> None:
    """Both decoders give the same verdict and the same tensors."""
    try:
        expected = tqcodec.decode(data)
    except DecodeError as error:
        with pytest.raises(decoder.DecodeError) as caught:
            decoder.decode(data)
        assert caught.value.code == VERDICTS[type(error).__name__], (caught.value, error)
        return
    tensors = decoder.decode(data)
    assert list(tensors) == list(expected)
    for name, (dtype, shape, elements) in tensors.items():
        assert shape == expected[name].shape
        assert elements == expected[name].tobytes(), name
        assert len(elements) == math.prod(shape) * decoder.ELEMENT_TYPES[dtype].size


def test_the_worked_example() -> None:
    tensors = decoder.decode(example_file.build())
    assert {name: elements for name, (_, _, elements) in tensors.items()} == example_file.decoded()
    assert tensors["e"][:2] == ("I64", (0, 2))


@pytest.mark.parametrize("name", damage.golden_files())
def test_golden_files(name: str) -> None:
    check(damage.golden_files()[name])


def arrays() -> dict[str, Any]:
    """Small arrays of all element types."""
    rng = np.random.default_rng(1)
    smooth = np.outer([1, 2, 3, 2, 1], [1, 2, 3, 2, 1])
    out: dict[str, Any] = {
        "conv": rng.normal(size=(12, 6, 5, 5)) * smooth,
        "linear": rng.normal(size=(9, 40)) * 2.0 ** rng.integers(-4, 4, 40),
        "bias": rng.normal(size=30),
        "scalar": np.array(0.5),
        "empty": np.zeros((0, 3)),
    }
    out = {name: array.astype("<f4") for name, array in out.items()}
    for kind in ("<f2", "<f8", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
        matrix = rng.normal(size=(16, 24)).astype(kind)
        out |= {f"matrix {matrix.dtype}": matrix, f"vector {matrix.dtype}": matrix[0]}
    for kind in ("?", "u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8"):
        out[f"integers {kind}"] = rng.integers(0, 100, (3, 7)).astype(kind)
    return out | {"tied": out["linear"], "snr": np.array([np.nan, -np.inf, -0.0], "<f4")}


SETTINGS = [
    Settings(lossless=True),
    Settings(bits=6, payload="range"),
    Settings(bits=7, payload="fixed", side_bits=None),
    Settings(quality=40, transform="dct", metadata=(("origin", "a test"),)),
    Settings(snr=30, transform="klt", effort=8),
    Settings(quality=90, transform="none", effort=1),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=range(len(SETTINGS)))
def test_encoded_files(settings: Settings) -> None:
    check(tqcodec.encode(arrays(), settings))


# ---- rounding ----


def value_of(pattern: int, e: int, m: int) -> Fraction:
    """The value of a positive finite number by the formulas of section 4.6."""
    bias, x, y = 2 ** (e - 1) - 1, pattern >> m, pattern % 2**m
    if x > 0:
        return (2**m + y) * Fraction(2) ** (x - bias - m)
    return y * Fraction(2) ** (1 - bias - m)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F16", "BF16"])
def test_rounding_of_every_number_and_midpoint(dtype: str) -> None:
    kind = decoder.ELEMENT_TYPES[dtype]
    e, m = kind.exponent, kind.mantissa
    special = (2**e - 1) * 2**m if kind.infinities else 2 ** (e + m) - 1
    step = max(1, special // 2000) | 1
    for pattern in range(0, special, step):
        value, above = value_of(pattern, e, m), value_of(pattern + 1, e, m)
        middle = (value + above) / 2
        assert decoder.rounded(float(value), kind) == pattern
        assert decoder.rounded(-float(value), kind) == pattern + 2 ** (e + m)
        even = min(pattern + pattern % 2, special - 1)
        assert decoder.rounded(float(middle), kind) == even
        assert decoder.rounded(math.nextafter(float(middle), 0.0), kind) == pattern
        nearer = min(pattern + 1, special - 1)
        assert decoder.rounded(math.nextafter(float(middle), math.inf), kind) == nearer
    assert decoder.rounded(1e300, kind) == special - 1
    assert decoder.rounded(1e-300, kind) == 0


@pytest.mark.parametrize(("dtype", "form"), [("F16", "<e"), ("F32", "<f"), ("F64", "<d")])
def test_rounding_is_that_of_ieee_754(dtype: str, form: str) -> None:
    kind, rng = decoder.ELEMENT_TYPES[dtype], np.random.default_rng(2)
    largest = {"F16": 15, "F32": 127, "F64": 900}[dtype]
    for number in rng.normal(size=2000) * 2.0 ** rng.integers(-largest - 30, largest - 3, 2000):
        pattern = decoder.rounded(float(number), kind)
        assert pattern.to_bytes(kind.size, "little") == struct.pack(form, number)


# ---- verdicts ----


def build(entries: list[Any], *bodies: bytes, **keys: Any) -> bytes:
    tree = {"tensors": entries} | keys
    return damage.assemble(msgpack.packb({key: tree[key] for key in sorted(tree)}), list(bodies))


DATA = bytes(24)


def entry(**changes: Any) -> dict[str, Any]:
    """The entry of a raw tensor of the bytes DATA."""
    number = zlib.crc32(DATA)
    fields = {"check": number, "coding": 0, "dtype": "F32", "name": "a"}
    fields |= {"segments": [[len(DATA), number]], "shape": [6]}
    fields |= changes
    return {key: fields[key] for key in sorted(fields)}


def version(data: bytes, minor: int) -> bytes:
    """The file with another minor version and a right header_crc."""
    first = data[:9] + bytes([minor]) + data[10:24]
    return first + zlib.crc32(first).to_bytes(4, "little") + data[28:]


VERDICT_CASES = {
    "good": (build([entry()], DATA), 0, ""),
    "version": (version(build([entry()], DATA), 77), 3, "header.version"),
    "version hides all": (version(build([3]), 77)[:28], 3, "header.version"),
    "version does not hide header.crc": (version(DATA * 2, 77), 1, "header.signature"),
    "features": (build([entry()], DATA, features=["x"]), 3, "directory.features"),
    "features hide entries": (build([3], features=["x"]), 3, "directory.features"),
    "features not of their type": (build([], features=["x", 1]), 1, "directory.type"),
    "dtype": (build([entry(dtype="F4")], DATA), 3, "directory.dtype"),
    "dtype hides raw.length": (build([entry(dtype="F4", shape=[9])], DATA), 3, "directory.dtype"),
    "dtype is no limit": (build([entry(dtype="F4", shape=[2**40])], DATA), 3, "directory.dtype"),
    "coding hides bundle": (
        build([entry(bundle=0, coding=9)], DATA, DATA, bundles=[[24, zlib.crc32(DATA)]]),
        3,
        "directory.coding",
    ),
    "coding is a limit": (build([entry(coding=9, shape=[2**40])], DATA), 4, "limit.decoded"),
    "dtype does not hide segment.crc": (
        build([entry(dtype="F4", segments=[[24, 0]])], DATA),
        1,
        "segment.crc",
    ),
    "dtype does not hide its range": (
        build([entry(dtype="F4", snr=2**21)], DATA),
        1,
        "directory.range",
    ),
    "dtype does not hide others": (
        build([entry(dtype="F4"), entry(check=0, name="b")], DATA, DATA),
        1,
        "tensor.check",
    ),
    "quantizer does not hide others": (
        build(
            [
                entry(coding=2, segments=[[4, zlib.crc32(b"\0\1\0\x09")]]),
                entry(check=0, name="b"),
            ],
            b"\0\1\0\x09",
            DATA,
        ),
        1,
        "tensor.check",
    ),
    "quantizer": (
        build([entry(coding=2, segments=[[4, zlib.crc32(b"\0\1\0\x09")]])], b"\0\1\0\x09"),
        3,
        "head.quantizer",
    ),
    "quantizer does not hide the scale": (
        build([entry(coding=2, segments=[[4, zlib.crc32(b"\0\0\0\x09")]])], b"\0\0\0\x09"),
        1,
        "head.scale",
    ),
    "quantizer does not hide segments": (
        build([entry(coding=2, segments=[])]),
        1,
        "tensor.segments",
    ),
    "tied": (build([entry(dtype="F4"), {"name": "b", "same_as": 0}], DATA), 3, "directory.dtype"),
    "tied to tied": (
        build([entry(), {"name": "b", "same_as": 0}, {"name": "c", "same_as": 1}], DATA),
        1,
        "directory.same_as",
    ),
    "limit": (build([entry(shape=[2**48])], DATA), 4, "limit.decoded"),
    "limit with ties": (
        build(
            [entry(shape=[2**22]), {"name": "b", "same_as": 0}, {"name": "c", "same_as": 0}], DATA
        ),
        4,
        "limit.decoded",
    ),
    "directory before limit": (
        build([entry(shape=[2**48]), entry()], DATA, DATA),
        1,
        "directory.name",
    ),
    "length before limit": (build([entry(shape=[2**40])], DATA, b"x"), 1, "container.length"),
    "limit before raw.length": (build([entry(shape=[2**40])], DATA), 4, "limit.decoded"),
    "limit before segments": (
        build([entry(segments=[[24, 0]], shape=[2**40])], DATA),
        4,
        "limit.decoded",
    ),
}


@pytest.mark.parametrize("case", VERDICT_CASES)
def test_verdicts(case: str) -> None:
    data, code, rule = VERDICT_CASES[case]
    if code == 0:
        assert decoder.decode(data) == {"a": ("F32", (6,), DATA)}
    else:
        with pytest.raises(decoder.DecodeError) as caught:
            decoder.decode(data)
        assert (caught.value.code, caught.value.rule) == (code, rule)
    check(data)


def test_a_limit_of_the_caller() -> None:
    data = build([entry()], DATA)
    assert decoder.decode(data, limit=24)
    with pytest.raises(decoder.Limit):
        decoder.decode(data, limit=23)


def test_numbers_that_cost_no_bits_are_cheap() -> None:
    """2^18 elements from 24 bytes: constant vectors, all columns absent, zeros for weights."""
    n = 2**18
    head = bytes([0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
    table = bytes([1, 0, 0, 0, 1, 0x80, 0x20])  # one member
    keys = {"coding": 2, "dtype": "F8_E4M3", "shape": [n], "check": zlib.crc32(bytes(n))}
    segments = [[len(head), zlib.crc32(head)]]
    tables = [len(table), zlib.crc32(table), 0]
    data = build([entry(**keys, segments=segments)], table, head, tables=tables)
    events = 0

    def count(*_: object) -> None:
        nonlocal events
        events += 1

    sys.setprofile(count)
    try:
        found = decoder.decode(data)
    finally:
        sys.setprofile(None)
    assert found["a"][2] == bytes(n)
    assert events < 32 * n  # calls and returns: 22 for each number


def test_mutants_end_in_the_verdict_of_the_package() -> None:
    for data in damage.mutants([*damage.golden_files().values(), example_file.build()], 1000, 3):
        check(data)


def test_every_prefix_and_every_damaged_byte_is_malformed() -> None:
    data = example_file.build()
    for n in range(len(data)):
        for damaged in (data[:n], data[:n] + bytes([data[n] ^ 16]) + data[n + 1 :]):
            with pytest.raises(decoder.Malformed):
                decoder.decode(damaged)


# ---- the command ----


def run(data: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, str(SPEC / "decoder.py"), *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=False)


def read_safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def test_command_writes_safetensors() -> None:
    data = tqcodec.encode({"é": np.eye(3), "b": np.arange(4)}, Settings(metadata=(("k", "v"),)))
    result = run(data)
    assert (result.returncode, result.stderr) == (0, b"")
    header, body = read_safetensors(result.stdout)
    assert header["__metadata__"] == {"k": "v"}
    assert header["é"] == {"dtype": "F64", "shape": [3, 3], "data_offsets": [0, 72]}
    assert header["b"] == {"dtype": "I64", "shape": [4], "data_offsets": [72, 104]}
    assert body == np.eye(3).tobytes() + np.arange(4).tobytes()


@pytest.mark.parametrize("case", ["quantizer", "limit", "tied to tied"])
def test_command_reports_a_verdict_in_one_line(case: str) -> None:
    data, code, rule = VERDICT_CASES[case]
    result = run(data)
    assert (result.returncode, result.stdout) == (code, b"")
    verdict = {1: "malformed", 3: "unsupported", 4: "limit"}[code]
    assert re.fullmatch(rf"{verdict}: \[{rule}\].*: .*\n", result.stderr.decode())


def test_command_refuses_other_arguments() -> None:
    assert run(b"", "--verbose").returncode == 2


def test_batch() -> None:
    cases = list(VERDICT_CASES.values())
    frames = b"".join(struct.pack("<I", len(data)) + data for data, _, _ in cases)
    result = run(frames, "--batch")
    assert (result.returncode, result.stderr) == (0, b"")
    rest = result.stdout
    for _, code, rule in cases:
        assert (rest[0], rest[2 : 2 + rest[1]].decode()) == (code, rule)
        rest = rest[2 + rest[1] :]
        size = int.from_bytes(rest[:4], "little")
        assert (size > 0) == (code == 0)
        if code == 0:
            header, body = read_safetensors(rest[4 : 4 + size])
            assert header["a"]["shape"] == [6] and body == DATA
        rest = rest[4 + size :]
    assert rest == b""


def test_batch_that_ends_within_a_frame() -> None:
    assert run(b"\5\0\0\0abc", "--batch").returncode == 2


def test_an_internal_error_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(decoder, "run_once", fail)
    assert decoder.main([]) == 70
