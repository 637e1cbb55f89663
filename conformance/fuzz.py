"""Gives mutated files to several decoders and keeps every file on which they disagree.

    python conformance/fuzz.py --seconds 60

Decoders run in the batch mode of README.md. Seeds are the vectors that decoders accept and the
golden files of tests/; they are small, so that a mutant hardly needs to be made smaller.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

from batch import CrashError, Decoder
from mutants import Parsed, mutants
from run import Answer, BadAnswerError, read_safetensors

from tqcodec.errors import DecodeError
from tqcodec.format import container as package
from tqcodec.format.entries import crc

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
VERDICTS = {0: "decoded", 1: "malformed", 3: "unsupported", 4: "limit"}
LARGEST = 1 << 16  # bytes of a seed; larger files are slow and say nothing more


def decoders() -> list[str]:
    """Commands of the decoders of this project, in their batch mode."""
    python = sys.executable
    return [
        f"{python} {HERE / 'package.py'} --batch",
        f"{python} {ROOT / 'spec' / 'decoder.py'} --batch",
        f"node {ROOT / 'decoders' / 'js' / 'tqcdec.mjs'} --batch",
        f"{ROOT / 'decoders' / 'c' / 'build' / 'tqcdec'} --batch",
    ]


def seeds() -> list[bytes]:
    """Good files."""
    paths = [*HERE.glob("accept/*.tqc"), *ROOT.glob("tests/golden/**/*.tqc")]
    files = [path.read_bytes() for path in sorted(paths)]
    return [data for data in files if len(data) <= LARGEST]


# ---- checks ----


class _Any(int):
    """A number that equals every other."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


def repair(parsed: Parsed) -> None:
    """Put right the check of each tensor that the package decodes.

    Without this a mutated payload would only ever show that all decoders compare checksums.
    """
    found: list[int] = []

    def note(patterns: Any) -> int:
        found.append(crc(patterns))
        return _Any()

    data = parsed.file()
    try:
        file = package.Container(lambda at, count: data[at : at + count], len(data))
        entries = file.directory.entries
    except DecodeError:
        return
    with mock.patch.object(package, "crc", note):
        for place, entry in enumerate(entries):
            if entry.same_as is not None:
                continue
            try:
                file.decode(entry)
            except DecodeError:
                continue
            parsed.tree["tensors"][place]["check"] = found[-1]


# ---- comparison ----


@dataclass
class Outcome:
    """What a decoder made of a file: verdict, the tensors if it decoded, or how it failed."""

    verdict: str
    rule: str = ""
    answer: Answer | None = None

    def __str__(self) -> str:
        if self.answer is None:
            return f"{self.verdict} [{self.rule}]" if self.rule else self.verdict
        return f"decoded {[(t.name, t.dtype, t.shape, t.sha256[:8]) for t in self.answer.tensors]}"


def receive(decoder: Decoder) -> Outcome:
    """A decoder's answer to the file sent last."""
    try:
        reply = decoder.receive()
    except CrashError as error:
        return Outcome(f"crash: {error}")
    if reply.verdict not in VERDICTS or (reply.data and reply.verdict):
        decoder.close()
        return Outcome(f"crash: verdict {reply.verdict} and {len(reply.data)} bytes")
    if reply.verdict:
        return Outcome(VERDICTS[reply.verdict], reply.rule)
    try:
        answer = read_safetensors(reply.data)
    except BadAnswerError as error:
        return Outcome(f"crash: {error}")
    tensors = sorted(answer.tensors, key=lambda tensor: tensor.name)
    return Outcome("decoded", "", Answer(tensors, answer.metadata))


@dataclass
class Tally:
    """Counts of a run, and one line for each file that shows a fault."""

    files: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    rules: int = 0  # files that all call malformed, by different rules
    disagreements: int = 0
    crashes: int = 0
    lines: list[str] = field(default_factory=list)


def compare(data: bytes, running: Sequence[Decoder], tally: Tally) -> list[Outcome]:
    """Ask all decoders about a file and count what they say."""
    for decoder in running:
        decoder.send(data)
    outcomes = [receive(decoder) for decoder in running]
    tally.files += 1
    tally.verdicts[outcomes[0].verdict.partition(":")[0]] += 1
    tally.crashes += sum(outcome.verdict.startswith("crash") for outcome in outcomes)
    first = outcomes[0]
    if any((o.verdict, o.answer) != (first.verdict, first.answer) for o in outcomes):
        tally.disagreements += 1
        return outcomes
    tally.rules += len({outcome.rule for outcome in outcomes}) > 1
    return []


def save(data: bytes, outcomes: Sequence[Outcome], folder: Path, tally: Tally) -> None:
    """Keep a file on which decoders disagree."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(data).hexdigest()[:16]}.tqc"
    path.write_bytes(data)
    tally.lines.append(f"{path}: {' | '.join(map(str, outcomes))}")
    sys.stdout.write(tally.lines[-1] + "\n")
    sys.stdout.flush()


def run(commands: Sequence[str], count: int, seed: int, seconds: float, folder: Path) -> Tally:
    """Compare decoders on mutants until there were enough, or the time is over."""
    running = [Decoder(command) for command in commands]
    tally, end = Tally(), time.monotonic() + seconds
    try:
        for data in islice(mutants(seeds(), random.Random(seed), repair), count):
            if time.monotonic() > end:
                break
            outcomes = compare(data, running, tally)
            if outcomes:
                save(data, outcomes, folder, tally)
    finally:
        for decoder in running:
            decoder.close()
    return tally


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz; the exit code is 1 if there was a disagreement, a crash or a hang."""
    parser = argparse.ArgumentParser(description="compare decoders on mutated files")
    parser.add_argument("--decoder", action="append", metavar="CMD", help="with its --batch")
    parser.add_argument("--count", type=int, default=1_000_000, help="files at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--save", type=Path, default=ROOT / "build" / "fuzz", metavar="FOLDER")
    options = parser.parse_args(arguments)
    commands = options.decoder or decoders()
    tally = run(commands, options.count, options.seed, options.seconds, options.save)
    verdicts = ", ".join(f"{tally.verdicts[name]} {name}" for name in VERDICTS.values())
    sys.stdout.write(
        f"{tally.files} files: {verdicts}; {tally.disagreements} disagreements, "
        f"{tally.crashes} crashes or hangs; {tally.rules} times different rules\n"
    )
    return 1 if tally.disagreements or tally.crashes else 0


if __name__ == "__main__":
    sys.exit(main())
