"""Compares tqcodec with NNCodec, plain rounding, ZipNN and zstd on the same weights, in one run.

See benchmarks/README.md for the environments and the networks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.common.command import command_parser
from benchmarks.common.records import RecordFile
from benchmarks.common.verdicts import print_verdicts
from benchmarks.compare.contenders import nncodec, tqcodec
from benchmarks.compare.lossless import lossless_rows
from benchmarks.compare.network import Network, open_network
from benchmarks.compare.results import SECTIONS, Row, print_tables
from benchmarks.compare.sizes import lossy_points, rounding_rows, size_rows
from benchmarks.compare.speed import speed_rows
from benchmarks.compare.targets import DEFAULT, FAST, judge

ERRORS = (1e-3, 3e-3, 1e-2, 3e-2)
"""The relative weight errors at which files are compared."""
SPEED_ERROR = 1e-2
"""The one at which speed and memory are."""


def main() -> None:
    """Measure every network, write its rows, print the tables and the targets."""
    options = _options()
    file = RecordFile(options.out, Row)
    rows, verdicts = [], []
    for name, source in options.networks:
        with open_network(name, source) as network:
            measured = _measure(network, options)
            file.add(measured)
            rows += measured
            verdicts += judge(network, measured)
    print_tables(rows)
    print_verdicts(verdicts)


def _measure(network: Network, options: argparse.Namespace) -> list[Row]:
    python, peers = Path(sys.executable), options.nncodec_python
    default = tqcodec(python, DEFAULT)
    contenders = [
        default,
        tqcodec(python, FAST, effort=1),
        nncodec(peers, 1.0, options.side_qp),
        nncodec(peers, 0.0, options.side_qp),
    ]

    rows: list[Row] = []
    errors = ERRORS if "size" in options.run else (SPEED_ERROR,)
    if {"size", "speed"} & set(options.run):
        _progress(network, "file bytes at equal error")
        points = lossy_points(network, contenders, errors)
    if "size" in options.run:
        rows += size_rows(network, contenders, points, errors)
    if "rounding" in options.run:
        _progress(network, "rounding by channel")
        rows += rounding_rows(network, default)
    if "speed" in options.run:
        _progress(network, "speed and memory")
        rows += speed_rows(network, contenders, points, SPEED_ERROR, options.repeats)
    if "lossless" in options.run:
        _progress(network, "lossless")
        rows += lossless_rows(network, python, peers)
    return rows


def _progress(network: Network, stage: str) -> None:
    print(f"{network.name}: {stage} ...", file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = command_parser("compare", __doc__)
    parser.add_argument(
        "networks",
        nargs="+",
        type=_named_path,
        metavar="NAME=WEIGHTS",
        help="a .safetensors or .pth file and the name it has in the tables",
    )
    parser.add_argument(
        "--nncodec-python",
        required=True,
        type=Path,
        help="interpreter of the environment that setup_nncodec.sh makes",
    )
    parser.add_argument(
        "--run", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), help="tables (all)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="timings, the best counts (3)")
    parser.add_argument(
        "--side-qp",
        type=int,
        default=-75,
        help="NNCodec's quantization parameter of biases and batch-norm (its default, -75)",
    )
    parser.add_argument("--out", type=Path, help="write every row to this CSV file")
    return parser.parse_args()


def _named_path(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not (name and separator and Path(path).is_file()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE")
    return name, Path(path)


if __name__ == "__main__":
    main()
