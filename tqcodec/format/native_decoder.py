"""Whole files by the decoder in C (`decoders/c`), where it was built; the same arrays as without.

It decodes or it does not: for what it refuses, the caller asks `container`, which says what is
wrong. Built from `native/decoder.c`. Imports numpy and the standard library only, besides the
layers below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tqcodec import native
from tqcodec.common.progress import Progress
from tqcodec.format.dtypes import DTYPES, DType

_library = native.library(native.DECODER)

Done = TypeVar("Done")
Patterns = NDArray[np.unsignedinteger]
Tensor = tuple[str, DType, Patterns]  # name, element type, bit patterns of the tensor's shape

SMALL = 1 << 14  # elements; smaller tensors often share a bundle, so one task takes them all
TASK = 1 << 21  # elements of a task, more or less


def available() -> bool:
    """True if the decoder in C is there."""
    return _library is not None


def decode(
    data: bytes, limit: int | None, workers: int, progress: Progress | None
) -> list[Tensor] | None:
    """All tensors of a file, in its order.

    Args:
        data: the whole file.
        limit: largest number of decoded bytes; None for the default of the specification.
        workers: threads.
        progress: called with ("decode", done, of) as tensors are done.

    Returns:
        None if there is no decoder in C, or if it does not decode the file.
    """
    file = _File.open(data, limit)
    if file is None:
        return None
    found: dict[int, Patterns] = {}
    try:
        for task, arrays in file.run("decode", file.decode, workers, progress):
            if arrays is None:
                return None
            found.update(zip(task, arrays, strict=True))
    except MemoryError:  # the caller's limit allows what the machine does not have
        return None
    return [
        (name, DTYPES[dtype], found[i] if twin is None else found[twin].copy())
        for i, (name, dtype, _, twin) in enumerate(file.tensors)
    ]


def visit(
    data: bytes,
    limit: int | None,
    workers: int,
    visitor: Callable[[int, Patterns], None],
    progress: Progress | None,
) -> bool:
    """True if the decoder in C is there and finds nothing wrong with a file.

    Args:
        data, limit, workers: as in `decode`.
        visitor: called with each tensor that is not tied, its index in the file and its bit
            patterns, which are not kept; in threads, and in no order.
        progress: called with ("verify", done, of).

    Raises:
        MemoryError: the machine has not enough for one of the tensors.
    """
    file = _File.open(data, limit)
    if file is None:
        return False

    def decodes(task: list[int]) -> bool:
        arrays = file.decode(task)
        for index, patterns in zip(task, arrays or [], strict=arrays is not None):
            visitor(index, patterns)
        return arrays is not None

    return all(good for _, good in file.run("verify", decodes, workers, progress))


class _File:
    """An open file.

    Attributes:
        tensors: name, element type, shape and, for a tied tensor, index of the tensor that it is
            tied to.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self.tensors: list[tuple[str, str, tuple[int, ...], int | None]] = file.tensors()

    @staticmethod
    def open(data: bytes, limit: int | None) -> _File | None:
        if _library is None or limit == 0:  # 0 is the default limit to the library
            return None
        file = _library.open(data, min(int(limit or 0), (1 << 64) - 1))
        return None if file is None else _File(file)

    def tasks(self) -> Iterator[list[int]]:
        """All tensors but tied ones, the large ones first: what is left at the end is soon done."""
        sizes = {i: math.prod(t[2]) for i, t in enumerate(self.tensors) if t[3] is None}
        task: list[int] = []
        for index in sorted(sizes, key=lambda i: -sizes[i]):
            task.append(index)
            if sizes[index] >= SMALL and sum(sizes[i] for i in task) >= TASK:
                yield task
                task = []
        if task:
            yield task

    def decode(self, task: list[int]) -> list[Patterns] | None:
        """Bit patterns of some tensors, None if they do not decode."""
        kinds = [(self.tensors[i][2], DTYPES.get(self.tensors[i][1])) for i in task]
        if any(dtype is None for _, dtype in kinds):
            return None
        arrays = [np.empty(shape, dtype.pattern) for shape, dtype in kinds if dtype is not None]
        flat = [array.reshape(-1).view(np.uint8) for array in arrays]
        return arrays if self._file.decode(list(zip(task, flat, strict=True))) else None

    def run(
        self, stage: str, act: Callable[[list[int]], Done], workers: int, progress: Progress | None
    ) -> Iterator[tuple[list[int], Done]]:
        """Each task with what came of it, in threads; no other is begun if the caller leaves.

        Raises:
            MemoryError: of a task, or no thread can be started.
        """
        done, total = 0, sum(twin is None for _, _, _, twin in self.tensors)
        for task, result in _results(act, self.tasks(), workers):
            done += len(task)
            if progress is not None:
                progress(stage, done, total)
            yield task, result


def _results(
    act: Callable[[list[int]], Done], tasks: Iterable[list[int]], workers: int
) -> Iterator[tuple[list[int], Done]]:
    if workers == 1:  # needs no thread, and perhaps none can be had
        yield from ((task, act(task)) for task in tasks)
        return
    with ThreadPoolExecutor(max_workers=workers) as pool:
        running: dict[Future[Done], list[int]] = {}
        try:
            for task in tasks:
                running[_submitted(pool, act, task)] = task
            for future in as_completed(list(running)):
                yield running.pop(future), future.result()
        finally:
            for future in running:
                future.cancel()


def _submitted(
    pool: ThreadPoolExecutor, act: Callable[[list[int]], Done], task: list[int]
) -> Future[Done]:
    try:
        return pool.submit(act, task)
    except RuntimeError as error:  # no thread can be started
        raise MemoryError(str(error)) from error
