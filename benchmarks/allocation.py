"""What should the encoder assume where there is no data? Rules for steps and inputs, tried.

    python -m benchmarks.allocation [--bits 4 3 2] [--images 600] BUILDER ARGUMENT...

BUILDER is one of `common/subjects.py`; what is judged is its calibration half, so that the test
half stays untouched. A row is a rule: the step of a matrix is as rms^a * size^b, but its relative
step at most c times that of the matrix in the middle of all weights; inputs have a share of their
power in common (mean), and neighbours are alike (near). White inputs have 0 and 0. The last row is
the encoder's own. Single numbers jump by a third from one rate to the next; the last column is the
geometric mean over the rates, so give many.
"""

from __future__ import annotations

import math
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch

import tqcodec
from benchmarks.common.command import command_parser
from benchmarks.common.subjects import build
from tqcodec.encoder import weighing
from tqcodec.encoder.matrix import metric

NONE = float("inf")


class Rule(NamedTuple):
    """Exponents and limit of `weighing`, assumptions of `metric`."""

    rms: float
    size: float
    behind: float
    mean: float
    near: float


OWN = Rule(
    weighing.RMS_EXPONENT,
    weighing.SIZE_EXPONENT,
    weighing.MOST_BEHIND,
    metric.MEAN,
    metric.NEIGHBOURS,
)
# Equal steps, equal relative errors, the rule before, and what led to the encoder's own; then other
# inputs.
RULES = (
    OWN._replace(rms=0.0, size=0.0, behind=NONE),
    OWN._replace(rms=1.0, size=0.0, behind=NONE),
    OWN._replace(rms=0.5, size=0.25, behind=NONE),
    OWN._replace(rms=0.5, size=0.5, behind=2.0),
    OWN._replace(rms=0.0, size=0.375, behind=2.0),
    OWN._replace(mean=0.0, near=0.0),
    OWN._replace(mean=0.5, near=0.0),
    OWN._replace(mean=0.0, near=0.7),
    OWN._replace(mean=0.3, near=0.5),
    OWN._replace(mean=0.7, near=0.8),
    OWN,
)


def encoded(tensors: dict[str, np.ndarray], bits: float, rule: Rule) -> bytes:
    """A file by a rule."""
    metric.assumed_metric.cache_clear()
    with (
        mock.patch.multiple(
            weighing,
            RMS_EXPONENT=rule.rms,
            SIZE_EXPONENT=rule.size,
            MOST_BEHIND=rule.behind,
        ),
        mock.patch.multiple(metric, MEAN=rule.mean, NEIGHBOURS=rule.near),
    ):
        return tqcodec.encode(tensors, tqcodec.Settings(bits=bits))


def main() -> None:
    """Print one row a rule and one column a rate."""
    parser = command_parser("allocation", __doc__)
    parser.add_argument("builder", nargs="+", metavar="BUILDER")
    parser.add_argument("--bits", type=float, nargs="+", default=[4, 3.5, 3, 2.6, 2.3, 2, 1.7, 1.5])
    parser.add_argument("--images", type=int, default=600, metavar="N", help="spread over the half")
    options = parser.parse_args()
    subject = build(options.builder[0], options.builder[1:])
    images = torch.cat([batch for batch, _ in subject.calibration])
    batches = images[:: max(1, len(images) // options.images)].split(50)
    model = subject.model
    tensors = {name: value.numpy().copy() for name, value in model.state_dict().items()}

    def outputs() -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([model(batch).log_softmax(1) for batch in batches]).double()

    reference = outputs()
    rates = "".join(f"{bits:>8g}" for bits in options.bits)
    print(f"KL of {len(reference)} inputs by bits per weight")
    print(f"{'rms':>6}{'size':>7}{'behind':>8}{'mean':>6}{'near':>6}{rates}{'all':>9}")
    for rule in RULES:
        found = []
        for bits in options.bits:
            decoded = tqcodec.decode(encoded(tensors, bits, rule))
            model.load_state_dict({n: torch.from_numpy(a) for n, a in decoded.items()})
            lost = (reference.exp() * (reference - outputs())).sum(1).mean().item()
            found.append(lost)
        line = "".join(f"{kl:>8.4f}" for kl in found)
        mean = math.exp(sum(map(math.log, found)) / len(found))
        name = f"{rule.rms:>6g}{rule.size:>7g}{rule.behind:>8g}{rule.mean:>6g}{rule.near:>6g}"
        print(f"{name}{line}{mean:>9.4f}", flush=True)


if __name__ == "__main__":
    main()
