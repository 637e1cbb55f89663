"""Encodes networks at many settings and shows that every file decodes, to what it should.

    python -m benchmarks.decodes resnet20.safetensors resnet32.safetensors \
        efficientnet_lite0=efficientnet-lite0-57934424.pth minilm=model.safetensors

Networks made from the seed (`networks.py`) are added. What is drawn depends on the seed, the
name of the network and the number of the draw alone. Each draw that is done is a line of the log; a
run that is started again goes on behind them, unless the package or this benchmark has changed. The
exit code is 1 if a draw failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import tqcodec
from benchmarks.common.command import command_parser
from benchmarks.common.long_run import Line, append, fingerprint, read_log
from benchmarks.common.tables import print_aligned
from benchmarks.decodes import checks
from benchmarks.decodes import networks as made
from tqcodec import EncodeError, Settings, Statistics
from tqcodec.cli import checkpoints, describe
from tqcodec.cli.terminal import terminal_progress
from tqcodec.format.native_decoder import available

Tensors = dict[str, Any]

SMALL, SMALL_DRAWS, DRAWS = 10**6, 120, 40  # networks of fewer weights are drawn more often
LARGE = 30 * 10**6  # weights; of larger networks most draws take a part
WHOLE_EFFORT = 6  # the most for the whole of a large network
SLOW = 5 * 10**6  # elements of a network up to which the slow decoders are asked
UNREACHABLE = ("bits: ", "max_size: ")  # refusals of a target; any other one is a failure

# Each draw takes a card of each deck; a deck is shuffled anew when it has run out.
DECKS: dict[str, Sequence[Any]] = {
    "effort": (1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5, 5, 5, 6, 6, 7, 7, 8, 9, 9),
    "target": ("bits",) * 14 + ("quality", "quality", "snr", "max_size", "default", "lossless"),
    "rate": (8.0, 6.0, 5.0, 4.0, 3.5, 3.0, 2.5, 2.0, 1.5) + (None,) * 6,  # None: any between
    "transform": ("auto",) * 9 + ("none", "dct", "klt", "elt"),
    "payload": ("range",) * 5 + ("fixed",),
    "side_bits": (7,) * 7 + (3, 12, None),
    "calibrated": (False, True),
    "part": (None,) + (20 * 10**6,) * 2 + (8 * 10**6,) * 3 + (10**6,) * 4,  # weights at most
}


# ---- draws ----


@dataclass(frozen=True)
class Draw:
    """What is to be encoded, and how.

    Attributes:
        tensors: the network or a part of it.
        options: of `Settings`, but for the metadata.
        statistics: None without data.
    """

    tensors: Tensors
    options: dict[str, Any]
    statistics: Statistics | None


def draw(name: str, network: Tensors, seed: int, number: int) -> Draw:
    """A draw of a network; the same one for the same name, seed and number."""
    key = (seed, zlib.crc32(name.encode()))
    cards = {what: _dealt(DECKS[what], number, *key, i) for i, what in enumerate(DECKS)}
    rng = np.random.default_rng([*key, len(DECKS), number])
    effort, tensors = cards["effort"], network
    if _count(matrices(network)) > LARGE:
        if cards["part"] is None:
            effort = min(effort, WHOLE_EFFORT)
        else:
            tensors = _part(network, cards["part"], rng)
    rate = cards["rate"] or round(float(np.exp2(rng.uniform(np.log2(1.5), 3))), 2)
    options = {what: cards[what] for what in ("transform", "payload", "side_bits")}
    options |= {"effort": effort} | _target(cards["target"], rate, tensors, rng)
    weights = matrices(tensors)
    statistics = made.statistics(rng, weights, tensors) if cards["calibrated"] else None
    return Draw(tensors, options, statistics)


def matrices(tensors: Tensors) -> Tensors:
    """The tensors whose elements count as weights."""
    return {
        name: array
        for name, array in tensors.items()
        if array.ndim >= 2 and array.size >= 64 and array.dtype.kind not in "biu"
    }


def _count(tensors: Tensors) -> int:
    return sum(array.size for array in tensors.values())


def _dealt(deck: Sequence[Any], number: int, *key: int) -> Any:
    turn, place = divmod(number, len(deck))
    return deck[np.random.default_rng([*key, turn]).permutation(len(deck))[place]]


def _part(network: Tensors, most: int, rng: np.random.Generator) -> Tensors:
    """Some matrices of at most so many weights, and all other tensors."""
    weights = matrices(network)
    taken, left = set(network) - set(weights), most
    for name in rng.permutation(list(weights)).tolist():
        if weights[name].size <= left:
            taken.add(name)
            left -= weights[name].size
    return {name: array for name, array in network.items() if name in taken}


def _target(target: str, rate: float, tensors: Tensors, rng: np.random.Generator) -> dict[str, Any]:
    """Options of `Settings` for a target; `rate` in bits for each weight."""
    options: dict[str, dict[str, Any]] = {
        "bits": {"bits": rate},
        "quality": {"quality": round(rng.uniform(5, 95), 1)},
        "snr": {"snr": round(rng.uniform(3, 45), 1)},
        "max_size": {"max_size": int(rate * _count(matrices(tensors)) / 8) + (1 << 13)},
        "default": {},
        "lossless": {"lossless": True},
    }
    return options[target]


# ---- one file ----


def run(one: Draw, decoders: checks.Decoders, keep: Path | None) -> Line:
    """Encode and check; what the log says of the outcome.

    Args:
        one: the draw.
        decoders: of `checks.running`.
        keep: where the file goes if it fails, or None.
    """
    settings = Settings(**one.options, metadata=(("origin", "decodes"),))
    line: Line = {"tensors": len(one.tensors), "elements": _count(one.tensors)}
    data, start, busy = b"", time.perf_counter(), time.process_time()
    try:
        data = tqcodec.encode(one.tensors, settings, one.statistics)
        line |= {"outcome": "good", "bytes": len(data)}
        line["encode_cpu_s"] = round(time.process_time() - busy, 2)
        line |= _checked(data, one, settings, decoders)
    except EncodeError as error:
        missed = str(error).startswith(UNREACHABLE)
        line |= {"message": str(error)}
        line |= {"outcome": "refused"} if missed else {"outcome": "failed", "rule": "EncodeError"}
    except checks.FaultError as error:
        line |= {"outcome": "failed", "rule": error.rule, "message": error.message}
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}: {error}"
        line |= {"outcome": "failed", "rule": type(error).__name__, "message": where}
    line["seconds"] = round(time.perf_counter() - start, 2)
    if keep is not None and line["outcome"] == "failed":
        keep.write_bytes(data)
    return line


def _checked(data: bytes, one: Draw, settings: Settings, decoders: checks.Decoders) -> Line:
    arrays, entries, metadata = checks.decoded(data)
    if metadata != dict(settings.metadata):
        raise checks.FaultError("metadata", f"{metadata}")
    known = one.statistics.values() if one.statistics is not None else ()
    corrected = {name for s in known for name in (s.shift, s.gain) if name is not None}
    checks.check_source(arrays, entries, one.tensors, settings, corrected)
    expected, asked = checks.answer_of(arrays, entries, metadata), []
    for name, decoder in decoders.items():
        if name == "Python" or _count(one.tensors) <= SLOW:
            checks.check_agreement(data, expected, name, decoder)
            asked.append(name)
    with tqcodec.open(data) as file:
        bits = describe.summary(file.container)["bits_per_weight"]
    return {"bits_per_weight": bits, "decoders": asked}


# ---- table ----


def table(lines: Sequence[Line]) -> list[list[str]]:
    """One row for each network, and their sum."""
    heads = ["network", "draws", "failed", "refused", "whole", "lossless", "calibrated"]
    rows = [[*heads, "by reference", "bits per weight", "efforts", "rules"]]
    networks = list(dict.fromkeys(line["network"] for line in lines))
    for name in [*networks, "all"]:
        mine = [line for line in lines if name in (line["network"], "all")]
        rates = [line["bits_per_weight"] for line in mine if line.get("bits_per_weight")]
        efforts = sorted({line["options"]["effort"] for line in mine})
        counts = [
            sum(line["outcome"] == "failed" for line in mine),
            sum(line["outcome"] == "refused" for line in mine),
            sum(line["whole"] for line in mine),
            sum(line["options"].get("lossless", False) for line in mine),
            sum(line["calibrated"] for line in mine),
            sum("reference" in line.get("decoders", ()) for line in mine),
        ]
        rules = Counter(line["rule"] for line in mine if "rule" in line)
        rows.append(
            [
                *map(str, [name, len(mine), *counts]),
                f"{min(rates):.2f} to {max(rates):.2f}" if rates else "",
                ",".join(map(str, efforts)),
                ", ".join(f"{count} {rule}" for rule, count in rules.most_common()),
            ]
        )
    return rows


# ---- command ----


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw what the log lacks, print failures as they come and the table at the end."""
    options = _parsed(arguments)
    if options.only is not None:
        return repeat(options)
    package = fingerprint(Path(__file__).parent)
    about = {"package": package, "seed": options.seed}
    built = "in C" if available() else "in Python: that in C is not built"
    said = ", ".join(f"{key} {value}" for key, value in about.items())
    print(f"{said}, decoder {built}, log {options.log}")
    logged = [line for line in read_log(options.log) if about.items() <= line.items()]
    if options.again:
        logged = [line for line in logged if line["outcome"] != "failed"]
    done = {(line["network"], line["draw"]): line for line in logged}
    lines: list[Line] = []
    with checks.running() as decoders, terminal_progress() as show:
        for name, load in options.networks.items():
            network = load()
            numbers = range(options.count or _draws(network))
            known = sum((name, number) in done for number in numbers)
            print(f"{name}: {len(numbers)} draws, {known} in the log", flush=True)
            for number in numbers:
                line = done.get((name, number))
                if line is None:
                    line = about | _line(name, network, number, options, decoders)
                    append(options.log, line)
                if line["outcome"] == "failed":
                    print(json.dumps(line), flush=True)
                lines.append(line)
                if show is not None:
                    show(name, number + 1, len(numbers))
    print_aligned(table(lines))
    return int(any(line["outcome"] == "failed" for line in lines))


