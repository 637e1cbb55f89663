"""Decoding of whole files by the format layer and by the decoder in C, side by side in one run.

    python benchmarks/decoders.py FILE.tqc...

Best of several runs each, in milliseconds and in million elements a second; one thread unless said
otherwise. This is what decided that the package uses the decoder in C where it is built.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from tqcodec import api
from tqcodec.format import native_decoder

RUNS = 7


def by_format_layer(data: bytes) -> int:
    """Decode with numpy and the native loops; the number of elements."""
    with api.open(data) as file:
        return sum(patterns.size for _, patterns in file.container.decode_all())


def by_c(data: bytes, workers: int) -> int:
    """Decode with the decoder in C; the number of elements."""
    found = native_decoder.decode(data, None, workers, None)
    if found is None:
        raise SystemExit("the decoder in C is not built, or refuses the file")
    return sum(patterns.size for _, _, patterns in found)


def best(act: Callable[[], int]) -> tuple[float, int]:
    """Seconds of the fastest run, and what it gave."""
    fastest, elements = float("inf"), 0
    for _ in range(RUNS):
        start = time.perf_counter()
        elements = act()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest, elements


def main() -> None:
    """Print one line a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path)
    print(f"{'':24s}{'Python':>16s}{'C':>24s}{'C, 2 threads':>24s}")
    for path in parser.parse_args().files:
        data = path.read_bytes()
        plain, elements = best(lambda d=data: by_format_layer(d))
        line = f"{path.name:24s}{1e3 * plain:8.1f} ms{elements / plain / 1e6:5.0f}"
        for workers in (1, 2):
            seconds, _ = best(lambda d=data, w=workers: by_c(d, w))
            speed = elements / seconds / 1e6
            line += f"{1e3 * seconds:9.1f} ms{speed:5.0f}{plain / seconds:7.1f} x"
        print(line)


if __name__ == "__main__":
    main()
