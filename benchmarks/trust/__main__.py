"""Throws damaged and odd inputs at every verb and function, and looks at what is left.

    python -m benchmarks.trust --seed 0 --out trust.jsonl

Commands run in processes of their own, with streams that are closed or full, full disks, limits and
signals (`machine.py`); calls of the library run in this one. What is drawn depends on the
seed and the number of the case alone. Each case that is done is a line of the output; a run that is
started again goes on behind them, unless the package or this benchmark has changed. The exit code
is 1 if a case failed. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tqcodec
import tqcodec.torch
from benchmarks.common.command import command_parser
from benchmarks.common.long_run import Line, append, fingerprint, read_log
from benchmarks.common.tables import print_aligned
from benchmarks.trust import inputs, machine
from benchmarks.trust.inputs import Rng, pick
from tqcodec import Settings, Statistics
from tqcodec.cli import checkpoints, describe
from tqcodec.common.atomic import TEMPORARY
from tqcodec.errors import EncodeWarning, InternalError, TQCError
from tqcodec.torch.inputs import DataOptions, load_batches

RUNS, CALLS = 2000, 50_000
SLOW = 30  # seconds after which a call hangs


def nothing(*_: Any, **__: Any) -> None:
    """A function that takes anything and gives nothing."""


ODD: list[Any] = [
    None, True, 0, -1, 3, 1 << 70, 1.5, float("nan"), "", "x", "a\0b", "\udcff", "no/such", b"",
    b"x", bytearray(b"tqc"), memoryview(b"x"), (), [], [3], {}, {"a": 1}, {3: np.ones(3)}, nothing,
    object(), np.ones(3), np.float32(2), np.int8(1), Path(), Path("/dev/null"), Path("new.tqc"), 1j,
]  # fmt: skip


# ---- calls of the library ----


@dataclass
class Call:
    """A call of a function.

    Attributes:
        kind: for the table.
        function: what is called.
        arguments: of it.
        keywords: of it.
        result: whether what comes back is right; takes the result.
    """

    kind: str
    function: Callable[..., Any]
    arguments: Sequence[Any] = ()
    keywords: dict[str, Any] = field(default_factory=dict)
    result: Callable[[Any], bool] = lambda _: True

    def __str__(self) -> str:
        words = [*map(repr, self.arguments), *(f"{k}={v!r}" for k, v in self.keywords.items())]
        return f"{self.function.__name__}({', '.join(word[:200] for word in words)})"


def each(data: bytes) -> None:
    """Every tensor of an opened file by itself, as far as they decode, and all that is said."""
    with tqcodec.open(data) as file:
        for name in file:
            try:
                _ = file[name]
            except tqcodec.DecodeError as error:
                str(error)
        describe.info(file)
        describe.dump(file.container)


def load_data(path: str) -> None:
    """All batches of calibration data."""
    list(load_batches(path, DataOptions(size=None if path.endswith(".npz") else 4)))


def reencode(path: str) -> bytes:
    """As the command: from a file of tensors to a `.tqc`."""
    found = checkpoints.read(path)
    metadata = tuple(found.metadata.items())
    return tqcodec.encode(found.tensors, Settings(effort=1, metadata=metadata))


def draw_call(rng: Rng, originals: dict[str, bytes]) -> Call:
    """A call; the working directory holds a file that it reads."""
    kind = rng.integers(10)
    if kind < 4:
        return _draw_decoding(rng, originals)
    if kind < 7:
        return _draw_reading(rng, originals)
    return _draw_arrays(rng, originals) if kind < 9 else _draw_arguments(rng, originals)


def _draw_decoding(rng: Rng, originals: dict[str, bytes]) -> Call:
    known = {**originals, **{f"{name}.tqc": data for name, data in inputs.GOLDEN.items()}}
    name = pick(rng, [name for name in known if name.endswith(".tqc") and name != "large.tqc"])
    kind, data = inputs.draw_damage(rng, name, known)
    Path("x.tqc").write_bytes(data)
    function, given = pick(
        rng,
        [
            (tqcodec.decode, data), (tqcodec.decode, bytearray(data)), (each, data),
            (tqcodec.verify, memoryview(data)), (tqcodec.load, "x.tqc"),
            (tqcodec.verify, Path("x.tqc")), (tqcodec.torch.decode, data),
        ],
    )  # fmt: skip
    keywords = {} if function is each or rng.random() < 0.7 else {"workers": 2, "limit": 5000}
    return Call(f"decode, {kind}", function, [given], keywords)


def _draw_reading(rng: Rng, originals: dict[str, bytes]) -> Call:
    skipped = (".tqc", ".py", "large.safetensors")
    name = pick(rng, [name for name in originals if not name.endswith(skipped)])
    kind, data = inputs.draw_damage(rng, name, originals)
    if rng.random() < 0.1:
        kind, data = "good", originals[name]
    path = f"x{name[name.index('.') :]}"
    Path(path).write_bytes(data)
    functions: list[Callable[..., Any]] = [checkpoints.read, reencode]
    if path.endswith(".npz"):
        functions = [checkpoints.read, reencode, Statistics.load, load_data]
    elif path.endswith((".zip", ".png")):
        functions = [load_data]
        path = "." if path.endswith(".png") else path
    return Call(f"read, {kind}", pick(rng, functions), [path])


def _draw_arrays(rng: Rng, originals: dict[str, bytes]) -> Call:
    names = [*inputs.ODD_NAMES[1:], "fc.weight", "bn.running_mean", "mask", "w", "b", "conv.weight"]
    names += [pick(rng, ["", "\ud800", "x" * 5000])] * (rng.random() < 0.1)
    tensors = {pick(rng, names): inputs.odd_arrays(rng) for _ in range(rng.integers(1, 5))}
    statistics = None
    if rng.random() < 0.2:
        statistics = Statistics.load(os.environ["TRUST_STATISTICS"])
        weight = inputs.state()["1.weight"].numpy() * pick(rng, [1, 1, 1, 1 + 1e-3, 0, np.nan])
        tensors["1.weight"] = weight.astype(pick(rng, ["<f4", "<f2", ">f8", "<f8"]))
    target: dict[str, Any] = pick(
        rng, [{}, {}, {"bits": 3}, {"bits": 12.5}, {"snr": 0}, {"quality": 95}, {"lossless": True}]
    )
    options = {
        "effort": pick(rng, [1, 1, 1, 3, 6]), "payload": pick(rng, ["range", "fixed"]),
        "transform": pick(rng, ["auto", "auto", "dct", "klt", "elt", "none"]),
        "side_bits": pick(rng, [7, 0, 52, None]), "provenance": bool(rng.random() < 0.5),
        "rules": pick(rng, [()] * 4 + [(("*", "bits:2"),), (("*", "weight"),), (("w*", "exact"),)]),
        "metadata": pick(rng, [(), (("a\0", "\x1b[1m"),), (("__metadata__", ""),)]),
    }  # fmt: skip
    if rng.random() < 0.2:
        return Call("write", _rewritten, [tensors, pick(rng, [".safetensors", ".npz", ".pt"])])

    def encode(tensors: Any, statistics: Any) -> bytes:
        return tqcodec.encode(tensors, Settings(**options, **target), statistics)

    def kept(data: bytes) -> bool:
        found = tqcodec.decode(data)
        good = list(found) == list(tensors)
        for name, array in tensors.items():
            exact = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))
            good &= (found[name].dtype, found[name].shape) == (exact.dtype, array.shape)
            if "lossless" in target:
                good &= found[name].tobytes() == exact.tobytes()
        return good

    return Call("encode arrays", encode, [tensors, statistics], {}, kept)


def _rewritten(tensors: Any, suffix: str) -> None:
    """As the command: to a `.tqc` and to another file, which is read again."""
    found = tqcodec.decode(tqcodec.encode(tensors, Settings(lossless=True)))
    checkpoints.write(f"x{suffix}", checkpoints.Checkpoint(found))
    again = checkpoints.read(f"x{suffix}").tensors
    if {name: array.tobytes() for name, array in found.items()} != {
        name: array.tobytes() for name, array in again.items()
    }:
        raise AssertionError("another file holds other values")


def _draw_arguments(rng: Rng, originals: dict[str, bytes]) -> Call:
    good, path = originals["m.tqc"], "x.tqc"
    Path(path).write_bytes(good)
    tensors = {"w": np.ones((8, 8), np.float32)}
    state = {"w": torch.ones(8, 8), "odd": torch.ones(3, 2).T, "half": torch.ones(5).bfloat16()}
    decoding = {"limit": None, "workers": 1, "progress": None}
    encoding = {"settings": Settings(effort=1), "statistics": None, "progress": None}
    more = {"origins": None, "refine": None, "verify": True}
    fields = dict.fromkeys(["bits", "max_size", "quality", "snr"], None)
    fields |= {"effort": 1, "rules": (), "metadata": (), "side_bits": 7, "workers": 1}
    function, arguments, keywords = pick(
        rng,
        [
            (tqcodec.encode, [tensors], encoding | more),
            (tqcodec.save, [tensors, "new.tqc"], encoding | more),
            (tqcodec.decode, [good], decoding), (tqcodec.load, [path], decoding),
            (tqcodec.verify, [good], decoding), (tqcodec.open, [path], {"limit": None}),
            (Settings, [], fields), (Statistics.load, [os.environ["TRUST_STATISTICS"]], {}),
            (tqcodec.torch.encode, [state], encoding | {"tune": None, "target_drop": None}),
            (tqcodec.torch.save, [state, "new.tqc"], encoding | {"evaluate": None}),
            (tqcodec.torch.decode, [good], decoding), (tqcodec.torch.load, [path], decoding),
            (tqcodec.torch.open, [path], {"limit": None}),
            (tqcodec.torch.calibrate, [torch.nn.Linear(3, 2), [torch.ones(4, 3)]], {"probes": 1}),
        ],
    )  # fmt: skip
    wrong, odd = int(rng.integers(len(arguments) + len(keywords))), pick(rng, ODD)
    if wrong < len(arguments):
        arguments[wrong] = odd
    else:
        keywords = {**keywords, list(keywords)[wrong - len(arguments)]: odd}
    return Call("arguments", function, arguments, keywords)


def frozen(value: Any) -> Any:
    """What an argument holds, to be compared afterwards."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.shape, value.stride(), bytes(value.untyped_storage())
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.strides, value.flags.writeable, value.tobytes()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, (Statistics, checkpoints.Checkpoint)):
        return frozen(getattr(value, "tensors", None)), frozen(dict(getattr(value, "weights", {})))
    if isinstance(value, dict):
        return [(key, frozen(one)) for key, one in value.items()]
    if isinstance(value, (list, tuple)):
        return [frozen(one) for one in value]
    return frozen(vars(value)) if type(value).__name__ == "WeightStatistics" else id(value)


