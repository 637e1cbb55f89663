"""Runs a decoder over the vectors and says where it is wrong. Standard library only.

    python conformance/run.py --decoder "python spec/decoder.py"

The decoder reads one file on standard input. README.md has the protocol and what verdicts mean.
The exit code is 0 if nothing failed, 1 if something did, 2 if there was nothing to run.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DECODED, MALFORMED, UNSUPPORTED, LIMIT = 0, 1, 3, 4  # exit codes
VERDICTS = {DECODED: "accept", MALFORMED: "reject", UNSUPPORTED: "unsupported", LIMIT: "limit"}
OUTCOMES = ("passed", "wrong", "crash", "timeout", "declined")
FAILURES = ("wrong", "crash", "timeout")
SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8}
SIZES |= {"F8_E4M3": 1, "F8_E5M2": 1, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}
TIMED_SIZE = 4096  # bytes of a file for which the time limit is given; larger ones have more
OUTPUT = 1 << 30  # bytes that a decoder may write, where that can be limited

Vector = dict[str, Any]  # one of the manifest


@dataclass(frozen=True)
class Result:
    """What a decoder made of a vector.

    Attributes:
        file: path of the vector.
        outcome: one of `OUTCOMES`.
        message: what is wrong; empty if passed.
        note: what is not wrong, but worth knowing: another rule than the manifest's.
        seconds: time it took.
    """

    file: str
    outcome: str
    message: str = ""
    note: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Tensor:
    """A tensor of an answer; `sha256` of its elements."""

    name: str
    dtype: str
    shape: list[int]
    sha256: str


@dataclass(frozen=True)
class Answer:
    """Tensors in their order, and metadata."""

    tensors: list[Tensor]
    metadata: dict[str, str]


class BadAnswerError(Exception):
    """What a decoder wrote is no safetensors file."""


# ---- answers ----


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise BadAnswerError("a key of the header comes twice")
    return keys


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise BadAnswerError(message)


def read_safetensors(data: bytes) -> Answer:
    """The tensors of a safetensors file, in the order of their bytes."""
    _need(len(data) >= 8, f"{len(data)} bytes are no safetensors file")
    size = int.from_bytes(data[:8], "little")
    _need(size <= len(data) - 8, "the header reaches past the end")
    try:
        header = json.loads(data[8 : 8 + size].decode(), object_pairs_hook=_once)
    except ValueError as error:
        raise BadAnswerError(f"the header is no JSON: {error}") from None
    _need(isinstance(header, dict), "the header is no object")
    metadata = header.pop("__metadata__", {})
    texts = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    _need(texts, "__metadata__ is no map of strings")
    body = data[8 + size :]
    tensors = {name: _tensor(name, entry, body) for name, entry in header.items()}
    # Tensors without elements have no place of their own: they stay as the header has them.
    order = sorted(tensors, key=lambda name: header[name]["data_offsets"])
    position = 0
    for name in order:
        begin, position_after = header[name]["data_offsets"]
        _need(begin == position, f"bytes before {name!r} belong to no tensor, or to two")
        position = position_after
    _need(position == len(body), f"{len(body) - position} bytes behind the last tensor")
    return Answer([tensors[name] for name in order], metadata)


def _tensor(name: str, entry: Any, body: bytes) -> Tensor:
    keys = isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}
    _need(keys, f"{name!r} has other keys than dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    _need(dtype in SIZES, f"{name!r} has the unknown dtype {dtype!r}")
    for numbers in (shape, offsets):
        counts = isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)
        _need(counts, f"{name!r} has no proper shape or data_offsets")
    _need(len(offsets) == 2, f"{name!r} has no proper data_offsets")
    begin, end = offsets
    _need(begin <= end <= len(body), f"{name!r} reaches past the end")
    _need(
        end - begin == math.prod(shape) * SIZES[dtype], f"{name!r} has not the bytes of its shape"
    )
    return Tensor(name, dtype, shape, hashlib.sha256(body[begin:end]).hexdigest())


def read_expected(path: Path) -> Answer:
    """What a vector holds: a safetensors file, or a JSON document of digests."""
    if path.suffix != ".json":
        return read_safetensors(path.read_bytes())
    document = json.loads(path.read_text("utf-8"))
    return Answer([Tensor(**tensor) for tensor in document["tensors"]], document["metadata"])


def difference(found: Answer, expected: Answer) -> str:
    """What an answer has otherwise; nothing if it is right. The order of tensors is free."""
    mine = {tensor.name: tensor for tensor in found.tensors}
    theirs = {tensor.name: tensor for tensor in expected.tensors}
    for name in [*theirs, *mine]:
        if name not in mine or name not in theirs:
            return f"tensor {name!r} is {'missing' if name in theirs else 'too much'}"
        for what in ("dtype", "shape", "sha256"):
            a, b = getattr(mine[name], what), getattr(theirs[name], what)
            if a != b:
                said = "other elements" if what == "sha256" else f"{what} {a}, not {b}"
                return f"tensor {name!r} has {said}"
    return "" if found.metadata == expected.metadata else "metadata differ"


# ---- judgement ----


def judge(vector: Vector, code: int, out: bytes, err: str) -> tuple[str, str, str]:
    """Outcome, message and note for what a decoder did."""
    verdict, stated = VERDICTS.get(code), vector.get("rule")
    last = err.strip().splitlines()[-1:] or [""]
    if verdict is None:
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f"exit code {code}"
        return "crash", f"{name}: {last[0][:200]}", ""
    if verdict != "accept" and out:
        return "crash", f"{len(out)} bytes on standard output, though it refused the file", ""
    rule = re.search(r"\[([a-z]+\.[a-z_0-9]+)\]", err)
    said = f"[{rule.group(1)}]" if rule else "no rule"
    if verdict == "limit":
        return ("passed" if vector.get("limit") else "declined"), f"declined: {last[0][:200]}", ""
    if verdict != vector["verdict"]:
        detail = "" if verdict == "accept" else f" {said}"
        return "wrong", f"{verdict}{detail}, not {vector['verdict']}", ""
    if verdict == "accept":
        try:
            message = _compare(vector, out)
        except BadAnswerError as error:
            message = str(error)
        return ("wrong" if message else "passed"), message, ""
    return "passed", "", "" if said == f"[{stated}]" else f"{said}, manifest has [{stated}]"


def _compare(vector: Vector, out: bytes) -> str:
    if "expected" not in vector:
        return "decoded, but the manifest has nothing to compare with"
    return difference(read_safetensors(out), read_expected(HERE / vector["expected"]))


def run_one(command: Sequence[str], vector: Vector, timeout: float) -> Result:
    """Run a decoder on one vector."""
    timeout *= max(1.0, vector["size"] / TIMED_SIZE)
    path = HERE / vector["file"]
    start = time.monotonic()
    with path.open("rb") as file, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            command, stdin=file, stdout=out, stderr=err, start_new_session=True
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            _kill(process)
            return Result(vector["file"], "timeout", f"no answer in {timeout:.0f} s")
        seconds = time.monotonic() - start
        out.seek(0)
        err.seek(0)
        text = err.read(1 << 16).decode("utf-8", "replace")
        return Result(vector["file"], *judge(vector, code, out.read(), text), round(seconds, 3))


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a decoder and what it has started."""
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def limit_memory(mebibytes: int) -> None:
    """Limit this process, and so the decoders that it starts, where the system can."""
    try:
        import resource
    except ImportError:
        return
    for kind, most in ((resource.RLIMIT_AS, mebibytes << 20), (resource.RLIMIT_FSIZE, OUTPUT)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard < 0 else min(most, hard), hard))


