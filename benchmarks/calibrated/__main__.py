"""Calibrated tqcodec beside NNCodec, data-free tqcodec and error feedback, by what outputs lose.

    python -m benchmarks.calibrated --nncodec-python ENV/bin/python --out results.csv \
        --plot results.png \
        --network resnet32 cifar10 cifar_resnet.py 32 cifar10_train.npz cifar10_test.npz \
        --network efficientnet_lite0 efficientnet_lite0 photographs.zip

A network is a name, a builder of `common/subjects.py` (or FILE.py:FUNCTION) and the builder's
arguments. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.calibrated.encoders import (
    ANOTHER,
    CALIBRATED,
    DATA_FREE,
    FEEDBACK,
    MADE_UP,
    RATES,
    RETRAINED,
    another,
    calibrate,
    calibrated,
    data_free,
    made_up,
    retrained,
)
from benchmarks.calibrated.encoders import error_feedback as feedback_points
from benchmarks.calibrated.peers import VARIANTS, sweep
from benchmarks.calibrated.points import FLOAT, Judge, Point, read_points
from benchmarks.calibrated.tables import (
    NNCODEC,
    curves_of,
    print_interpolated,
    print_points,
    print_ratios,
)
from benchmarks.calibrated.targets import judge as judge_targets
from benchmarks.common.command import command_parser, parse_networks
from benchmarks.common.records import RecordFile
from benchmarks.common.subjects import build
from benchmarks.common.verdicts import print_verdicts

CONTENDERS = {
    "nncodec": NNCODEC,
    "data-free": DATA_FREE,
    "another": ANOTHER,
    "feedback": FEEDBACK,
    "calibrated": CALIBRATED,
}
"""What `--run` calls them, and how their names begin in the tables."""

GIVEN = {"made_up": MADE_UP, "retrained": RETRAINED}
"""Those that are measured for networks for which an option names files, and their names."""


def main() -> None:
    """Measure, write, print, judge."""
    options = _options()
    torch.set_num_threads(options.workers)
    reused: list[Point] = []
    for path in options.reuse:
        found = read_points(path)
        newer = {(p.network, p.contender) for p in found}
        reused = [p for p in reused if (p.network, p.contender) not in newer] + found
    file = RecordFile(options.out, Point)
    points: dict[str, list[Point]] = {}
    for name, builder, *arguments in options.network:
        known = [p for p in reused if p.network == name]
        points[name] = []
        for point in _measure(name, builder, arguments, known, options):
            file.add([point])
            points[name].append(point)
            _progress(point)
    _report(points, options)


def _measure(
    name: str,
    builder: str,
    arguments: Sequence[str],
    known: Sequence[Point],
    options: argparse.Namespace,
) -> Iterator[Point]:
    given = {key: [f for n, f in getattr(options, key) if n == name] for key in GIVEN}
    run = [*options.run, *(key for key, files in given.items() if files)]
    for key, start in {**CONTENDERS, **GIVEN}.items():
        if key not in run:
            yield from (p for p in known if p.contender.startswith(start))
    if not run:
        yield from (p for p in known if p.contender == FLOAT)
        return
    subject = build(builder, arguments)
    judge = Judge(name, subject)
    yield judge.float_point()
    if "data-free" in options.run:
        yield from data_free(judge, subject, options.workers, options.bits)
    for path in given["made_up"]:
        yield from made_up(judge, subject, options.workers, options.bits, path)
    for path in given["retrained"]:
        yield retrained(judge, Path(path))
    if "another" in options.run and options.another is not None:
        yield from another(judge, subject, options.another, options.bits)
    if {"feedback", "calibrated"} & set(options.run):
        calibration = calibrate(subject)
        print(f"{name}: statistics in {calibration.seconds:.1f} s", file=sys.stderr, flush=True)
        if "calibrated" in options.run:
            yield from calibrated(judge, subject, options.workers, options.bits, calibration)
        if "feedback" in options.run:
            yield from feedback_points(judge, calibration, options.bits)
    if "nncodec" in options.run:
        for variant in VARIANTS:
            yield from sweep(
                judge, options.nncodec_python, variant, options.range, options.every, known
            )


def _report(points: dict[str, list[Point]], options: argparse.Namespace) -> None:
    verdicts = []
    print_points([point for chosen in points.values() for point in chosen])
    for network, chosen in points.items():
        curves = curves_of([p for p in chosen if p.contender != FLOAT])
        print_interpolated(network, curves)
        print_ratios(network, curves, [CALIBRATED, FEEDBACK, MADE_UP, DATA_FREE, ANOTHER])
        verdicts += judge_targets(network, chosen, curves)
    if verdicts:
        print_verdicts(verdicts)
    if options.plot:
        from benchmarks.calibrated.plot import plot  # only the picture needs matplotlib

        plot(options.plot, points)


def _progress(point: Point) -> None:
    print(
        f"{point.network}: {point.contender}, {point.setting}: {point.bits:.3f} bits, "
        f"KL {point.kl:.4f}, top-1 {point.top1:.2f}",
        file=sys.stderr,
        flush=True,
    )


def _options() -> argparse.Namespace:
    parser = command_parser("calibrated", __doc__)
    parser.add_argument(
        "--run",
        nargs="*",
        choices=list(CONTENDERS),
        default=list(CONTENDERS),
        help="contenders to measure, none for tables alone; the rest is taken from --reuse (all)",
    )
    parser.add_argument(
        "--bits",
        nargs="+",
        type=float,
        default=RATES,
        help="bits per weight at which all but NNCodec are measured",
    )
    parser.add_argument(
        "--reuse",
        action="append",
        default=[],
        type=Path,
        metavar="CSV",
        help="points of an earlier run, of several the last that has a contender; NNCodec's are "
        "never measured again",
    )
    parser.add_argument(
        "--nncodec-python",
        type=Path,
        help="interpreter of the environment that setup_nncodec.sh makes",
    )
    parser.add_argument(
        "--another",
        metavar="TQCODEC",
        help="command line tool of another version, to be measured without data too",
    )
    for option, metavar, about in (
        ("--made-up", "INPUTS.npz", "inputs that `tqcodec encode --save-inputs` made of a network"),
        ("--retrained", "FILE.tqc", "a file of a network that was trained with its bits"),
    ):
        parser.add_argument(
            option,
            nargs=2,
            action="append",
            default=[],
            metavar=("NETWORK", metavar),
            help=f"{about}; may be given several times",
        )
    parser.add_argument(
        "--range",
        nargs=2,
        type=float,
        default=(0.95, 6.0),
        metavar=("LEAST", "MOST"),
        help="bits per weight over which NNCodec is swept (0.95 6)",
    )
    parser.add_argument(
        "--every", type=int, default=1, help="take every N-th of NNCodec's parameters (1)"
    )
    parser.add_argument("--workers", type=int, default=2, help="threads and processes (2)")
    parser.add_argument("--out", type=Path, help="write every point to this CSV file")
    parser.add_argument("--plot", type=Path, help="write the curves to this PNG file")
    options = parse_networks(parser)
    if "nncodec" in options.run and options.nncodec_python is None:
        parser.error("--nncodec-python is missing")
    return options


if __name__ == "__main__":
    main()
