"""Retrained: residual networks on CIFAR-10 at given sizes, beside files that were not trained.

    python -m benchmarks.retrained --bytes 39650 --epochs 60 --out FOLDER CODE DEPTH TRAIN TEST

CODE is a Python file with `load_resnet(depth)` and `normalize(images)`, TRAIN and TEST are `.npz`
files as `subjects.cifar10` takes them. Trains on all training images, moved by up to 4 pixels and
mirrored, in batches of 128 or `--batch`, in bfloat16 where `--bfloat16` is given; a training that
was cut goes on from its checkpoint in FOLDER, where the files are written, too. Beside it stands
the calibrated and tuned file of the same size. Both are judged once, on the test images; with
`--held-out N` on the last N training images, on which nothing is trained then: for choices.
`--recipe KEY=VALUE` takes another recipe (`tqcodec.torch.TrainingRecipe`), `--settings KEY=VALUE`
other settings (`tqcodec.Settings`, such as `side_bits=4`), `--start FILE` starts at a file of this
network, such as that of an earlier training.
"""

from __future__ import annotations

import ast
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import tqcodec
import tqcodec.torch
from benchmarks.common.command import command_parser
from benchmarks.common.subjects import module_of
from tqcodec.torch import TrainingMoment, TrainingRecipe
from tqcodec.torch.retraining.augment import Augmented

BATCH, CROP = 128, 4
CALIBRATION = 2000  # images
TOLD_EVERY = 100  # steps


class Shuffled:
    """Whole batches of images in another order in each pass, by torch's global generator."""

    def __init__(self, images: Tensor, labels: Tensor, batch: int) -> None:
        self._images, self._labels, self._batch = images, labels, batch

    def __len__(self) -> int:
        return len(self._images) // self._batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._images))
        for chosen in order[: len(self) * self._batch].split(self._batch):
            yield self._images[chosen], self._labels[chosen]


def images_of(module: Any, path: str) -> tuple[Tensor, Tensor]:
    """Normalised images and labels of a `.npz` file."""
    with np.load(path) as file:
        return module.normalize(torch.from_numpy(file["images"])), torch.tensor(file["labels"])


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Images whose first class is the label, in per cent."""
    with torch.no_grad():
        found = torch.cat([network(batch).argmax(1) for batch in images.split(500)])
    return 100 * float((found == labels).double().mean())


def settings_of(pairs: Sequence[str]) -> dict[str, Any]:
    """Fields of `tqcodec.Settings`: Python's numbers and words, or else text."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            values[name] = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            values[name] = text
    return values


def recipe_of(pairs: Sequence[str]) -> TrainingRecipe:
    """The recipe with some values changed; those of several numbers have colons between."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        default = getattr(TrainingRecipe(), name)
        several = isinstance(default, tuple)
        numbers = tuple(float(part) for part in text.split(":") if part)
        values[name] = numbers if several else type(default)(numbers[0])
    return TrainingRecipe(**values)


def parser_of(name: str, text: str) -> ArgumentParser:
    """A parser of what all benchmarks that train have in common."""
    parser = command_parser(name, text)
    parser.add_argument("code", metavar="CODE")
    parser.add_argument("depth", type=int, metavar="DEPTH")
    parser.add_argument("train", metavar="TRAIN")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=BATCH, metavar="N")
    return parser


def options_of() -> Namespace:
    """The command line."""
    parser = parser_of("retrained", __doc__)
    parser.add_argument("test", metavar="TEST", nargs="?")
    parser.add_argument("--bytes", type=int, nargs="+", required=True)
    parser.add_argument("--held-out", type=int, default=0, metavar="N")
    parser.add_argument("--start", type=Path, metavar="FILE")
    parser.add_argument("--recipe", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--settings", nargs="*", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    if (options.test is None) != (options.held_out > 0):
        parser.error("give either TEST or --held-out N")
    return options


def trained(
    model: nn.Module,
    data: Shuffled,
    settings: tqcodec.Settings,
    path: Path,
    options: Namespace,
    **more: Any,
) -> bytes:
    """The file of a training on moved and mirrored images, with its checkpoint beside `path`."""
    return tqcodec.torch.retrain(
        model,
        Augmented(data, CROP, mirror=True),
        settings,
        epochs=options.epochs,
        checkpoint=path.with_suffix(".ckpt"),
        resume=True,
        bfloat16=options.bfloat16,
        compiled=options.compile,
        watch=told,
        **more,
    )


def told(moment: TrainingMoment) -> None:
    """Print where a training is."""
    if moment.step % TOLD_EVERY == 0:
        about = f"loss {moment.loss:.4f}, {moment.size:.0f} bytes, weight {moment.weight:.2f}"
        print(f"  {moment.step} of {moment.steps}: {about}, {moment.seconds:.0f} s", flush=True)


def main() -> None:
    """Train, and print one row a size."""
    options = options_of()
    torch.set_num_threads(options.threads)
    module, recipe = module_of(Path(options.code)), recipe_of(options.recipe)
    images, labels = images_of(module, options.train)
    count = len(images) - options.held_out
    judged = (images[count:], labels[count:])
    if options.test is not None:
        judged = images_of(module, options.test)
    model = module.load_resnet(options.depth).eval()
    calibration = [(batch, None) for batch in images[:CALIBRATION].split(BATCH)]
    statistics = tqcodec.torch.calibrate(model, calibration)
    data = Shuffled(images[:count], labels[:count], options.batch)
    options.out.mkdir(parents=True, exist_ok=True)
    weights = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    begun: dict[str, Any] = {"statistics": statistics}
    if options.start is not None:
        begun = {"start": options.start.read_bytes()}
    rows = [f"float: top-1 {accuracy(model, *judged):.2f}"]
    for size in options.bytes:
        wanted: dict[str, Any] = {"max_size": size, "inference": True}
        settings = tqcodec.Settings(**wanted | settings_of(options.settings))
        plain = tqcodec.torch.encode(model, settings, statistics, tune=calibration)
        name = options.out / f"resnet{options.depth}_{size}.tqc"
        start = time.monotonic()
        file = trained(model, data, settings, name, options, recipe=recipe, **begun)
        minutes = (time.monotonic() - start) / 60
        name.write_bytes(file)
        network = module.load_resnet(options.depth).eval()
        for kind, found in (("calibrated", plain), ("retrained", file)):
            network.load_state_dict(tqcodec.torch.decode(found))
            bits, ratio = 8 * len(found) / weights, 4 * weights / len(found)
            line = f"{kind:10}: {len(found):7} bytes, {bits:.3f} bits, ratio {ratio:.1f}"
            rows.append(f"{line}, top-1 {accuracy(network, *judged):.2f}")
        rows[-1] += f", {options.epochs} epochs, {minutes:.0f} minutes"
    print("\n".join(rows))


if __name__ == "__main__":
    main()