def repeat(options: argparse.Namespace) -> int:
    """Do one draw again and print its line; the log stays as it is."""
    name, number = options.only
    with checks.running() as decoders:
        line = _line(name, options.networks[name](), number, options, decoders)
    print(json.dumps(line, indent=1))
    return int(line["outcome"] == "failed")


def _line(
    name: str,
    network: Tensors,
    number: int,
    options: argparse.Namespace,
    decoders: checks.Decoders,
) -> Line:
    one = draw(name, network, options.seed, number)
    line: Line = {"network": name, "draw": number, "options": one.options}
    line |= {"calibrated": one.statistics is not None, "whole": len(one.tensors) == len(network)}
    keep = options.keep and options.keep / f"{name}-{number}.tqc"
    return line | run(one, decoders, keep)


def _draws(network: Tensors) -> int:
    return SMALL_DRAWS if _count(matrices(network)) < SMALL else DRAWS


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("decodes", __doc__)
    parser.add_argument("files", nargs="*", type=_named, metavar="[NAME=]FILE", help="networks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, metavar="N", help="draws of each network")
    parser.add_argument("--log", type=Path, default=Path("decodes.jsonl"), metavar="FILE")
    parser.add_argument("--made", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--only", type=_numbered, metavar="NETWORK:DRAW", help="not logged")
    parser.add_argument("--again", action="store_true", help="draw anew what failed in the log")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for files that fail")
    options = parser.parse_args(arguments)
    options.networks = {name: partial(_read, path) for name, path in options.files}
    if len(options.networks) < len(options.files):
        parser.error("two networks have one name: call them NAME=FILE")
    if options.made:
        options.networks |= {name: partial(_made, name, options.seed) for name in made.NETWORKS}
    if options.only is not None and options.only[0] not in options.networks:
        parser.error(f"there is no network {options.only[0]!r}")
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    return options


def _named(text: str) -> tuple[str, str]:
    name, separator, path = text.partition("=")
    return (name, path) if separator else (Path(text).stem, text)


def _numbered(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition(":")
    return name, int(number)


def _read(path: str) -> Tensors:
    return checkpoints.read(path).tensors


def _made(name: str, seed: int) -> Tensors:
    return made.NETWORKS[name](np.random.default_rng([seed, zlib.crc32(name.encode())]))


if __name__ == "__main__":
    sys.exit(main())
