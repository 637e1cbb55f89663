"""The parser of the command line. Imports nothing heavy, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
import math
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Final, NoReturn

from tqcodec import native
from tqcodec.common.checks import DOMAINS
from tqcodec.encoder.settings import (
    DECIBELS_PER_QUALITY,
    DEFAULT_QUALITY,
    PAYLOADS,
    RANGES,
    RULE_FORMS,
    TRANSFORMS,
    Settings,
)
from tqcodec.format.registry import MAJOR, MINOR
from tqcodec.reading.remote.options import Remote
from tqcodec.version import VERSION

SYNTHETIC, NO_DATA = "synthetic", "none"  # what `encode --data` takes besides names
PICTURES = "size", "mean", "std"  # what made-up pictures need to be known of
MOST_SEED = (1 << 32) - 1
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


class UsageError(Exception):
    """The command line asks for something that is not on offer."""


class _Parser(ArgumentParser):
    """A parser whose complaint is one line and an exception."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def _built() -> str:
    """What is compiled and used; found without importing it, so that help comes at once."""
    loops = "native" if native.is_built(native.LOOPS) else "portable"
    decoder = "C" if native.is_built(native.DECODER) else "Python"
    return f"{loops} loops, decoder in {decoder}"


def make_parser() -> ArgumentParser:
    """The parser of all commands; `command` of its result is the command's name.

    Parsing raises UsageError, or SystemExit after ``--help`` and ``--version``.
    """
    parser = _Parser(
        "tqcodec",
        description="Compress neural-network weights to .tqc files.",
        epilog="tqcodec COMMAND --help lists the options of a command.",
    )
    version = f"tqcodec {VERSION} (format {MAJOR}.{MINOR}, {_built()})"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (purpose, add_options) in COMMANDS.items():
        add_options(commands.add_parser(name, help=purpose))
    return parser


def check_names(arguments: argparse.Namespace) -> None:
    """Raise UsageError where a name is empty, as a variable that is not set leaves it."""
    for name, value in vars(arguments).items():
        if name == "key":  # that of the outermost state dict is empty
            continue
        if value == "" or (isinstance(value, list) and "" in value):
            raise UsageError(f"{name} is empty: a variable that is not set?")


def check_encode(arguments: argparse.Namespace) -> None:
    """Raise UsageError where options of `encode` do not go together.

    A `--model` without `--data` gets made-up inputs, or none where they have no say: beside
    `--statistics`, or in a lossless file.
    """
    of_network, data = arguments.model is not None, arguments.data is not None
    if of_network == (arguments.input is not None):
        raise UsageError("encode takes either IN or --model (see tqcodec encode --help)")
    if not of_network and (data or not arguments.tune):
        raise UsageError(f"{'--data' if data else '--no-tune'} needs --model in place of IN")
    if not of_network and arguments.inference:
        raise UsageError("--inference needs --model, which says what the normalisations are")
    if of_network and arguments.output is None:
        raise UsageError("--model needs -o")
    if of_network and not data:
        has_no_say = arguments.statistics is not None or arguments.lossless
        arguments.data = NO_DATA if has_no_say else SYNTHETIC
    _check_synthetic(arguments)
    if of_network and arguments.key is not None:
        raise UsageError("--key needs IN in place of --model")


def _check_synthetic(arguments: argparse.Namespace) -> None:
    given = {name: getattr(arguments, name) for name in (*PICTURES, "tokens", "example")}
    named = [f"--{name}" for name, value in given.items() if value is not None]
    own = {"--tokens", "--example"} & set(named)
    if arguments.data in (None, NO_DATA) and (pictures := [n for n in named if n not in own]):
        raise UsageError(f"{pictures[0]} is of pictures, and there are none: it needs --data")
    if arguments.data != SYNTHETIC:
        for option in [*sorted(own), *(["--save-inputs"] if arguments.save_inputs else [])]:
            raise UsageError(f"{option} needs --model, and --data {SYNTHETIC} or none")
    elif own and len(named) > 1:
        raise UsageError(f"{' and '.join(named)} cannot all say what the network takes: give one")
    elif not own and len(named) < len(PICTURES):
        missing = [f"--{name}" for name in PICTURES if f"--{name}" not in named]
        raise UsageError(
            f"without data inputs are made: pictures need {', '.join(missing)}, others --tokens or "
            f"--example; --data {NO_DATA} encodes weights alone"
        )


