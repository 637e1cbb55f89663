"""The parser of the command line. Imports nothing heavy, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
import math
from typing import Any, NoReturn

from tqcodec import native
from tqcodec.common.checks import DOMAINS
from tqcodec.encoder.settings import MOST_WORKERS, PAYLOADS, TRANSFORMS, Settings
from tqcodec.format.registry import MAJOR, MINOR
from tqcodec.remote.options import Remote
from tqcodec.version import VERSION

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


class UsageError(Exception):
    """The command line asks for something that is not on offer."""


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line and an exception."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def _built() -> str:
    """What is compiled and used; found without importing it, so that help comes at once."""
    loops = "native" if native.is_built(native.LOOPS) else "portable"
    decoder = "C" if native.is_built(native.DECODER) else "Python"
    return f"{loops} loops, decoder in {decoder}"


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `command` of its result is the command's name.

    Parsing raises UsageError, or SystemExit after ``--help`` and ``--version``.
    """
    parser = _Parser("tqcodec", description="Compress neural-network weights to .tqc files.")
    version = f"tqcodec {VERSION} (format {MAJOR}.{MINOR}, {_built()})"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    encode = commands.add_parser("encode", help="compress a file of tensors")
    decode = commands.add_parser("decode", help="get the tensors back")
    info = commands.add_parser("info", help="show what each tensor costs")
    verify = commands.add_parser("verify", help="decode everything and check it")
    fetch = commands.add_parser("fetch", help="copy a file from its URL, resumed where it ended")
    dump = commands.add_parser("dump", help="show header, directory, tables and heads")
    report = commands.add_parser("report", help="draw where the bytes go")
    calibrate = commands.add_parser("calibrate", help="gather statistics of a network on data")
    evaluate = commands.add_parser("eval", help="compare a decoded network with its original")
    sweep = commands.add_parser("sweep", help="draw what a network loses at a set of rates")

    tensors = ".safetensors, its .index.json, .npz, .pt, .pth, .bin, or - for standard input"
    encode.add_argument("input", metavar="IN", nargs="?", help=f"{tensors}; or see --model")
    verify.add_argument("inputs", metavar="FILE", nargs="+", help="a .tqc file, its URL, or -")
    for command in (decode, info, dump, report, evaluate):
        text = "a .tqc file, its URL, or - for standard input"
        command.add_argument("input", metavar="IN", help=text)
    fetch.add_argument("input", metavar="URL", help="address of a .tqc file")
    text = "copy the tensors whose names match, such as 'encoder.*'; may be repeated"
    fetch.add_argument("--only", metavar="PATTERN", action="append", default=[], help=text)
    for command in (decode, verify, info, dump, report, evaluate):
        command.add_argument("--limit", type=size, metavar="BYTES", help="most bytes to decode to")
    for command in (decode, verify, info, fetch, dump, report, evaluate):
        _add_remote_options(command)
    for command in (decode, verify):
        command.add_argument("-j", "--workers", type=_count, default=1, metavar="N", help="threads")
    for command, output in (
        (encode, "default: IN with the suffix .tqc"),
        (decode, ".safetensors (default: IN with this suffix), .npz, .pt, .pth, or -"),
        (fetch, "default: the last part of URL; OUT.part until all of it is there"),
        (report, ".html (default: IN with this suffix), .png, or -"),
        (calibrate, "a file .npz"),
        (sweep, "a file .png; the numbers go into .csv beside it"),
    ):
        needed = command in (calibrate, sweep)
        command.add_argument("-o", "--output", metavar="OUT", help=output, required=needed)
        command.add_argument("-f", "--force", action="store_true", help="overwrite OUT")
    text = "weights, or transform: coefficients, bases and steps that they follow from"
    decode.add_argument("--domain", choices=DOMAINS, default=DOMAINS[0], help=text)
    text = "of a URL too, show what payloads say: transform, kept/all, depth"
    info.add_argument("--full", action="store_true", help=text)
    text = "show multiplications of each layer, dense and in the transform domain"
    info.add_argument("--operations", action="store_true", help=text)
    _add_encode_options(encode)
    _add_network_options(encode, required=False)
    text = "which state dict of a checkpoint that holds several, such as model_ema"
    encode.add_argument("--key", metavar="KEY", help=text)
    text = "leave biases and batch normalisation of --model as they are"
    encode.add_argument("--no-tune", dest="tune", action="store_false", help=text)
    for command, text in ((encode, "of calibrate"), (info, "to show coding gains by them")):
        command.add_argument("--statistics", metavar="STATS.npz", help=text)
    text = "a line for each tensor, in the order of the file, in place of sums of the small ones"
    info.add_argument("--all", action="store_true", help=text)
    for command in (calibrate, evaluate, sweep):
        _add_network_options(command)
    calibrate.add_argument("--probes", type=int, default=1, metavar="N", help="signs an image")
    _add_sweep_options(sweep)
    for command in (encode, decode, info, verify, fetch, dump, calibrate, evaluate, sweep):
        command.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def check_encode(arguments: argparse.Namespace) -> None:
    """Raise UsageError where options of `encode` do not go together."""
    of_network, data = arguments.model is not None, arguments.data is not None
    if of_network == (arguments.input is not None):
        raise UsageError("encode takes either IN or --model (see tqcodec encode --help)")
    if not of_network and (data or not arguments.tune):
        raise UsageError(f"{'--data' if data else '--no-tune'} needs --model in place of IN")
    if not of_network and arguments.inference:
        raise UsageError("--inference needs --model, which says what the normalisations are")
    if of_network and arguments.output is None:
        raise UsageError("--model needs -o")
    if of_network and not data and arguments.statistics is None:
        raise UsageError("--model needs --data, or --statistics")
    if of_network and arguments.key is not None:
        raise UsageError("--key needs IN in place of --model")


