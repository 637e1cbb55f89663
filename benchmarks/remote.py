"""What reading over a network takes: requests, bytes, time, and what kills cost.

    python -m benchmarks.remote FLOAT32.safetensors FILE.tqc

FILE.tqc is FLOAT32.safetensors, encoded. Both are served on the loopback by a server that counts,
and sends no faster than it is told (all connections together). safetensors files are read with
ranges as well: 64 KiB, which hold the header, then the tensor. Time to the first tensor is that of
`tqcodec.stream`, and of a safetensors file by ranges; time to the whole network that of
`tqcodec.torch.load`, and of fetching a safetensors file and `safetensors.torch.load`. The bfloat16
file is the float32 one, rounded. "killed" is `tqcodec.fetch`, ended by SIGKILL at random moments.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy
import safetensors.torch

import tqcodec
import tqcodec.torch
from benchmarks.common.command import command_parser
from benchmarks.common.servers import Faults, Server
from benchmarks.common.tables import print_aligned
from tqcodec.cli.describe import info
from tqcodec.format.header import read_header
from tqcodec.format.registry import HEADER_SIZE

FIRST = 1 << 16  # bytes of the first request, of both formats
SPEEDS = (10, 100)  # Mbit/s
KILLS = 20
FETCH = "import sys, tqcodec; tqcodec.fetch(sys.argv[1], sys.argv[2])"


def ranged(url: str, start: int, end: int) -> bytes:
    """Bytes of a file by one request."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-{end - 1}"})
    with urllib.request.urlopen(request) as response:
        return bytes(response.read())


def safetensors_header(url: str) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its tensors begin."""
    first = ranged(url, 0, FIRST)
    start = 8 + int.from_bytes(first[:8], "little")
    if start > len(first):
        first += ranged(url, len(first), start)
    return json.loads(first[8:start]), start


def safetensors_tensor(url: str, name: str | None) -> None:
    """One tensor of a safetensors file; the first one of it where no name is given."""
    header, start = safetensors_header(url)
    header.pop("__metadata__", None)
    wanted = header[name] if name is not None else min(header.values(), key=_offset)
    begin, end = wanted["data_offsets"]
    if start + end > FIRST:
        ranged(url, start + begin, start + end)


def _offset(fields: dict[str, Any]) -> int:
    begin, _ = fields["data_offsets"]
    return int(begin)


def whole(url: str) -> None:
    """All tensors of a safetensors file."""
    with urllib.request.urlopen(url) as response:
        safetensors.torch.load(response.read())


def tqc_info(url: str) -> None:
    """What `tqcodec info` does."""
    with tqcodec.open(url) as file:
        info(file, full=False)


def tqc_tensor(url: str, name: str) -> None:
    """One tensor of a `.tqc` file."""
    with tqcodec.open(url) as file:
        file[name]


def first_of(url: str) -> None:
    """The first tensor that a stream gives."""
    next(iter(tqcodec.stream(url)))


def seconds(act: Callable[..., object], *arguments: object) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    act(*arguments)
    return time.perf_counter() - start


def requests_of(server: Server, name: str) -> list[list[str]]:
    """Rows of requests and bytes: what is read, of `.tqc`, and of safetensors."""
    tqc, floats = f"{server.url}/m.tqc", f"{server.url}/f32.safetensors"
    acts: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        ("info", lambda: tqc_info(tqc), lambda: safetensors_header(floats)),
        (name, lambda: tqc_tensor(tqc, name), lambda: safetensors_tensor(floats, name)),
        ("all, load", lambda: tqcodec.load(tqc), lambda: whole(floats)),
        ("all, stream", lambda: list(tqcodec.stream(tqc)), lambda: whole(floats)),
    ]
    rows = [["read", "requests", "bytes", "safetensors: requests", "bytes"]]
    for what, ours, theirs in acts:
        row = [what]
        for act in (ours, theirs):
            server.reset()
            act()
            row += [str(len(server.requests)), str(server.sent)]
        rows.append(row)
    return rows


def times_of(server: Server) -> list[list[str]]:
    """Rows of times at each speed."""
    rows = [["Mbit/s", "file", "first tensor s", "whole network s"]]
    for speed in SPEEDS:
        server.faults = Faults(rate=speed * 1e6 / 8)
        url = f"{server.url}/m.tqc"
        pair = [seconds(first_of, url), seconds(tqcodec.torch.load, url)]
        rows.append([str(speed), ".tqc", *(f"{s:.2f}" for s in pair)])
        for kind in ("f32", "bf16"):
            place = f"{server.url}/{kind}.safetensors"
            pair = [seconds(safetensors_tensor, place, None), seconds(whole, place)]
            rows.append([str(speed), f"{kind} safetensors", *(f"{s:.2f}" for s in pair)])
    server.faults = Faults()
    return rows


def killed(server: Server, folder: Path, length: int, kills: int) -> tuple[int, int]:
    """Kills of a download, and the bytes that it took in all.

    Between two kills it has a random time, of a second on average.
    """
    path = folder / "copy.tqc"
    span = 1.0  # seconds between two kills, on average
    server.faults = Faults(rate=length / (1.5 * span * kills))  # so that it lasts long enough
    server.reset()
    draw, done = random.Random(0), 0
    while not path.exists():
        command = [sys.executable, "-c", FETCH, f"{server.url}/m.tqc", str(path)]
        before = len(server.requests)
        with subprocess.Popen(command) as process:
            while len(server.requests) == before and process.poll() is None:
                time.sleep(0.005)
            wait = draw.uniform(0, 2 * span) if done < kills else 3600
            try:
                process.wait(wait)
                assert process.returncode == 0, "the download has failed"
            except subprocess.TimeoutExpired:
                process.kill()
                done += 1
    assert path.read_bytes() == server.files["/m.tqc"], "the copy is another file"
    server.faults = Faults()
    return done, server.sent


def main() -> None:
    options = parsed()
    floats, data = options.floats.read_bytes(), options.file.read_bytes()
    arrays = safetensors.numpy.load(floats)
    rounded = {
        name: array.astype(ml_dtypes.bfloat16) if array.dtype == np.float32 else array
        for name, array in arrays.items()
    }
    files = {
        "/m.tqc": data,
        "/f32.safetensors": floats,
        "/bf16.safetensors": safetensors.numpy.save(rounded),
    }
    name = max(arrays, key=lambda key: arrays[key].nbytes)
    directory = HEADER_SIZE + read_header(data[:HEADER_SIZE]).stored
    print(f"{options.file.name}: {len(data)} bytes, directory {directory}; float32 {len(floats)}")
    with Server(files) as server, tempfile.TemporaryDirectory() as folder:
        print_aligned(requests_of(server, name), left=1)
        kills, sent = killed(server, Path(folder), len(data), options.kills)
        more = 100 * (sent - len(data)) / len(data)
        print(f"download killed {kills} times: {sent} bytes, {more:.2f} % more than the file")
        print_aligned(times_of(server))


def parsed() -> argparse.Namespace:
    parser = command_parser("remote", __doc__ or "")
    parser.add_argument("floats", type=Path, metavar="FLOAT32.safetensors")
    parser.add_argument("file", type=Path, metavar="FILE.tqc")
    parser.add_argument("--kills", type=int, default=KILLS, help="default %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    main()