def check_retrain(arguments: argparse.Namespace) -> None:
    """Raise UsageError where options of `retrain` do not go together."""
    if arguments.resume and arguments.checkpoint is None:
        raise UsageError("--resume needs --checkpoint FILE")


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings that the options of a command are; what it has no option for has its default.

    Raises:
        EncodeError: as of `Settings`.
    """
    given = vars(arguments)
    return Settings(**{f.name: given[f.name] for f in fields(Settings) if f.name in given})


def inputs_of(arguments: argparse.Namespace) -> list[str]:
    """Names of all files, and the like, that a command reads."""
    options = ("input", "statistics", "model", "data", "example", "start")
    names = (getattr(arguments, name, None) for name in options)
    return [name for name in names if name is not None]


def reading_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options of `tqcodec.reading.file.Reading` that a command line gives, but `progress`."""
    headers = dict(arguments.headers)
    remote = Remote(
        timeout=arguments.timeout,
        connections=arguments.connections,
        memory=arguments.memory,
        storage={"headers": headers} if headers else {},
    )
    given = {"limit": getattr(arguments, "limit", None), "remote": remote}
    return given | ({"workers": arguments.workers} if "workers" in arguments else {})


# ---- one function a command; docs/use.md has a row for each argument ----


def _encode(command: ArgumentParser) -> None:
    add = command.add_argument
    tensors = ".safetensors, its .index.json, .npz, .pt, .pth, .bin, or - for standard input"
    add("input", metavar="IN", nargs="?", help=f"{tensors}; or see --model")
    _output(command, "a .tqc file, or -; default IN with the suffix .tqc")
    _target(command)
    _coding(command)
    text = "of coefficients: range for the smallest file, fixed length; default %(default)s"
    add("--payload", choices=PAYLOADS, default=Settings.payload, help=text)
    text = "which state dict of a checkpoint that holds several, such as model_ema"
    add("--key", metavar="KEY", help=text)
    text = "do not decode the file and compare it before it is written"
    add("--no-verify", dest="verify", action="store_false", help=text)
    add("--dry-run", action="store_true", help="say what would come out, write nothing")
    text = "no progress and no summary at the end; warnings are still shown"
    add("--quiet", action="store_true", help=text)
    _network(command, required=False)
    _synthetic(command)
    _statistics(command, "of calibrate")
    text = "leave biases and batch normalisation of --model as they are"
    add("--no-tune", dest="tune", action="store_false", help=text)
    text = "normalisations of --model as evaluation needs them: smaller, not to be trained on"
    add("--inference", action="store_true", help=text)
    _json(command)


def _decode(command: ArgumentParser) -> None:
    _input(command)
    text = ".safetensors, .npz, .pt, .pth, or -; default IN with the suffix .safetensors"
    _output(command, text)
    text = "weights, or transform: coefficients, bases and steps that they follow from"
    text = f"{text}; default %(default)s"
    command.add_argument("--domain", choices=DOMAINS, default=DOMAINS[0], help=text)
    _limit(command)
    _remote(command)
    _workers(command, "threads")
    _json(command)


def _info(command: ArgumentParser) -> None:
    _input(command)
    text = "a line for each tensor, in the order of the file, in place of sums of the small ones"
    command.add_argument("--all", action="store_true", help=text)
    text = "of a URL too, show what payloads say: transform, kept/all, depth"
    command.add_argument("--full", action="store_true", help=text)
    text = "show multiplications of each layer, dense and in the transform domain"
    command.add_argument("--operations", action="store_true", help=text)
    _statistics(command, "to show coding gains by them")
    _limit(command)
    _remote(command)
    _json(command)


def _verify(command: ArgumentParser) -> None:
    command.add_argument("inputs", metavar="FILE", nargs="+", help="a .tqc file, its URL, or -")
    _limit(command)
    _remote(command)
    _workers(command, "threads")
    _json(command)


def _fetch(command: ArgumentParser) -> None:
    add = command.add_argument
    add("input", metavar="URL", help="address of a .tqc file")
    _output(command, "a file .tqc; default the last part of URL; OUT.part until all of it is there")
    text = "copy the tensors whose names match, such as 'encoder.*'; may be repeated"
    add("--only", metavar="PATTERN", action="append", default=[], help=text)
    _remote(command)
    _json(command)


def _dump(command: ArgumentParser) -> None:
    _input(command)
    _limit(command)
    _remote(command)
    _json(command)


def _report(command: ArgumentParser) -> None:
    _input(command)
    _output(command, ".html, .png, or -; default IN with the suffix .html")
    _limit(command)
    _remote(command)


def _calibrate(command: ArgumentParser) -> None:
    _output(command, "a .npz file", required=True)
    _network(command)
    text = "sign vectors for each image; default 1; of made-up inputs 8 where outputs are few"
    command.add_argument("--probes", type=int, metavar="N", help=text)
    _json(command)


def _eval(command: ArgumentParser) -> None:
    _input(command)
    _network(command)
    _limit(command)
    _remote(command)
    _json(command)