def inputs_of(arguments: argparse.Namespace) -> list[str]:
    """Names of all files, and the like, that a command reads."""
    names = (getattr(arguments, name, None) for name in ("input", "statistics", "model", "data"))
    return [name for name in names if name is not None]


def reading_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options of `tqcodec.file.Reading` that a command line gives, but `progress`."""
    headers = dict(arguments.headers)
    remote = Remote(
        timeout=arguments.timeout,
        connections=arguments.connections,
        memory=arguments.memory,
        storage={"headers": headers} if headers else {},
    )
    given = {"limit": getattr(arguments, "limit", None), "remote": remote}
    return given | ({"workers": arguments.workers} if "workers" in arguments else {})


def _add_remote_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("of a URL").add_argument
    text = "seconds without a byte that end a connection; default %(default)g"
    add("--timeout", type=_seconds, default=Remote.timeout, metavar="S", help=text)
    text = "requests at once; default %(default)s"
    add("--connections", type=_count, default=Remote.connections, metavar="N", help=text)
    text = "bytes of the file that are held; default 64Mi"
    add("--memory", type=size, default=Remote.memory, metavar="BYTES", help=text)
    text = "sent with each request, such as 'Authorization: Bearer TOKEN'"
    header = add("--header", type=_header, action="append", default=[], dest="headers", help=text)
    header.metavar = "'NAME: VALUE'"


def _add_encode_options(encode: argparse.ArgumentParser) -> None:
    add = encode.add_mutually_exclusive_group().add_argument
    add("--bits", type=float, metavar="B", help="bits per weight of the whole file")
    add("--max-size", type=size, metavar="BYTES", help="largest file, such as 500k or 2M")
    add("-q", "--quality", type=float, metavar="Q", help="0 to 100, 0.4 dB each; default 70")
    add("--snr", type=float, metavar="DB", help="signal-to-noise ratio of the weights")
    add("--lossless", action="store_true", help="code every tensor exactly")
    add = encode.add_argument
    add("--transform", choices=TRANSFORMS, default=Settings.transform)
    add("--payload", choices=PAYLOADS, default=Settings.payload)
    side = "mantissa bits kept of biases and the like, or 'all'; default %(default)s"
    add("--side-bits", type=_side_bits, default=Settings.side_bits, metavar="N", help=side)
    rule = "options of some tensors: exact, weight, transform:T, step:F, bits:B, side:N"
    pattern = "PATTERN=OPTIONS"
    add("--rule", dest="rules", type=_rule, action="append", default=[], metavar=pattern, help=rule)
    add("-e", "--effort", type=int, default=Settings.effort, metavar="N", help="1 fast to 9 best")
    add("-j", "--workers", type=int, default=Settings.workers, metavar="N", help="processes")
    text = "do not decode the file and compare it before it is written"
    add("--no-verify", dest="verify", action="store_false", help=text)
    text = "do not write into the file which encoder made it, and how"
    add("--no-provenance", dest="provenance", action="store_false", help=text)
    text = "normalisations of --model as evaluation needs them: smaller, not to be trained on"
    add("--inference", action="store_true", help=text)
    add("--dry-run", action="store_true", help="say what would come out, write nothing")
    text = "no progress and no summary at the end; warnings are still shown"
    add("--quiet", action="store_true", help=text)
    text = "a free string, besides those of IN"
    add("--metadata", type=_metadata, action="append", default=[], metavar="K=V", help=text)


def _add_network_options(command: argparse.ArgumentParser, required: bool = True) -> None:
    add = command.add_argument
    model = "a function that returns a PyTorch network with its weights"
    data = ".npz of arrays, a folder or .zip of images, or a function that returns batches"
    add("--model", required=required, metavar="FILE.py:FUNCTION", help=model)
    add("--data", required=required, metavar="DATA", help=data)
    add("--images", type=int, metavar="N", help="most images; default all")
    add("--batch", type=int, default=32, metavar="N", help="images at a time; default %(default)s")
    add("--size", type=int, default=224, metavar="N", help="side of image files; default 224")
    add("--mean", type=_numbers, default=(0.0,), metavar="X,X,X", help="taken off 0 to 255")
    add("--std", type=_numbers, default=(1.0,), metavar="X,X,X", help="divided by then")
    add("--device", default="cpu", metavar="NAME", help="cpu or cuda; default %(default)s")


def _add_sweep_options(sweep: argparse.ArgumentParser) -> None:
    add = sweep.add_argument
    bits = "bits per weight of the files, with commas between"
    add("--bits", type=_numbers, required=True, metavar="B,B,...", help=bits)
    add("--statistics", metavar="STATS.npz", help="of calibrate, to draw what they gain as well")
    add("-e", "--effort", type=int, default=Settings.effort, metavar="N", help="1 fast to 9 best")
    add("-j", "--workers", type=int, default=Settings.workers, metavar="N", help="processes")


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
    if text.isascii() and text.isdigit() and 0 < int(text) <= MOST_WORKERS:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MOST_WORKERS}")


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


def _numbers(text: str) -> tuple[float, ...]:
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
