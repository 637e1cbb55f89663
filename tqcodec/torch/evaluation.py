"""Runs a network and its decoded copy over the same images and compares their outputs.

    reference = Reference(model, batches)
    print(reference.compare(tqcodec.torch.load("model.tqc")))

Batches are pairs of inputs and labels. Inputs are a tensor or a mapping of keyword arguments, with
images (samples of any kind) along dimension 0; labels are class numbers or None. No model that is
passed in changes: its buffers, and the mode of each of its modules, are the same afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tqcodec.common.checks import need, need_function
from tqcodec.common.progress import Progress
from tqcodec.errors import EvaluationError
from tqcodec.torch.batches import (
    Outputs,
    Runner,
    arguments,
    check_network,
    copied,
    device_of,
    first_logits,
    length_of,
    modes_of,
    to_evaluation,
)
from tqcodec.torch.checkpoint import load_state
from tqcodec.torch.comparison import Comparison, Estimate, measure, summarize
from tqcodec.torch.unchanged import Buffers

__all__ = ["Comparison", "Estimate", "Reference", "compare", "evaluate"]

Batches = Iterable[tuple[Any, torch.Tensor | None]]
State = Mapping[str, torch.Tensor]


class Reference:
    """A network whose logits are computed once, to hold many decoded ones against.

    Args:
        model: the original, on any device. A copy of it runs the decoded weights.
        batches: pairs (inputs, labels or None), the same each time they are walked.
        outputs: from what the model gives to logits (images, classes); by default the tensor
            itself, its `logits`, or the first tensor of a tuple or mapping.
        progress: called with ("evaluate", images done, of how many); where the number is not known
            beforehand, the two are equal.

    Attributes:
        logits: of the original, float32 (images, classes).
        labels: of all images, or None.

    Raises:
        EvaluationError: no images, batches that can be walked only once, labels on some images
            only, or outputs that are no logits.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        batches: Batches,
        *,
        outputs: Outputs | None = None,
        progress: Progress | None = None,
    ) -> None:
        check_network(model, EvaluationError)
        need("batches", batches, Iterable, "pairs of inputs and labels")
        need_function("outputs", outputs)
        need_function("progress", progress)
        if isinstance(batches, Iterator):
            raise EvaluationError("evaluation: batches that can be walked only once; pass a list")
        self._batches = batches
        self._outputs = outputs
        self._copy = copied(model, EvaluationError)
        with _evaluating(model):
            walk = list(_walk(model, batches, outputs, progress, _count(batches)))
        self.logits = _all_logits([logits for logits, _ in walk])
        self.labels = _all_labels([labels for _, labels in walk], len(self.logits))

    def compare(
        self, decoded: torch.nn.Module | State, *, progress: Progress | None = None
    ) -> Comparison:
        """Run a decoded network over the images.

        Args:
            decoded: a state dict for the model, or a module of its own.
            progress: as above.

        Raises:
            EvaluationError: a state dict that does not fit the model; other batches, or logits of
                another shape, than when the original ran.
        """
        if isinstance(decoded, torch.nn.Module):
            model = decoded
        else:
            load_state(self._copy, decoded)
            model = self._copy
        samples, done, total = [], 0, len(self.logits)
        with _evaluating(model):
            for logits, _ in _walk(model, self._batches, self._outputs, progress, total):
                images = slice(done, done + len(logits))
                if self.logits[images].shape != logits.shape:
                    reason = "not the batches or the logits of the original"
                    raise EvaluationError(f"evaluation: {reason}")
                labels = None if self.labels is None else self.labels[images]
                samples.append(measure(self.logits[images], logits, labels))
                done += len(logits)
        if done != total:
            raise EvaluationError(f"evaluation: {done} images, but {total} when the original ran")
        return summarize(samples)


def compare(
    original: torch.nn.Module,
    decoded: torch.nn.Module | State,
    batches: Batches,
    *,
    outputs: Outputs | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Hold one decoded network against the original.

    Args:
        original: the network as it was.
        decoded: a state dict for it, or a module.
        batches: as in `Reference`; an iterator will do, and is kept in memory.
        outputs: as in `Reference`.
        progress: as in `Reference`, once for each of the two networks.

    Raises:
        EvaluationError: a state dict that does not fit the original, said before anything is run;
            the rest as in `Reference`.
    """
    need("batches", batches, Iterable, "pairs of inputs and labels")
    kept = list(batches) if isinstance(batches, Iterator) else batches
    if isinstance(decoded, torch.nn.Module):
        model = decoded
    else:
        check_network(original, EvaluationError)
        model = copied(original, EvaluationError)
        load_state(model, decoded)
    reference = Reference(original, kept, outputs=outputs, progress=progress)
    return reference.compare(model, progress=progress)


def evaluate(
    model: torch.nn.Module,
    batches: Batches,
    *,
    outputs: Outputs | None = None,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Logits of a network in evaluation mode: float32 (images, classes), on the CPU.

    Arguments and errors as in `Reference`, but that the batches are walked once and their labels
    do not matter.
    """
    total = None if isinstance(batches, Iterator) else _count(batches)
    with _evaluating(model):
        return _all_logits([part for part, _ in _walk(model, batches, outputs, progress, total)])


def _walk(
    model: torch.nn.Module,
    batches: Batches,
    outputs: Outputs | None,
    progress: Progress | None,
    total: int | None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Logits and labels, batch for batch."""
    check_network(model, EvaluationError)
    device, run = device_of(model), Runner(model)
    done = 0
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise EvaluationError(f"evaluation: a batch is {_kind(batch)}, not (inputs, labels)")
        inputs, labels = batch
        if labels is not None and not isinstance(labels, torch.Tensor):
            raise EvaluationError(f"evaluation: labels are {_kind(labels)}, not a tensor or None")
        logits = (first_logits if outputs is None else outputs)(run(*arguments(inputs, device)))
        _check(logits)
        logits = logits.detach()
        done += len(logits)
        yield logits.float().cpu(), labels
        if progress is not None:
            progress("evaluate", done, done if total is None else max(done, total))


def _kind(value: Any) -> str:
    several = isinstance(value, (tuple, list))
    return f"a {type(value).__name__}{f' of {len(value)}' if several else ''}"


def _check(logits: Any) -> None:
    if not isinstance(logits, torch.Tensor):
        raise EvaluationError(f"evaluation: a {type(logits).__name__}, not logits; name `outputs`")
    if logits.ndim != 2 or not logits.is_floating_point():
        kind = f"{logits.dtype} of shape {tuple(logits.shape)}"
        raise EvaluationError(f"evaluation: {kind}, not logits (images, classes); name `outputs`")


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards the mode that each module had, and the buffers as they were."""
    modes, buffers = modes_of(model), Buffers(model)
    try:
        to_evaluation(model)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        buffers.restore()


def _count(batches: Batches) -> int | None:
    """How many images there are, where a list or a DataLoader tells."""
    if isinstance(batches, (list, tuple)):
        return sum(map(_size, batches))
    return length_of(getattr(batches, "dataset", None))


def _size(batch: tuple[Any, Any]) -> int:
    inputs = batch[0]
    return len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)


def _all_logits(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    if not sum(map(len, parts)):
        raise EvaluationError("evaluation: no images")
    return torch.cat(list(parts))


def _all_labels(parts: Sequence[torch.Tensor | None], images: int) -> torch.Tensor | None:
    known = [part for part in parts if part is not None]
    if not known:
        return None
    labels = torch.cat(known).cpu()
    if labels.shape != (images,):
        shape = tuple(labels.shape)
        raise EvaluationError(f"evaluation: labels of shape {shape} for {images} images")
    return labels
