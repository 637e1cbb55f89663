"""Binds conformance/ to the document and to its generator, and runs all decoders over it."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "conformance"
DOCUMENT = (ROOT / "spec" / "tqc.md").read_text("utf-8")
MANIFEST = json.loads((HERE / "manifest.json").read_text("utf-8"))
VECTORS: list[dict[str, Any]] = MANIFEST["vectors"]
PYTHON = sys.executable
C_DECODER = ROOT / "decoders" / "c" / "build" / "tqcdec"


def load(name: str) -> ModuleType:
    """A module of conformance/, which is no package; one of tests/ may have the same name."""
    spec = importlib.util.spec_from_file_location(f"conformance_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


run, batch = load("run"), load("batch")


def program(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of conformance/."""
    command = [PYTHON, str(HERE / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


# ---- what is committed ----


def test_files_are_those_of_the_generator() -> None:
    done = program("generate.py", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def check_schema(value: Any, schema: dict[str, Any], known: dict[str, Any]) -> None:
    """The keywords of JSON Schema that the manifest's schema uses."""
    schema = known[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    understood = {"$schema", "$defs", "title", "description", "type", "required", "properties"}
    understood |= {"additionalProperties", "items", "pattern", "enum", "const", "minLength"}
    assert set(schema) <= understood | {"minimum", "allOf", "if", "then", "else", "not"}
    types = {"object": dict, "array": list, "string": str, "integer": int}
    if "type" in schema:
        assert type(value) is types[schema["type"]], value
    assert "pattern" not in schema or re.search(schema["pattern"], value), value
    assert "enum" not in schema or value in schema["enum"], value
    assert "const" not in schema or value == schema["const"], value
    assert "minLength" not in schema or len(value) >= schema["minLength"]
    assert "minimum" not in schema or value >= schema["minimum"]
    if isinstance(value, dict):
        assert set(schema.get("required", [])) <= set(value), value
        properties = schema.get("properties", {})
        assert schema.get("additionalProperties", True) or set(value) <= set(properties)
        for key, inner in properties.items():
            if key in value:
                check_schema(value[key], inner, known)
    for item in value if "items" in schema else []:
        check_schema(item, schema["items"], known)
    for part in schema.get("allOf", []):
        check_schema(value, part, known)
    if "if" in schema:
        branch = "then" if agrees(value, schema["if"], known) else "else"
        check_schema(value, schema.get(branch, {}), known)
    assert "not" not in schema or not agrees(value, schema["not"], known), value


def agrees(value: Any, schema: dict[str, Any], known: dict[str, Any]) -> bool:
    try:
        check_schema(value, schema, known)
    except AssertionError:
        return False
    return True


def test_manifest_obeys_its_schema() -> None:
    schema = json.loads((HERE / "manifest.schema.json").read_text("utf-8"))
    check_schema(MANIFEST, schema, schema["$defs"])
    for change in ({"verdict": "limit"}, {"rule": "a.b"}, {"sha256": ""}, {"more": 1}):
        wrong = {"format": "0.9", "vectors": [VECTORS[0] | change]}
        assert not agrees(wrong, schema, schema["$defs"]), change


def test_small_and_described() -> None:
    assert len({v["file"] for v in VECTORS}) == len(VECTORS)
    assert len({v["sha256"] for v in VECTORS}) == len(VECTORS), "two vectors are the same file"
    small = [v for v in VECTORS if v["size"] <= 1024]
    assert len(small) > 0.97 * len(VECTORS)
    for vector in VECTORS:
        assert vector["size"] < 60_000, vector["file"]
        assert "\n" not in vector["description"]
        number = vector["section"]
        assert re.search(rf"^#+ {re.escape(number)} ", DOCUMENT, re.M), vector["file"]


# ---- coverage ----

UNSUPPORTED = {"header.version", "header.flags", "directory.features", "directory.dtype"}
UNSUPPORTED |= {"directory.coding", "head.quantizer"}


def test_every_rule_has_a_vector() -> None:
    tags = set(re.findall(r"\*\*\[([a-z]+\.[a-z_]+)\]\*\*", DOCUMENT))
    rejected = {v["rule"] for v in VECTORS if v["verdict"] == "reject"}
    unsupported = {v["rule"] for v in VECTORS if v["verdict"] == "unsupported"}
    assert unsupported == UNSUPPORTED
    assert rejected == tags - UNSUPPORTED - {"limit.decoded"}
    assert any(v["file"].startswith("limit/") for v in VECTORS)
    for vector in VECTORS:
        if vector["verdict"] == "reject":
            assert Path(vector["file"]).stem.partition("@")[0] == vector["rule"]


TYPES = ["bool", "u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"]
FLOATS = ["f8-e4m3", "f8-e5m2", "f16", "bf16", "f32", "f64"]
MANTISSAS = {"f8-e4m3": 3, "f8-e5m2": 2, "f16": 10, "bf16": 7, "f32": 23, "f64": 52}


def wanted() -> Iterator[str]:
    """Names of accepted vectors that there have to be."""
    yield from (f"4.6-raw-{name}" for name in TYPES + FLOATS)
    yield from (f"8.3-planes-{name}" for name in TYPES)
    yield from (f"8.2-special-{name}" for name in FLOATS)
    for kind in ("ties", "subnormal", "largest"):
        yield from (f"4.6-{kind}-{name}" for name in FLOATS[:-1])
    yield from (f"4.6-minus-zero-{name}" for name in FLOATS)
    for name, mantissa in MANTISSAS.items():
        yield from (f"8.3-{name}-kept-{kept}" for kept in (0, 1, mantissa - 1, mantissa))
    yield from (f"7.1-fixed-depth-{depth}" for depth in range(1, 25))
    yield from ("7.1-range-depths", "7.1-fixed-depths", "7.1-all-absent")
    yield from (f"9.2-explicit-{axis}" for axis in ("out", "in", "taps"))
    yield from (f"9.2-explicit-no-rows-{axis}" for axis in ("out", "in", "taps"))
    yield from (f"10.2-dct-{length}" for length in range(1, 17))
    yield from (f"7.2-trellis-{state}-{k}" for state in range(8) for k in ("even", "odd"))
    yield from (f"7.2-steps-{steps}" for steps in (1, 2, 256))
    yield from (f"5.4-escapes-{size}" for size in (1, 2, 4))
    yield from (f"5.1-low-bits-{bits}" for bits in (1, 24))
    yield from ("5.1-one-member", "5.1-size-4095", "5.1-weights-1-4095", "5.1-weights-4095-1")
    yield from ("5.1-low-most", "5.1-low-least", "5.1-tables-128", "5.1-deflated-tables")
    yield from ("5.2-carry", "5.2-fill", "5.2-seal-carry", "5.2-zero", "5.2-seal-carry-zero")
    yield from ("10.1-bound-most", "10.1-bound-trellis", "10.1-work", "10.1-no-negative-zero")
    yield from ("4.2-deflated-directory", "4.3-empty-map", "4.3-no-tensors", "4.3-unknown-keys")
    yield from ("4.3-scalar", "4.3-dimensions-16", "4.3-raw-empty-huge", "4.3-metadata")
    yield from ("4.3-name-nul", "4.3-name-bom", "4.3-name-non-bmp", "4.3-name-path")
    yield from ("4.4-raw-segments", "4.4-two-blocks", "8.1-bundle-types", "8.1-bundle-empty-parts")
    yield from (f"3.3-deflate-{kind}" for kind in ("stored", "fixed", "dynamic", "most-codes"))
    yield from ("9.5-clamped", "7.1-tiles-1x1-range", "7.1-tiles-edges-fixed")


def test_accepted_vectors_cover_the_format() -> None:
    names = {Path(v["file"]).stem for v in VECTORS if v["verdict"] == "accept"}
    assert set(wanted()) <= names
    assert len([v for v in VECTORS if v["file"].startswith("real/")]) == 3


# ---- decoders ----


def c_decoder() -> str:
    if shutil.which("cc") is None or shutil.which("make") is None:
        pytest.skip("no C compiler")
    subprocess.run(["make", "-C", str(ROOT / "decoders" / "c")], check=True, capture_output=True)
    return str(C_DECODER)


def js_decoder() -> str:
    if shutil.which("node") is None:
        pytest.skip("no node")
    return f"node {ROOT / 'decoders' / 'js' / 'tqcdec.mjs'}"


DECODERS: dict[str, Callable[[], str]] = {
    "package": lambda: f"{PYTHON} {HERE / 'package.py'}",
    "reference": lambda: f"{PYTHON} {ROOT / 'spec' / 'decoder.py'}",
    "javascript": js_decoder,
    "c": c_decoder,
}


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_passes_all_vectors(name: str) -> None:
    """In one process, by the batch mode; the command itself has tests of its own."""
    decoder = batch.Decoder(f"{DECODERS[name]()} --batch", seconds=60)
    faults = []
    try:
        for vector in VECTORS:
            reply = decoder.ask((HERE / vector["file"]).read_bytes())
            outcome, message, _ = run.judge(vector, reply.verdict, reply.data, f"[{reply.rule}]")
            if outcome != "passed":
                faults.append(f"{outcome} {vector['file']}: {message}")
    finally:
        decoder.close()
    assert not faults, "\n".join(faults)


MAIN = "import sys, tqcodec.cli as c; sys.exit(c.main())"  # what the command `tqcodec` runs
COMMANDS = DECODERS | {"package": lambda: f"{PYTHON} -c '{MAIN}' decode - -o -"}
SOME = ["accept/4.1-*", "accept/4.3-order-*", "reject/table.sum*", "unsupported/minor-*"]
SOME += ["limit/12.1-33-mib*", "accept/4.3-metadata*"]


@pytest.mark.parametrize("name", COMMANDS)
def test_command_passes_some_vectors(name: str) -> None:
    chosen = [argument for pattern in SOME for argument in ("--filter", pattern)]
    done = program("run.py", "--decoder", COMMANDS[name](), "--json", *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert document["vectors"] == document["passed"] > 10


# ---- the runner itself ----

FAKES = {
    "right": ("import pathlib,sys; o(pathlib.Path(expected).read_bytes())", "passed"),
    "wrong-bytes": ("d = b(); o(d[:-1] + bytes([d[-1] ^ 1]))", "wrong"),
    "wrong-name": ("d = b(); o(d.replace(b'\"t\"', b'\"u\"'))", "wrong"),
    "wrong-shape": ("d = b(); o(d.replace(b'[1]', b'[ ]'))", "wrong"),
    "wrong-type": ("d = b(); o(d.replace(b'U8', b'I8'))", "wrong"),
    "surplus": ("o(b() + bytes(1))", "wrong"),
    "nothing": ("pass", "wrong"),
    "noise": ("o(b'hello, world')", "wrong"),
    "refused": ("sys.stderr.write('malformed: [a.b] no'); sys.exit(1)", "wrong"),
    "unsupported": ("sys.exit(3)", "wrong"),
    "declined": ("sys.exit(4)", "declined"),
    "usage": ("sys.exit(2)", "crash"),
    "internal": ("sys.exit(70)", "crash"),
    "signal": ("import os; os.kill(os.getpid(), 11)", "crash"),
    "refused-with-output": ("o(b()); sys.exit(1)", "crash"),
    "hang": ("import time; time.sleep(60)", "timeout"),
    "memory": ("x = bytes(1 << 33)", "wrong"),
}


@pytest.mark.parametrize("name", FAKES)
def test_runner_judges(name: str, tmp_path: Path) -> None:
    body, outcome = FAKES[name]
    expected = HERE / "accept" / "4.1-one-byte.safetensors"
    fake = tmp_path / "fake.py"
    start = f"import sys\nexpected = {str(expected)!r}\no = sys.stdout.buffer.write\n"
    start += "b = lambda: open(expected, 'rb').read()\nsys.stdin.buffer.read()\n"
    fake.write_text(start + body)
    options = ["--timeout", "2"] if name == "hang" else []
    command = f"{PYTHON} {fake}"
    done = program("run.py", "--decoder", command, "--filter", "4.1-one-byte", "--json", *options)
    (result,) = json.loads(done.stdout)["results"]
    assert result["outcome"] == outcome, result
    assert done.returncode == (outcome in ("wrong", "crash", "timeout"))


def test_runner_accepts_that_a_vector_of_limits_is_declined() -> None:
    vector = {"file": "limit/x", "verdict": "accept", "limit": True}
    assert run.judge(vector, 4, b"", "limit: [limit.decoded]")[0] == "passed"
    assert run.judge(vector, 1, b"", "malformed: [a.b]")[0] == "wrong"
    assert run.judge(vector | {"verdict": "reject"}, 1, b"", "malformed: [a.b]")[0] == "passed"


def test_runner_notes_another_rule() -> None:
    vector = {"file": "reject/a.b", "verdict": "reject", "rule": "a.b"}
    assert run.judge(vector, 1, b"", "malformed: [a.b] x") == ("passed", "", "")
    outcome, _, note = run.judge(vector, 1, b"", "malformed: [a.c] x")
    assert outcome == "passed"
    assert "[a.c]" in note
    assert run.judge(vector, 0, b"", "")[0] == "wrong"


def test_runner_command_line() -> None:
    assert program("run.py", "--decoder", "true", "--filter", "no-such").returncode == 2
    assert program("run.py").returncode == 2
    assert program("run.py", "--decoder", "/no/such/command").returncode == 2
    listed = program("run.py", "--list", "--filter", "reject/table.*").stdout.splitlines()
    assert len(listed) > 10
    assert all(line.startswith("reject/table.") for line in listed)


# ---- fuzzing ----


def test_fuzz_finds_no_disagreement(tmp_path: Path) -> None:
    """All decoders that can run here, for a moment; docs/reliability.md has the long run."""
    chosen: list[str] = []
    for command in DECODERS.values():
        with suppress(pytest.skip.Exception):
            chosen += ["--decoder", f"{command()} --batch"]
    options = ["--count", "800", "--seed", "2", "--seconds", "600", "--save", str(tmp_path)]
    done = program("fuzz.py", *chosen, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("800 files")


def test_fuzz_sees_crashes_and_disagreements(tmp_path: Path) -> None:
    fakes = {"crash": "sys.exit(9)", "refuse": "o(bytes([1, 0, 0, 0, 0, 0]))"}
    for name, body in fakes.items():
        fake = tmp_path / f"{name}.py"
        lines = ["import sys", "o, i = sys.stdout.buffer.write, sys.stdin.buffer.read"]
        lines += ["while h := i(4):", " i(int.from_bytes(h, 'little'))", f" {body}"]
        fake.write_text("\n".join([*lines, " sys.stdout.flush()\n"]))
        options = ["--decoder", f"{DECODERS['package']()} --batch", "--decoder", f"{PYTHON} {fake}"]
        options += ["--count", "15", "--save", str(tmp_path / name)]
        done = program("fuzz.py", *options)
        assert done.returncode == 1
        assert list((tmp_path / name).glob("*.tqc"))
        assert (" 0 crashes" in done.stdout) == (name == "refuse")
