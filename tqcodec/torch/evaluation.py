"""Runs a network and its decoded copy over the same images and compares their outputs.

    reference = Reference(model, batches)
    print(reference.compare(tqcodec.torch.load("model.tqc")))

Batches are pairs of inputs and labels. Inputs are a tensor or a mapping of keyword arguments, with
images (samples of any kind) along dimension 0; labels are class numbers or None. Batches of no
image are left out. No model that is passed in changes: its buffers, and the mode of each of its
modules, are the same afterwards. Networks that draw random numbers draw the same ones each time,
and torch's own random state is not touched.

What is compared are scores of classes where the network gives them: its first output where that is
(images, classes), or its only output where it calls it `logits`, of more dimensions. Labels belong
to the former; beside other outputs they may be of any kind and do not count. Else all outputs count
(`tqcodec.torch.outputs.outputs_of`), but for lists of what was found in each image, which may be
more or less than the original finds: by their error alone.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tqcodec.common.checks import kind_of, need, need_function
from tqcodec.common.progress import Progress
from tqcodec.errors import EncodeWarning, EvaluationError
from tqcodec.torch.batches import (
    Outputs,
    Runner,
    arguments,
    check_network,
    copied,
    device_of,
    first_logits,
    is_empty,
    length_of,
    modes_of,
    samples_of,
    to_evaluation,
)
from tqcodec.torch.checkpoint import load_state
from tqcodec.torch.comparison import (
    Comparison,
    Estimate,
    Samples,
    measure,
    measure_outputs,
    measure_places,
    summarize,
)
from tqcodec.torch.outputs import (
    ALONE,
    class_axis,
    is_classes,
    is_dense,
    is_joined,
    mean_sizes,
    outputs_of,
    samples_in,
)
from tqcodec.torch.unchanged import Buffers, seeded

__all__ = ["Comparison", "Estimate", "Reference", "compare", "evaluate"]

Batches = Iterable[tuple[Any, Any]]
State = Mapping[str, Tensor]

OTHERS = "not the batches or the logits of the original"
NO_LABELS = "not a class number for each: mend them, or leave out all of them"
NO_LOGITS = "not logits (images, classes); name `outputs`"


class Reference:
    """A network whose outputs are computed once, to hold many decoded ones against.

    Args:
        model: the original, on any device. A copy of it runs the decoded weights.
        batches: pairs (inputs, labels or None), the same each time they are walked.
        outputs: from what the model gives to the one tensor that counts, scores where it is
            (images, classes).
        progress: called with ("evaluate", images done, of how many); where the number is not known
            beforehand, the two are equal.

    Attributes:
        images: how many there are.
        labels: of all images, int64 (images,); None without, and where they do not count.

    Raises:
        EvaluationError: no images, batches that can be walked only once, labels on some images
            only or that are no classes, or outputs that cannot be compared, as those without a
            finite number.
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
        self._matrices = _checksums(model)
        self._copy = copied(model, EvaluationError)
        with _evaluating(model):
            walk = list(_walk(model, batches, outputs, progress, _count(batches)))
        self._wanted = [found for found, _, _ in walk]
        self._counts = [images for _, images, _ in walk]
        self.images = sum(self._counts)
        if not self.images:
            raise EvaluationError("evaluation: no images")
        if not any(y.isfinite().any() for one in self._wanted for y in one.values()):
            kinds = _described(self._wanted[0])
            raise EvaluationError(f"evaluation: {kinds}, without any finite number to compare")
        labels = [one for _, _, one in walk]
        is_told = outputs is not None or any(one is not None for one in labels)
        self._axis = _axis_of(self._wanted, is_told)
        self.labels = self._labels(labels)
        self._sizes = mean_sizes(zip(self._wanted, self._counts, strict=True))

    def _labels(self, given: Sequence[Any]) -> Tensor | None:
        """Labels of all images, where they count."""
        (first, *_) = self._wanted[0].values()
        if self._axis is None or first.ndim > 2 or all(part is None for part in given):
            return None
        return _all_labels(given, self._counts, first.shape[1])

    @property
    def logits(self) -> Tensor:
        """Scores of the original, float32 (images, classes).

        Raises:
            EvaluationError: its outputs are something else.
        """
        if self._axis is None or any(y.ndim != 2 for one in self._wanted for y in one.values()):
            raise EvaluationError(f"evaluation: {_described(self._wanted[0])}, {NO_LOGITS}")
        return torch.cat([y for one in self._wanted for y in one.values()])

    def compare(
        self, decoded: torch.nn.Module | State, *, progress: Progress | None = None
    ) -> Comparison:
        """Run a decoded network over the images.

        Args:
            decoded: a state dict for the model, or a module of its own.
            progress: as above.

        Raises:
            EvaluationError: a state dict that does not fit the model; other batches, or outputs of
                another shape, than when the original ran.

        Warns:
            EncodeWarning: outputs are the same in every bit where matrices are not.
        """
        if isinstance(decoded, torch.nn.Module):
            model = decoded
        else:
            load_state(self._copy, decoded)
            model = self._copy
        samples, done = [], 0
        with _evaluating(model):
            walk = _walk(model, self._batches, self._outputs, progress, self.images)
            for i, (found, images, _) in enumerate(walk):
                if i == len(self._wanted) or images != self._counts[i]:
                    raise EvaluationError(f"evaluation: {OTHERS}")
                part = slice(done, done + images)
                labels = None if self.labels is None else self.labels[part]
                samples.append(self._measure(i, found, labels))
                done += images
        if done != self.images:
            raise EvaluationError(
                f"evaluation: {done} images, but {self.images} when the original ran"
            )
        summary = summarize(samples)
        if summary.snr.value == math.inf:
            self._see_that_it_ran(model)
        return summary

    def _see_that_it_ran(self, model: torch.nn.Module) -> None:
        """Warn where outputs are the original's in every bit, and matrices are not."""
        given = _checksums(model)
        known = given.keys() & self._matrices.keys()
        different = sum(given[name] != self._matrices[name] for name in known)
        if different:
            warnings.warn(
                f"evaluation: {different} of {len(known)} matrices are not the original's, but all "
                "outputs are, in every bit: does the network not use them, or run other weights "
                "than its own, as those of a global variable?",
                EncodeWarning,
                stacklevel=3,
            )

    def _measure(self, batch: int, found: Mapping[str, Tensor], labels: Tensor | None) -> Samples:
        wanted = self._wanted[batch]
        if found.keys() != wanted.keys() or any(
            y.shape != found[n].shape for n, y in wanted.items()
        ):
            kinds = f"{_described(found)} in place of {_described(wanted)}"
            raise EvaluationError(f"evaluation: {OTHERS}: {kinds}")
        if self._axis is None:
            names = [name for name, y in wanted.items() if y.numel()]
            return measure_outputs(wanted, found, names, self._sizes, self._counts[batch])
        ((y, z),) = [(y, found[name]) for name, y in wanted.items()]
        return measure(y, z, labels) if y.ndim == 2 else measure_places(y, z, self._axis)


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
) -> Tensor:
    """Scores of classes of a network in evaluation mode: float32 (images, classes), on the CPU.

    Arguments and errors as in `Reference`, but that the batches are walked once and their labels
    do not matter; other outputs are an EvaluationError.
    """
    total = None if isinstance(batches, Iterator) else _count(batches)
    parts: list[Tensor] = []
    with _evaluating(model):
        for found, _, _ in _walk(model, batches, outputs, progress, total):
            if len(found) != 1 or next(iter(found.values())).ndim != 2:
                raise EvaluationError(f"evaluation: {_described(found)}, {NO_LOGITS}")
            parts += found.values()
    if not any(len(part) for part in parts):
        raise EvaluationError("evaluation: no images")
    return torch.cat(parts)


