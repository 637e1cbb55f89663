"""Parts of retraining on or off, at equal size: a residual network on CIFAR-10.

    python -m benchmarks.training cifar_resnet.py 20 cifar10_train.npz --bytes 34000 --epochs 3 \
        --out FOLDER --variant "as it is" --variant "no entropy term" pull=0 \
        --variant "no distillation" loss=labels

Trains as `benchmarks.retrained` does, but not on the last training images, which judge. A variant
is a label, by which its file is known, and what it changes: fields of `tqcodec.Settings` and of
`tqcodec.torch.TrainingRecipe` (several numbers with colons between), `loss=labels` for cross
entropy with the labels in place of the distance from the original, `labels=0` for that distance
alone, `start=FILE` for a start of one's own. A file that is in FOLDER already is judged only, and
a training that was cut goes on.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import tqcodec
import tqcodec.torch
from benchmarks.common.subjects import module_of
from benchmarks.retrained import Shuffled, images_of, parser_of, recipe_of, settings_of, trained
from tqcodec.torch.retraining.objective import IGNORED

NO_LABELS = "labels=0"
SETTINGS = {field.name for field in fields(tqcodec.Settings)}


def crossed(given: Any, batch: Any) -> torch.Tensor:
    """Cross entropy with the labels of a batch."""
    return functional.cross_entropy(given.float(), batch[1])


def changed(settings: tqcodec.Settings, pairs: Sequence[str]) -> tuple[tqcodec.Settings, Any]:
    """Settings with what a variant changes, and arguments of `retrain`."""
    own: dict[str, Any] = {}
    others: dict[str, Any] = {}
    recipe = []
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name == "loss":
            others["loss"] = {"labels": crossed}[text]
        elif name == "start":
            others["start"] = Path(text).read_bytes()
        elif name in SETTINGS:
            own |= settings_of([pair])
        else:
            recipe.append(pair)
    return replace(settings, **own), {"recipe": recipe_of(recipe), **others}


def options_of() -> Namespace:
    """The command line."""
    parser = parser_of("training", __doc__)
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument(
        "--variant", action="append", nargs="+", required=True, metavar=("LABEL", "KEY=VALUE")
    )
    parser.add_argument("--held-out", type=int, default=5000, metavar="N")
    return parser.parse_args()


def main() -> None:
    """Train each variant, and print a row for it."""
    options = options_of()
    torch.set_num_threads(options.threads)
    module = module_of(Path(options.code))
    images, labels = images_of(module, options.train)
    count = len(images) - options.held_out
    model = module.load_resnet(options.depth).eval()
    judged = [(batch, None) for batch in images[count:].split(500)]
    reference = tqcodec.torch.Reference(model, judged)
    plain = tqcodec.Settings(max_size=options.bytes, inference=True)
    options.out.mkdir(parents=True, exist_ok=True)
    print("bytes        KL  agreement  minutes  variant", flush=True)
    for label, *pairs in options.variant:
        title = f"{label}, {options.bytes} bytes, {options.epochs} epochs"
        path, start = options.out / f"{title}.tqc", time.monotonic()
        kept = [pair for pair in pairs if pair != NO_LABELS]
        known = labels if kept == pairs else torch.full_like(labels, IGNORED)
        if not path.exists():
            data = Shuffled(images[:count], known[:count], options.batch)
            settings, more = changed(plain, kept)
            path.write_bytes(trained(model, data, settings, path, options, **more))
        file, minutes = path.read_bytes(), (time.monotonic() - start) / 60
        found = reference.compare(tqcodec.torch.decode(file))
        row = f"{len(file):7}  {found.kl.value:.4f}  {found.agreement.value:9.2f}  {minutes:7.1f}"
        print(f"{row}  {label}", flush=True)


if __name__ == "__main__":
    main()
