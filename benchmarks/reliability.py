"""Peak memory of tqcodec against the size of a model, and what hostile files cost.

    python -m benchmarks.reliability RESNET32.safetensors

Each number is of a fresh process with one thread: growth of the peak resident memory over what the
process had after its imports and after coding a tiny network, mapped files included. Linux only.
The bombs are those of tests/format/test_damage.py; their CPU seconds are taken without tracing,
the best of `--repeats` calls, beside the legal files known to take the longest for their size.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import tqcodec
from benchmarks.common.command import command_parser
from benchmarks.common.tables import print_aligned
from benchmarks.workers.process import ONE_THREAD
from tqcodec import Settings
from tqcodec.cli import checkpoints, commands
from tqcodec.format import portable  # noqa: F401 - imported before anything is measured

PATIENCE = 2.0  # seconds after which a slow file is not tried again
MODES = {
    "4 bits": Settings(bits=4),
    "4 bits, -e 1": Settings(bits=4, effort=1),
    "4 bits, fixed": Settings(bits=4, payload="fixed"),
    "lossless": Settings(lossless=True),
}


# ---- in the fresh process ----


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) << 10


def _warm_up() -> None:
    """Import what is imported late."""
    tensors = {"w": np.random.default_rng(0).normal(size=(64, 64)), "b": np.ones(8)}
    for settings in MODES.values():
        tqcodec.verify(tqcodec.encode(tensors, settings))


def growth(call: Callable[[], object]) -> int:
    """Bytes by which the peak of the resident memory grows while `call` runs."""
    _warm_up()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def encode(model: str, packed: str, settings: Settings) -> None:
    """As the command: the model is mapped, not loaded."""
    Path(packed).write_bytes(tqcodec.encode(checkpoints.read(model).tensors, settings))


def stream(packed: str) -> None:
    """Every tensor in turn, none of them kept."""
    with tqcodec.open(packed) as file:
        for name in file:
            file[name]


def command(*arguments: str) -> None:
    """A command of tqcodec, its output thrown away."""
    out, sys.stdout = sys.stdout, Path(os.devnull).open("w")  # noqa: SIM115 - closed at once
    try:
        commands.main(list(arguments))
    finally:
        sys.stdout.close()
        sys.stdout = out


def endured(data: bytes, repeats: int) -> tuple[str, float, int]:
    """How a hostile or large file ends, the best of its seconds, and its memory."""

    def end() -> str:
        try:
            tqcodec.verify(data)
        except tqcodec.DecodeError as error:
            return error.rule
        return "good"

    took = growth(end)
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < PATIENCE:
        start = time.process_time()
        verdict = end()
        seconds.append(time.process_time() - start)
    return verdict, min(seconds), took


# ---- in this process ----


def fresh(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a process of its own, which shares no memory with this one."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def memory_rows(model: Path, folder: Path) -> Iterator[list[str]]:
    """One row for each operation of each mode."""
    arrays = checkpoints.read(str(model)).tensors.values()
    whole, largest = sum(a.nbytes for a in arrays), max(a.nbytes for a in arrays)
    print(f"{model.name}: {len(arrays)} tensors, {whole:,} bytes, the largest {largest:,}\n")
    packed = folder / "x.tqc"
    for mode, settings in MODES.items():
        calls: dict[str, Callable[[], object]] = {}
        calls["encode"] = partial(encode, str(model), str(packed), settings)
        calls["decode all"] = partial(tqcodec.load, packed)
        calls["decode one by one"] = partial(stream, str(packed))
        calls["verify"] = partial(tqcodec.verify, packed)
        for suffix in (".safetensors", ".npz") if mode == "4 bits" else ():
            out = str(folder / f"x{suffix}")
            calls[f"command decode {suffix}"] = partial(
                command, "decode", str(packed), "-f", "-o", out
            )
        for name, call in calls.items():
            took = fresh(growth, call)
            ratios = [f"{took / whole:.2f}", f"{took / largest:.2f}"]
            yield [f"{mode}: {name}", f"{took / 1e6:.1f}", *ratios]


@contextmanager
def equal_tensors(count: int, side: int) -> Iterator[Path]:
    """A model of many tensors of one size, and a folder for what is made of it."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{count} x {side} x {side}.safetensors"
        tensors = {
            f"{i}.weight": rng.normal(size=(side, side)).astype(np.float32) for i in range(count)
        }
        save_file(tensors, path)
        yield path