class HangsError(BaseException):
    """A call takes too long."""


@contextmanager
def bounded(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise HangsError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def do_call(rng: Rng, originals: dict[str, bytes]) -> Line:
    """Draw a call, make it, and judge what comes of it."""
    call = draw_call(rng, originals)
    before, faults, outcome = frozen([call.arguments, call.keywords]), [], "result"
    try:
        with warnings.catch_warnings(), bounded(SLOW):
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", EncodeWarning)
            result = call.function(*call.arguments, **call.keywords)
            if not call.result(result):
                faults.append("the result is not what went in")
            if hasattr(result, "close"):
                result.close()
    except (TQCError, OSError, TypeError, ValueError, HangsError) as error:
        outcome, text = type(error).__name__, str(error)
        ours = isinstance(error, TQCError) and not isinstance(error, InternalError)
        if not (ours or isinstance(error, OSError) or text.startswith("tqcodec: ")):
            faults.append(_described(error))
        if "\n" in text or "\x1b" in text:
            faults.append(f"message of several lines or with codes: {text[:200]!r}")
    except BaseException as error:  # also the PanicException of libraries in Rust
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome = type(error).__name__
        faults.append(_described(error))
    if frozen([call.arguments, call.keywords]) != before:
        faults.append("an argument has changed")
    faults += [f"{name} is left" for name in Path().glob(f"{TEMPORARY}*")]
    return {"kind": call.kind, "outcome": outcome, "what": str(call), "faults": faults}


def _described(error: BaseException) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {error}"[:300]


# ---- cases, output, table ----


class Cases:
    """Files to draw from, and a place to work in."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.seed = root, seed
        self.files = root / "originals"
        self.files.mkdir()
        inputs.make_files(self.files)
        inputs.make_odd_files(self.files)
        self.originals = inputs.read_all(self.files)
        os.environ["TRUST_STATISTICS"] = str(self.files / "stats.npz")

    def run(self, number: int) -> Line:
        """A command in a process of its own."""
        run = machine.draw(np.random.default_rng([self.seed, 0, number]), self.originals)
        with tempfile.TemporaryDirectory(dir=self.root) as folder:
            line = machine.execute(run, self.files, Path(folder))
        words = shlex.join(["tqcodec", *run.words])
        about = {"kind": run.condition, "inputs": run.kind, "outcome": str(line["code"])}
        return about | {"what": words} | line

    def call(self, number: int) -> Line:
        """A call in this process."""
        before = Path.cwd()
        with tempfile.TemporaryDirectory(dir=self.root) as folder:
            os.chdir(folder)
            try:
                return do_call(np.random.default_rng([self.seed, 1, number]), self.originals)
            finally:
                os.chdir(before)


def table(lines: Sequence[Line]) -> list[list[str]]:
    """One row for each kind, and their sums; outcomes are exit codes and errors."""
    rows = [["case", "kind", "count", "failed", "outcomes"]]
    for case in ("run", "call"):
        mine = [line for line in lines if line["case"] == case]
        for kind in [*sorted({line["kind"] for line in mine}), "all"]:
            chosen = [line for line in mine if kind in (line["kind"], "all")]
            outcomes = Counter(line["outcome"] for line in chosen)
            counts = [len(chosen), sum(bool(line["faults"]) for line in chosen)]
            said = ", ".join(f"{n} x {what}" for what, n in outcomes.most_common())
            rows.append([case, kind, *map(str, counts), said])
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the output lacks, print failures as they come and the table at the end."""
    options = _parsed(arguments)
    about = {"package": fingerprint(Path(__file__).parent), "seed": options.seed}
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    with tempfile.TemporaryDirectory(prefix="trust-") as root:
        cases = Cases(Path(root), options.seed)
        if options.case is not None:
            line = getattr(cases, options.case[0])(options.case[1])
            print(json.dumps(line, indent=1))
            return int(bool(line["faults"]))
        logged = [line for line in read_log(options.out) if about.items() <= line.items()]
        done = {(line["case"], line["number"]): line for line in logged}
        wanted = [("run", options.runs), ("call", options.calls)]
        lines = [
            _line(cases, case, number, done, about, options.out)
            for case, count in wanted
            for number in range(count)
        ]
    print_aligned(table(lines))
    failures = sum(bool(line["faults"]) for line in lines)
    print(f"{failures} failures")
    return int(failures > 0)


def _line(
    cases: Cases, case: str, number: int, done: dict[Any, Line], about: Line, out: Path
) -> Line:
    line = done.get((case, number))
    if line is None:
        start = time.monotonic()
        line = about | {"case": case, "number": number} | getattr(cases, case)(number)
        line["seconds"] = round(time.monotonic() - start, 2)
        if not line["faults"] and case == "call":
            del line["what"]  # fifty thousand of them
        append(out, line)
    if line["faults"]:
        again = f"python -m benchmarks.trust --seed {about['seed']} --case {case}:{number}"
        print(f"{again}\n  {line['what']} ({line['kind']})", flush=True)
        print("".join(f"    {fault}\n" for fault in line["faults"]), end="", flush=True)
    return line


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("trust", __doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=RUNS, metavar="N", help="of the command line")
    parser.add_argument("--calls", type=int, default=CALLS, metavar="N", help="in this process")
    parser.add_argument("--out", type=Path, default=Path("trust.jsonl"), metavar="FILE")
    parser.add_argument("--case", type=_numbered, metavar="run:N|call:N", help="one case alone")
    return parser.parse_args(arguments)


def _numbered(text: str) -> tuple[str, int]:
    case, _, number = text.partition(":")
    if case not in ("run", "call"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither run:N nor call:N")
    return case, int(number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no folder is left
    sys.exit(main())