def _checksums(model: torch.nn.Module) -> dict[str, int]:
    """Of the bytes of each matrix of floats that has any, by name."""
    found = {}
    for name, tensor in model.named_parameters():
        if _is_float(tensor) and tensor.ndim > 1 and tensor.numel() and not tensor.is_meta:
            own = tensor.detach().cpu().resolve_neg().contiguous()
            found[name] = zlib.crc32(own.view(torch.uint8).numpy().data)
    return found


def _walk(
    model: torch.nn.Module,
    batches: Batches,
    outputs: Outputs | None,
    progress: Progress | None,
    total: int | None,
) -> Iterator[tuple[dict[str, Tensor], int, Any]]:
    """Outputs, number of images and labels of each batch that has images."""
    device, run = device_of(model), Runner(model)
    done = 0
    for seed, batch in enumerate(batches):
        if not _is_pair(batch):
            raise EvaluationError(f"evaluation: a batch is {_kind(batch)}, not (inputs, labels)")
        inputs, labels = batch
        if is_empty(inputs):
            continue
        with seeded(device, seed):
            given = run(*arguments(inputs, device))
        found = _numbers(given, samples_of(inputs), outputs)
        images = samples_in(found, samples_of(inputs))
        done += images
        yield found, images, labels
        if progress is not None:
            progress("evaluate", done, done if total is None else max(done, total))


