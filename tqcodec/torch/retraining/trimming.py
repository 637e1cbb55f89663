"""Trimming: a file that is too large is brought to its size by integers that fall."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tqcodec.errors import EncodeError
from tqcodec.torch.retraining.student import Student

HALVINGS = 12  # until it is known how much must be trimmed
DOUBLINGS = 24  # of the steps, until integers that fall by one are enough
EDGE = 0.05  # of a step below an edge, where a latent is put that is to fall


@torch.no_grad()
def trim(student: Student, target: int) -> bool:
    """Bring a file to its size: integers fall by one, those first that nearly did anyway.

    Where that is not enough, as at high rates, steps are doubled before.

    Args:
        student: whose latents are changed where its file is too large.
        target: bytes of the file.

    Returns:
        True if there was something to do.

    Raises:
        EncodeError: no step is coarse enough.
    """
    if student.size() <= target:
        return False
    latents = list(student.latents.values())
    start = [latent.values.clone() for latent in latents]
    for _ in range(DOUBLINGS):
        if _fits(student, target, start, 1.0):
            break
        for latent, values in zip(latents, start, strict=True):
            latent.values.copy_(values)
            latent.double_step()
            values.copy_(latent.values)
    else:
        raise EncodeError(
            f"retrain: {target} bytes cannot be reached, the least is {student.size()} bytes: a "
            "larger file, or --side-bits"
        )
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _fits(student, target, start, middle) else (middle, high)
    _fits(student, target, start, high)
    student.assign()
    return True


def _fits(student: Student, target: int, start: Sequence[Tensor], reach: float) -> bool:
    """Lower latents as of `lowered`; whether the file is as small as asked then."""
    for latent, values in zip(student.latents.values(), start, strict=True):
        latent.values.copy_(lowered(values, reach))
    return student.size() <= target


def lowered(values: Tensor, reach: float) -> Tensor:
    """Latents; those that lie up to `reach` above the edge to the next smaller integer are there.

    Args:
        values: in steps.
        reach: 0 changes nothing, 1 lowers every integer by one.
    """
    magnitude = values.abs()
    edge = magnitude.round() - 0.5
    falls = (magnitude >= 0.5) & (magnitude - edge <= reach)
    return torch.where(falls, edge - EDGE, magnitude) * values.sign()