# ---- command ----


def select(vectors: Sequence[Vector], patterns: Sequence[str]) -> list[Vector]:
    """Vectors whose path, with or without its folder, matches a pattern."""

    def fits(path: str) -> bool:
        names = (path, path.split("/")[-1], path.split("/")[-1].removesuffix(".tqc"))
        return any(fnmatch.fnmatchcase(name, p) for name in names for p in patterns)

    return [v for v in vectors if not patterns or fits(v["file"])]


def report(results: Sequence[Result], notes: bool) -> Iterator[str]:
    """One line for each failure, then the counts."""
    for result in results:
        if result.outcome != "passed":
            yield f"{result.outcome:8} {result.file}: {result.message}"
        elif result.note and notes:
            yield f"{'note':8} {result.file}: {result.note}"
    counts = Counter(result.outcome for result in results)
    other = sum(bool(result.note) for result in results)
    text = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES)
    yield f"{len(results)} vectors: {text}; {other} times another rule than the manifest's"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="run a decoder over the conformance vectors")
    parser.add_argument("--decoder", metavar="CMD", help="command that reads a file on stdin")
    parser.add_argument("--filter", metavar="GLOB", action="append", default=[], help="only these")
    parser.add_argument("--list", action="store_true", help="list the vectors, run nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--notes", action="store_true", help="list where another rule is named")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="for 4 KiB")
    parser.add_argument("--memory", type=int, default=4096, metavar="MIB", help="address space")
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    options = parser.parse_args(arguments)
    if not options.decoder and not options.list:
        parser.error("--decoder is missing")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the decoder; print what came out."""
    options = parse(arguments)
    manifest = json.loads((HERE / "manifest.json").read_text("utf-8"))
    vectors = select(manifest["vectors"], options.filter)
    if options.list:
        for vector in vectors:
            sys.stdout.write(f"{vector['file']}: {vector['description']}\n")
        return 0 if vectors else 2
    if not vectors:
        sys.stderr.write("no vector matches\n")
        return 2
    limit_memory(options.memory)
    command = shlex.split(options.decoder)
    with ThreadPoolExecutor(max(1, options.jobs)) as pool:
        try:
            results = list(pool.map(lambda v: run_one(command, v, options.timeout), vectors))
        except OSError as error:
            sys.stderr.write(f"cannot run the decoder: {error}\n")
            return 2
    if options.json:
        counts = Counter(result.outcome for result in results)
        document = {
            "decoder": options.decoder,
            "format": manifest["format"],
            "vectors": len(results),
            **{outcome: counts[outcome] for outcome in OUTCOMES},
            "results": [asdict(result) for result in results],
        }
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in report(results, options.notes))
    return 1 if any(result.outcome in FAILURES for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
