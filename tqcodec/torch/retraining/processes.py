"""Processes that train together by torch.distributed; alone, nothing here does anything."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed


def are_several() -> bool:
    """Whether there is a process group."""
    return distributed.is_available() and distributed.is_initialized()


def is_first() -> bool:
    """Whether this process writes what all have in common."""
    return not are_several() or distributed.get_rank() == 0


def average(tensors: Iterable[Tensor]) -> None:
    """Put means over all processes in place of tensors."""
    if are_several():
        for tensor in tensors:
            distributed.all_reduce(tensor)
            tensor.div_(distributed.get_world_size())


def mean(value: float, device: torch.device) -> float:
    """The mean of a number over all processes."""
    if not are_several():
        return value
    found = torch.tensor(value, device=device)
    average([found])
    return float(found)


def anywhere(flags: list[bool], device: torch.device) -> list[bool]:
    """Which flags are true in any process."""
    if not are_several():
        return flags
    found = torch.tensor(flags, dtype=torch.float32, device=device)
    average([found])
    return (found > 0).tolist()


def of_first(data: bytes) -> bytes:
    """What the first process has."""
    found = [data]
    if are_several():
        distributed.broadcast_object_list(found)
    return found[0]