def hostile_files() -> Iterator[tuple[str, bytes]]:
    """The bombs, then the legal files known to take the longest for their size."""
    from test_damage import BOMBS, small_bundles  # not in the processes that are measured

    for name, build in BOMBS.items():
        yield name, build()
    yield "legal: values", many_values()
    for count in (5_000, 10_000, 20_000):
        yield f"legal: {count} bundles", small_bundles(count)
    for rows, columns in ((1 << 18, 64), (4096, 1024), (4096, 2048), (4096, 4096)):
        yield f"legal: {rows} x {columns}, basis", basis_file(rows, columns)


def many_values() -> bytes:
    """As many values in a directory as its bytes in the file allow."""
    import msgpack
    from damage import assemble
    from test_damage import padding

    from tqcodec.format.directory import values_allowed
    from tqcodec.format.reader import deflate

    text = padding(1 << 17)
    count = values_allowed(len(deflate(text))) - 16
    return assemble(msgpack.packb({"a": text.decode(), "b": [0] * count}), [])


def basis_file(rows: int, columns: int) -> bytes:
    """A matrix of zeros at one bit each, with a dense basis on its columns that costs no bits."""
    from damage import assemble

    from tqcodec.format.directory import write_directory
    from tqcodec.format.dtypes import DTYPES
    from tqcodec.format.entries import Directory, Entry, Segment
    from tqcodec.format.reader import sv, uv
    from tqcodec.format.registry import TABLE_SUM, Axis, BasisKind, Coding, PayloadKind, Quantizer

    height = (1 << 20) // columns
    head = bytes([Axis.OUT, Axis.IN]) + uv(1) + sv(0) + bytes([Quantizer.UNIFORM])
    head += bytes([PayloadKind.FIXED]) + uv(height) + uv(columns)
    head += bytes([BasisKind.NONE, BasisKind.EXPLICIT]) + uv(columns) + bytes(columns) + b"\0\0"
    head += bytes([BasisKind.NONE]) + b"\0\1" * 3  # depths, row scales and multipliers of 1
    stream = uv(0) + uv(0)
    tiles = [bytes(min(height, rows - i) * columns // 8) for i in range(0, rows, height)]
    segments = [head + stream + tiles[0], *tiles[1:]]
    tables = uv(1) + bytes([0, 0]) + sv(1) + uv(1) + uv(TABLE_SUM)  # every entry is 1
    first, *rest = (Segment(len(data), zlib.crc32(data)) for data in [tables, *segments])
    check = zlib.crc32(bytes(rows * columns))
    shape, dtype = (rows, columns), DTYPES["F8_E5M2"]
    entry = Entry("t", dtype, shape, Coding.TRANSFORM, check, tuple(rest))
    return assemble(write_directory(Directory((entry,), (), first))[0], [tables, *segments])


def main() -> None:
    parser = command_parser("reliability", __doc__)
    parser.add_argument("models", nargs="*", type=Path, help=".safetensors files to measure")
    parser.add_argument("--tensors", type=int, default=64, help="of the synthetic model")
    parser.add_argument("--side", type=int, default=512, help="of each; default %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="of each bomb, for its time")
    options = parser.parse_args()
    os.environ.update(ONE_THREAD)
    heads = ["memory", "MB", "of the model", "of the largest tensor"]
    with equal_tensors(options.tensors, options.side) as synthetic:
        for model in [*options.models, synthetic]:
            print_aligned([heads, *memory_rows(model, synthetic.parent)], left=1)
            print()
    rows = [["hostile file", "bytes", "ends in", "CPU ms", "MB"]]
    for name, data in hostile_files():
        verdict, seconds, took = fresh(endured, data, options.repeats)
        rows.append([name, f"{len(data):,}", verdict, f"{1e3 * seconds:.1f}", f"{took / 1e6:.1f}"])
    print_aligned(rows, left=1)


if __name__ == "__main__":
    main()