def _sweep(command: ArgumentParser) -> None:
    text = "a .png file; the numbers go into .csv beside it"
    _output(command, text, required=True)
    text = f"bits per weight of the files, {RANGES['bits']}, with commas between"
    command.add_argument("--bits", type=numbers, required=True, metavar="B,B,...", help=text)
    _network(command)
    _statistics(command, "of calibrate, to draw what they gain as well")
    _effort(command)
    _workers(command, "processes")
    _json(command)


def _retrain(command: ArgumentParser) -> None:
    add = command.add_argument
    _output(command, "a .tqc file", required=True)
    _network(command)
    _size_target(command.add_mutually_exclusive_group(required=True))
    text = "passes over the data"
    add("--epochs", type=_number_from(1), required=True, metavar="N", help=text)
    add("--mirror", action="store_true", help="exchange left and right of half of the pictures")
    text = "move pictures by up to N pixels each way; default %(default)s"
    add("--crop", type=_number_from(0), default=0, metavar="N", help=text)
    text = "a file of this network to start at, such as of an earlier training; default a new one"
    add("--start", metavar="FILE.tqc", help=text)
    add("--checkpoint", metavar="FILE", help="keep the training there every minute")
    add("--resume", action="store_true", help="go on from --checkpoint, if it is there")
    add("--plot", metavar="CURVE.png", help="draw loss and bits per weight over the epochs")
    add("--bfloat16", action="store_true", help="run the network in bfloat16")
    add("--compile", action="store_true", help="use torch.compile")
    text = "of all that is random; default %(default)s"
    add("--seed", type=_number_from(0, MOST_SEED), default=0, metavar="N", help=text)
    text = "keep normalisations in the form that can be trained on"
    add("--no-inference", dest="inference", action="store_false", help=text)
    _coding(command)
    _json(command)


# ---- what commands share ----


def _input(command: ArgumentParser) -> None:
    text = "a .tqc file, its URL, or - for standard input"
    command.add_argument("input", metavar="IN", help=text)


def _output(command: ArgumentParser, text: str, required: bool = False) -> None:
    command.add_argument("-o", "--output", metavar="OUT", required=required, help=text)
    command.add_argument("-f", "--force", action="store_true", help="overwrite OUT")


def _limit(command: ArgumentParser) -> None:
    text = "most bytes to decode to; default 32Mi and 1000 times the length of the file"
    command.add_argument("--limit", type=size, metavar="BYTES", help=text)


def _remote(command: ArgumentParser) -> None:
    add = command.add_argument_group("of a URL").add_argument
    text = "seconds without a byte that end a connection; default %(default)s"
    add("--timeout", type=_seconds, default=f"{Remote.timeout:g}", metavar="S", help=text)
    text = "requests at once; default %(default)s"
    add("--connections", type=_count, default=Remote.connections, metavar="N", help=text)
    text = "bytes of the file that are held; default %(default)s"
    add("--memory", type=size, default=f"{Remote.memory >> 20}Mi", metavar="BYTES", help=text)
    text = "sent with each request, such as 'Authorization: Bearer TOKEN'"
    header = add("--header", type=_header, action="append", default=[], dest="headers", help=text)
    header.metavar = "'NAME: VALUE'"


def _workers(command: ArgumentParser, what: str) -> None:
    text = f"{what}, {RANGES['workers']}; default %(default)s"
    default = Settings.workers
    command.add_argument("-j", "--workers", type=_count, default=default, metavar="N", help=text)


def _effort(command: ArgumentParser) -> None:
    text = f"{RANGES['effort']}, from fast to thorough; default %(default)s"
    default = Settings.effort
    command.add_argument("-e", "--effort", type=int, default=default, metavar="N", help=text)


def _statistics(command: ArgumentParser, text: str) -> None:
    command.add_argument("--statistics", metavar="STATS.npz", help=text)


