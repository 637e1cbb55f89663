"""Memory, time and multiplications of a network whose weights come from a `.tqc` file, by mode.

    python -m benchmarks.inference NETWORK.py:FUNCTION model.tqc --input 3 32 32
    python -m benchmarks.inference NETWORK.py:FUNCTION model.tqc --input 128 --tokens 30522

FUNCTION returns the network. Each way runs in a process of its own with one thread: dense float32
and bfloat16, dynamic int8 of torch (linear layers alone), and the modes "transform" and "lazy" of
`tqcodec.torch.network`. Memory of weights is that of parameters and buffers, for "lazy" the file
and the two largest layers that follow each other; resident memory is what the process has taken
since its libraries were there, after loading and at most afterwards. Times are medians.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tqcodec.torch
from benchmarks.common.command import command_parser
from benchmarks.common.subjects import module_of
from benchmarks.workers.process import ONE_THREAD
from tqcodec.torch.inference.coefficients import Coefficients
from tqcodec.torch.inference.lazy import Lazy

WAYS = ("float32", "bfloat16", "int8", "transform", "lazy")
RUNS = 7
HEAD = f"{'way':10} {'weights':>10} {'resident':>9} {'peak':>9} {'load s':>7}"


def resident() -> tuple[int, int]:
    """Resident memory of this process, now and at most, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return int(found["VmRSS"].split()[0]), int(found["VmHWM"].split()[0])


def settle() -> tuple[int, int]:
    """`resident` without memory that is free, the peak forgotten."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident()


def load(way: str, model: nn.Module, path: str) -> nn.Module:
    """The network by one way."""
    mode: Any = way if way in ("transform", "lazy") else "weights"
    model = tqcodec.torch.network(model, path, mode, strict=False)  # checkpoints hold more
    if way == "bfloat16":
        return model.bfloat16()
    if way == "int8":
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    return model


def weight_bytes(network: nn.Module, path: str) -> int:
    """Memory of all weights."""
    holders = [module for module in network.modules() if isinstance(module, Lazy)]
    tensors = [*network.parameters(), *network.buffers()]
    for module in network.modules():
        if isinstance(module, torch.ao.nn.quantized.dynamic.Linear):  # which has no parameters
            tensors += [module.weight(), module.bias()]
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if holders:
        sizes = sorted(4 * torch.Size(holder._shape).numel() for holder in holders)
        total += Path(path).stat().st_size + sum(sizes[-2:])
    return total


def multiplications(network: nn.Module) -> tuple[int, int]:
    """For each position, dense and by the way that is taken, over layers with coefficients."""
    found = [m.operations for m in network.modules() if isinstance(m, Coefficients)]
    return sum(o.dense for o in found), sum(o.least for o in found)


def example(shape: list[int], tokens: int | None, batch: int) -> Tensor:
    """An input, the same each time."""
    generator = torch.Generator().manual_seed(0)
    if tokens is not None:
        return torch.randint(0, tokens, (batch, *shape), generator=generator)
    return torch.randn((batch, *shape), generator=generator)


def measure(way: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One way, in this process."""
    torch.set_num_threads(1)
    file, _, function = arguments.network.rpartition(":")
    builder = getattr(module_of(Path(file)), function)
    before, _ = settle()
    model = builder().eval()
    start = time.perf_counter()
    network = load(way, model, arguments.file)
    found: dict[str, Any] = {"load": time.perf_counter() - start}
    del model
    found["weights"] = weight_bytes(network, arguments.file)
    found["resident"] = settle()[0] - before
    found["dense"], found["least"] = multiplications(network)
    found["outputs"], found["times"] = [], []
    for batch in arguments.batch:
        x = example(arguments.input, arguments.tokens, batch)
        x = x.bfloat16() if way == "bfloat16" and x.is_floating_point() else x
        with torch.inference_mode():
            times = []
            for _ in range(RUNS):
                start = time.perf_counter()
                y = network(x)
                times.append(time.perf_counter() - start)
        found["times"].append(statistics.median(times[1:]) if RUNS > 1 else times[0])
        found["outputs"].append(_tensor(y).float().flatten()[:1000].tolist())
    found["peak"] = resident()[1] - before
    return found


def _tensor(y: Any) -> Tensor:
    """The outputs of a network, or the first of several."""
    return y if isinstance(y, Tensor) else next(iter(y.values() if isinstance(y, dict) else y))


def error(found: list[float], expected: list[float]) -> float:
    """Largest difference, relative to the largest number."""
    largest = max(map(abs, expected)) or 1.0
    return max(abs(a - b) for a, b in zip(found, expected, strict=True)) / largest


def parse() -> argparse.Namespace:
    """The command line."""
    parser = command_parser("inference", __doc__)
    parser.add_argument("network", metavar="FILE.py:FUNCTION")
    parser.add_argument("file", metavar="FILE.tqc")
    parser.add_argument("--input", type=int, nargs="+", required=True, help="shape without batch")
    parser.add_argument("--tokens", type=int, help="inputs are numbers below this")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--one", choices=WAYS, help="this way alone, in this process, as JSON")
    return parser.parse_args()


def main() -> None:
    """Print a row for each way."""
    arguments = parse()
    if arguments.one is not None:
        print(json.dumps(measure(arguments.one, arguments)))
        return
    batches = "".join(
        f" {f'{batch}: ms':>9} {'of f32':>7} {'error':>8}" for batch in arguments.batch
    )
    print(HEAD + batches)
    first: dict[str, Any] = {}
    for way in arguments.ways:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.inference", *sys.argv[1:]]
        command += ["--one", way]
        environment = os.environ | ONE_THREAD
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            print(f"{way:10} {done.stderr.strip().splitlines()[-1]}")
            continue
        row = json.loads(done.stdout.splitlines()[-1])
        first = first or row
        line = (
            f"{way:10} {row['weights']:10} {row['resident']:8}K {row['peak']:8}K {row['load']:7.3f}"
        )
        for i, seconds in enumerate(row["times"]):
            wrong = error(row["outputs"][i], first["outputs"][i])
            line += f" {1000 * seconds:9.1f} {seconds / first['times'][i]:7.2f} {wrong:8.1e}"
        print(line, flush=True)
        if way == "transform":
            print(f"{'':10} multiplications a position: {row['dense']} dense, {row['least']} taken")


if __name__ == "__main__":
    main()