def _numbers(given: Any, samples: int, outputs: Outputs | None) -> dict[str, Tensor]:
    """The outputs that are compared, float32 on the CPU."""
    first = first_logits(given) if outputs is None else outputs(given)
    if outputs is not None or (_is_float(first) and first.ndim == 2):
        found = {ALONE: first}
    else:
        found = {n: y for n, y in outputs_of(given, samples).items() if not is_joined(n)}
    if not found or not all(_is_float(y) and y.ndim for y in found.values()):
        kind = _described(found or {ALONE: first})
        reason = "not logits, nor other floats by image; name `outputs`"
        raise EvaluationError(f"evaluation: {kind}, {reason}")
    return {name: y.detach().float().cpu() for name, y in found.items()}


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and is_dense(value) and value.is_floating_point()


def _axis_of(batches: Sequence[Mapping[str, Tensor]], is_told: bool) -> int | None:
    """The dimension that holds the classes; None where the outputs are no scores.

    Args:
        batches: outputs of each.
        is_told: that (images, classes) are scores, by labels or by the user's choice: they may
            look like embeddings.
    """
    axes = {class_axis(outputs) for outputs in batches}
    if len(axes) > 1:
        return None
    first = [next(iter(outputs.values())) for outputs in batches]
    is_known = is_told or first[0].ndim > 2 or is_classes(*first)
    return axes.pop() if is_known else None


def _described(outputs: Mapping[str, Any]) -> str:
    """Types and shapes of outputs, for messages."""
    return ", ".join(map(_kind_of, outputs.values()))


def _kind_of(output: Any) -> str:
    if not isinstance(output, Tensor):
        return kind_of(output)
    if not is_dense(output):
        return "a nested tensor" if output.is_nested else f"a {output.layout} tensor"
    return f"{output.dtype} of shape {tuple(output.shape)}"


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, (tuple, list)) and len(batch) == 2


def _kind(value: Any) -> str:
    several = isinstance(value, (tuple, list))
    return f"{kind_of(value)}{f' of {len(value)}' if several else ''}"


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards the mode that each module had, and the buffers as they were."""
    check_network(model, EvaluationError)
    modes, buffers = modes_of(model), Buffers(model)
    try:
        to_evaluation(model)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        buffers.restore(last=True)


def _count(batches: Batches) -> int | None:
    """How many images there are, where a list or a DataLoader tells."""
    if isinstance(batches, (list, tuple)):
        return sum(samples_of(batch[0]) for batch in batches if _is_pair(batch))
    return length_of(getattr(batches, "dataset", None))


def _all_labels(parts: Sequence[Any], counts: Sequence[int], classes: int) -> Tensor:
    """Class numbers of all images, int64 on the CPU.

    Args:
        parts: labels of each batch.
        counts: images in each batch.
        classes: how many there are.

    Raises:
        EvaluationError: they are not one class number for each image.
    """
    for part in parts:
        if part is not None and not isinstance(part, Tensor):
            raise EvaluationError(f"evaluation: labels are {_kind(part)}, {NO_LABELS}")
    known = [part for part in parts if part is not None]
    if [tuple(part.shape) for part in known] != [(images,) for images in counts]:
        shape = next((tuple(part.shape) for part in known if part.ndim != 1), (0,))
        if shape:
            shape = (sum(len(part) for part in known if part.ndim), *shape[1:])
        raise EvaluationError(
            f"evaluation: labels of shape {shape} for {sum(counts)} images, {NO_LABELS}"
        )
    found = []
    for part in known:
        labels = part.detach().cpu()
        whole = labels.long()
        if labels.is_complex() or (labels.is_floating_point() and not whole.equal(labels)):
            raise EvaluationError(
                f"evaluation: labels of {labels.dtype} that are no whole numbers, {NO_LABELS}"
            )
        wrong = whole[(whole < 0) | (whole >= classes)]
        if len(wrong):
            raise EvaluationError(
                f"evaluation: label {int(wrong[0])} is none of the classes 0 to {classes - 1}: "
                "leave out such images, or all labels"
            )
        found.append(whole)
    return torch.cat(found)