def _json(command: ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON document")


def _size_target(group: argparse._MutuallyExclusiveGroup) -> None:
    text = f"bits per weight of the whole file, {RANGES['bits']}"
    group.add_argument("--bits", type=float, metavar="B", help=text)
    text = f"largest file in bytes, {RANGES['max_size']}, such as 500k or 2M"
    group.add_argument("--max-size", type=size, metavar="BYTES", help=text)


def _target(command: ArgumentParser) -> None:
    group = command.add_mutually_exclusive_group()
    _size_target(group)
    add = group.add_argument
    text = (
        f"quality, {RANGES['quality']}, {DECIBELS_PER_QUALITY} dB each; default {DEFAULT_QUALITY:g}"
    )
    add("-q", "--quality", type=float, metavar="Q", help=text)
    text = f"signal-to-noise ratio of the weights in dB, {RANGES['snr']}"
    add("--snr", type=float, metavar="DB", help=text)
    add("--lossless", action="store_true", help="code every tensor exactly")


def _coding(command: ArgumentParser) -> None:
    add = command.add_argument
    text = "of weight matrices; default %(default)s"
    add("--transform", choices=TRANSFORMS, default=Settings.transform, help=text)
    text = f"mantissa bits kept of biases and the like, {RANGES['side_bits']} or all"
    text = f"{text}; default %(default)s"
    add("--side-bits", type=_side_bits, default=Settings.side_bits, metavar="N", help=text)
    text = f"options of some tensors, with commas between: {', '.join(RULE_FORMS)}"
    pattern = "PATTERN=OPTIONS"
    add("--rule", dest="rules", type=_rule, action="append", default=[], metavar=pattern, help=text)
    _effort(command)
    _workers(command, "processes")
    text = "a free string, besides those of IN"
    add("--metadata", type=_metadata, action="append", default=[], metavar="K=V", help=text)
    text = "do not write into the file which encoder made it, and how"
    add("--no-provenance", dest="provenance", action="store_false", help=text)


def _synthetic(command: ArgumentParser) -> None:
    add = command.add_argument
    text = "made-up inputs are texts of so many tokens, in place of pictures of --size"
    add("--tokens", type=int, metavar="LENGTH", help=text)
    text = "made-up inputs are like the batch that this function returns"
    add("--example", metavar="FILE.py:FUNCTION", help=text)
    text = "keep made-up inputs, to be --data of further rates"
    add("--save-inputs", metavar="FILE.npz", help=text)


def _network(command: ArgumentParser, required: bool = True) -> None:
    add = command.add_argument
    text = "a function that returns a PyTorch network with its weights"
    add("--model", required=required, metavar="FILE.py:FUNCTION", help=text)
    text = ".npz of arrays, a folder or .zip of images, or a function that returns batches"
    if not required:
        text += f"; {NO_DATA}, or {SYNTHETIC}: made from the network alone; default {SYNTHETIC}"
    add("--data", required=required, metavar="DATA", help=text)
    made_up = "" if required else ", or how many to make up in place of 256 to 1024"
    add("--images", type=int, metavar="N", help=f"most images{made_up}; default all")
    add("--batch", type=int, default=32, metavar="N", help="images at a time; default %(default)s")
    add("--size", type=int, metavar="N", help="side of image files in pixels; default 224")
    text = "taken off pixels of 0 to 255, one for each channel or for all; default 0"
    add("--mean", type=numbers, metavar="X,X,X", help=text)
    text = "what they are divided by then; default 1"
    add("--std", type=numbers, metavar="X,X,X", help=text)
    add("--device", default="cpu", metavar="NAME", help="cpu or cuda; default %(default)s")


# Purpose and arguments of each command.
COMMANDS: Final[dict[str, tuple[str, Callable[[ArgumentParser], None]]]] = {
    "encode": ("compress a file of tensors, or a network", _encode),
    "decode": ("get the tensors back", _decode),
    "info": ("show what each tensor costs", _info),
    "verify": ("decode everything and check it", _verify),
    "fetch": ("copy a file from its URL, resumed where it ended", _fetch),
    "dump": ("show header, directory, tables and heads", _dump),
    "report": ("draw where the bytes go", _report),
    "calibrate": ("gather statistics of a network on data", _calibrate),
    "eval": ("compare a decoded network with its original", _eval),
    "sweep": ("draw what a network loses at a set of rates", _sweep),
    "retrain": ("train a network to a file of few bits", _retrain),
}


# ---- values ----


def size(text: str) -> int:
    """Bytes of `500k`, `2M`, `1.5G` (powers of 1000) or `512Ki` (of 1024)."""
    number = text.rstrip("kKmMgGiI")
    try:
        value = int(float(number) * UNITS[text[len(number) :].lower()])
        if value < 0:
            raise ValueError
        return value
    except (ValueError, KeyError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500k or 2M") from None


def _count(text: str) -> int:
    try:
        return int(RANGES["workers"].parse(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number from {RANGES['workers']}"
        ) from None


def _number_from(least: int, most: float = math.inf) -> Callable[[str], int]:
    """A whole number in a range."""

    def parse(text: str) -> int:
        try:
            if least <= int(text) <= most:
                return int(text)
        except ValueError:
            pass
        upper = "" if most == math.inf else f" to {most}"
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number from {least}{upper or ' on'}"
        )

    return parse


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if 0 < seconds < math.inf:
        return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")


def _header(text: str) -> tuple[str, str]:
    name, separator, value = text.partition(":")
    if not separator or not name.strip() or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME: VALUE")
    return name.strip(), value.strip()


def _side_bits(text: str) -> int | None:
    try:
        return None if text == "all" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'all'") from None


def numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between."""
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas between") from None


def _rule(text: str) -> tuple[str, str]:
    pattern, separator, options = text.rpartition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not PATTERN=OPTIONS")
    return pattern, options


def _metadata(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not K=V")
    return key, value
