"""Files calibrated on made-up inputs beside those calibrated on real ones, and on nothing.

    python -m benchmarks.synthetic --out synthetic.csv \
        --network resnet32 cifar10 cifar_resnet.py 32 cifar10_train.npz cifar10_test.npz \
        --network efficientnet_lite0 efficientnet_lite0 photographs.zip \
        --network faces faces onet.pt photographs.zip
    python -m benchmarks.synthetic --bits 4.25 4 3 --rounding \
        --network minilm sentences MINILM_FOLDER

A network is a name, a builder of `cases.py` and the builder's arguments. Made-up inputs are those
of the default, or for each `--made LABEL KEY=VALUE...` those of other arguments: `count`, `size`,
`tokens`, fields of the recipe (`steps`, `rate`, `moments`, `outputs`, `smoothness`, `batch`),
`probes` of the calibration and `tune` (0 or 1). `--inputs FOLDER` keeps what was made, and takes
it from there the next time:

    python -m benchmarks.synthetic --skip-real --bits 3 2 \
        --network resnet20 cifar10_held_out cifar_resnet.py 20 cifar10_train.npz \
        --made leaves steps=0 --made "20 steps" steps=20 --made fewer count=256
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

import tqcodec
import tqcodec.torch
from benchmarks.common.command import command_parser, parse_networks
from benchmarks.common.records import RecordFile
from benchmarks.synthetic import rounding
from benchmarks.synthetic.cases import Case, build
from tqcodec.encoder.statistics import Statistics
from tqcodec.torch.inputs import DataOptions, load_batches
from tqcodec.torch.synthetic.file import save_inputs
from tqcodec.torch.synthetic.steps import SyntheticRecipe

RATES = (4.0, 3.0, 2.0)
NOTHING, REAL, MADE = "weights alone", "real inputs", "made-up inputs"

Contender = tuple[Statistics | None, Sequence[Any] | None]  # what a file is made with


@dataclass(frozen=True)
class Row:
    """One file.

    Attributes:
        asked: bits of the whole file over the elements of all weight matrices; of rounding, what
            it takes.
        divergence: as of `cases.Loss`, with the next two.
        inputs_s: CPU seconds of making the inputs.
        calibrate_s: CPU seconds of calibration.
        encode_s: CPU seconds of the encoder, tuning and verification included.
    """

    network: str
    contender: str
    asked: float
    bytes: int
    divergence: float
    error: float
    agreement: float
    inputs_s: float
    calibrate_s: float
    encode_s: float


def main() -> None:
    """Measure, write, print."""
    options = _options()
    torch.set_num_threads(options.threads)
    variants = {label: _settings(pairs) for label, *pairs in options.made} or {MADE: {}}
    rows = []
    file = RecordFile(options.out, Row)
    for name, builder, *arguments in options.network:
        for row in _measured(name, build(builder, arguments), variants, options):
            rows.append(row)
            file.add([row])
            print(row, file=sys.stderr, flush=True)
    _print(rows)


def _measured(
    name: str, case: Case, variants: Mapping[str, Mapping[str, float]], options: argparse.Namespace
) -> Iterator[Row]:
    if not options.skip_nothing:
        yield from _files(name, NOTHING, case, (None, None), (0.0, 0.0), options)
    if options.rounding:
        yield from _rounded(name, case)
    if not options.skip_real:
        start = time.process_time()
        statistics = tqcodec.torch.calibrate(case.model, case.real)
        seconds = (0.0, time.process_time() - start)
        yield from _files(name, REAL, case, (statistics, case.tuning), seconds, options)
    for label, settings in variants.items():
        start = time.process_time()
        batches = _kept(f"{name}, {label}", case, settings, options.inputs)
        made = time.process_time()
        probes = int(settings["probes"]) if "probes" in settings else None
        statistics = tqcodec.torch.calibrate(case.model, batches, probes=probes).made_up()
        seconds = (made - start, time.process_time() - made)
        tune = batches if settings.get("tune", 1) else None
        yield from _files(name, label, case, (statistics, tune), seconds, options)


def _rounded(network: str, case: Case) -> Iterator[Row]:
    state = case.model.state_dict()
    weights = sum(one.numel() for one in state.values() if one.ndim >= 2)
    for label, method in rounding.CONTENDERS.items():
        found, size = rounding.rounded(state, method)
        loss = case.judge(found)
        bits = round(8 * size / weights, 2)
        values = loss.divergence, loss.error, loss.agreement
        yield Row(network, label, bits, size, *values, 0.0, 0.0, 0.0)


def _kept(title: str, case: Case, settings: Mapping[str, float], folder: Path | None) -> list[Any]:
    """Made-up inputs, from the file of an earlier run if there is one."""
    if folder is None:
        return _made(case, settings)
    path = folder / f"{title}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        save_inputs(path, _made(case, settings))
    return [inputs for inputs, _ in load_batches(str(path), DataOptions())]


def _made(case: Case, settings: Mapping[str, float]) -> list[Any]:
    """Made-up inputs by the arguments of `--made`."""
    known = {
        field.name: type(getattr(SyntheticRecipe(), field.name))
        for field in fields(SyntheticRecipe)
    }
    recipe = SyntheticRecipe(
        **{name: known[name](settings[name]) for name in known if name in settings}
    )
    arguments = {n: int(settings[n]) for n in ("count", "size", "tokens") if n in settings}
    return tqcodec.torch.synthetic_inputs(case.model, recipe=recipe, **{**case.made, **arguments})


def _files(
    network: str,
    label: str,
    case: Case,
    given: Contender,
    seconds: tuple[float, float],
    options: argparse.Namespace,
) -> Iterator[Row]:
    for bits in options.bits:
        settings = tqcodec.Settings(bits=bits, workers=options.threads)
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", tqcodec.EncodeWarning)
            statistics, tune = given
            data = tqcodec.torch.encode(case.model, settings, statistics, tune=tune)
        encoding = time.process_time() - start
        loss = case.judge(tqcodec.torch.decode(data))
        found = loss.divergence, loss.error, loss.agreement
        yield Row(network, label, bits, len(data), *found, *seconds, encoding)


def _print(rows: Sequence[Row]) -> None:
    """One line for each contender; in parentheses the ratio to real inputs, else to nothing."""
    for network in dict.fromkeys(row.network for row in rows):
        all_rows = [row for row in rows if row.network == network]
        chosen = [row for row in all_rows if row.contender not in rounding.CONTENDERS]
        rates = list(dict.fromkeys(row.asked for row in chosen))
        print(f"\n{network}: divergence (times that of real inputs), agreement in per cent\n")
        print(f"{'':28s}" + "".join(f"{rate:>23g} bits" for rate in rates) + "   CPU seconds")
        base = {row.asked: row.divergence for row in chosen if row.contender == REAL}
        for label in dict.fromkeys(row.contender for row in chosen):
            own = [row for row in chosen if row.contender == label]
            cells = [_cell(row, base.get(row.asked)) for row in own]
            seconds = f"{own[0].inputs_s:.0f} + {own[0].calibrate_s:.0f} + {own[0].encode_s:.0f}"
            print(f"{label:28s}" + "".join(f"{cell:>28s}" for cell in cells) + f"   {seconds}")
        for row in all_rows:
            if row.contender in rounding.CONTENDERS:
                print(f"{row.contender:28s}{row.asked:>10.2f} bits: {_cell(row, None)}")


def _cell(row: Row, base: float | None) -> str:
    ratio = "" if base is None else f" ({row.divergence / base:.2f})"
    return f"{row.divergence:.4f}{ratio} {row.agreement:.1f}"


def _settings(pairs: Sequence[str]) -> dict[str, float]:
    return {name: float(value) for name, _, value in (pair.partition("=") for pair in pairs)}


def _options() -> argparse.Namespace:
    parser = command_parser("synthetic", __doc__)
    parser.add_argument(
        "--made",
        action="append",
        default=[],
        nargs="+",
        metavar=("LABEL", "KEY=VALUE"),
        help="another way to make inputs; may be given several times",
    )
    parser.add_argument("--bits", nargs="+", type=float, default=RATES, help="rates (4 3 2)")
    parser.add_argument("--skip-real", action="store_true", help="do without real inputs")
    parser.add_argument("--skip-nothing", action="store_true", help="do without weights alone")
    parser.add_argument(
        "--rounding", action="store_true", help="round in groups and to NF4 as well"
    )
    parser.add_argument("--inputs", type=Path, help="folder that keeps made-up inputs")
    parser.add_argument("--threads", type=int, default=1, help="threads and processes (1)")
    parser.add_argument(
        "--out", type=Path, help="write every row to this CSV file when it is measured"
    )
    return parse_networks(parser)


if __name__ == "__main__":
    main()
