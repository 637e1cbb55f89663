"""Ways to read whole files, side by side in one run.

    python -m benchmarks.decoders FILE.tqc... [--before OLD/bin/python]

Best of several runs each, in milliseconds and in million elements a second; one thread unless said
otherwise: by the format layer alone (numpy and constriction), `load`, `load` with two threads,
`open(path)[name]` over all tensors, and what `tqcodec info` does. `--before` adds `info` by another
version. The format layer is left out where it would take more than about ten seconds.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import tqcodec
from benchmarks.common.command import command_parser
from tqcodec.cli import describe
from tqcodec.format.container import Container

RUNS = 7
SLOW = 8 * 10**6  # elements from which on the format layer is left out
BEFORE = """
import sys, time, tqcodec
from tqcodec.cli import describe
best = float("inf")
for _ in range(int(sys.argv[2])):
    start = time.perf_counter()
    with tqcodec.open(sys.argv[1]) as file:
        describe.info(file.container)
    best = min(best, time.perf_counter() - start)
print(best)
"""


def by_format_layer(path: Path) -> None:
    """Decode with numpy and constriction."""
    for _ in Container.of(path.read_bytes()).decode_all():
        pass


def one_by_one(path: Path) -> None:
    """Each tensor when it is asked for."""
    with tqcodec.open(path) as file:
        for name in file:
            file[name]


def info(path: Path) -> None:
    """What `tqcodec info` does before it prints."""
    with tqcodec.open(path) as file:
        describe.info(file)


def info_before(path: Path, python: str) -> float:
    """Seconds of `info` by another version."""
    command = [python, "-c", BEFORE, str(path.resolve()), str(RUNS)]
    elsewhere = Path(python).parent  # not where this package lies, which would come first
    return float(subprocess.check_output(command, text=True, cwd=elsewhere))


WAYS: dict[str, Callable[[Path], object]] = {
    "format layer": by_format_layer,
    "load": tqcodec.load,
    "load, 2 threads": lambda path: tqcodec.load(path, workers=2),
    "open, one by one": one_by_one,
    "info": info,
}


def best(act: Callable[[Path], object], path: Path) -> float:
    """Seconds of the fastest run."""
    fastest = float("inf")
    for _ in range(RUNS):
        start = time.perf_counter()
        act(path)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def main() -> None:
    """Print one line for each way to read each file."""
    parser = command_parser("decoders", __doc__)
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path)
    parser.add_argument("--before", metavar="PYTHON", help="of another version's environment")
    options = parser.parse_args()
    print(f"{'file':28s}{'way':20s}{'ms':>9s}{'M/s':>8s}{'of load':>9s}")
    for path in options.files:
        with tqcodec.open(path) as file:
            elements = sum(entry.elements for entry in file.container.directory.entries)
        seconds = {
            name: best(way, path)
            for name, way in WAYS.items()
            if way is not by_format_layer or elements < SLOW
        }
        if options.before:
            seconds["info before"] = info_before(path, options.before)
        for name, found in seconds.items():
            ratio = found / seconds["load"]
            speed = elements / found / 1e6
            print(f"{path.name:28s}{name:20s}{1e3 * found:9.1f}{speed:8.1f}{ratio:9.2f}")


if __name__ == "__main__":
    main()
