"""Outputs: all floating-point numbers that a network gives, however deep they lie in what it gives.

Networks give a tensor, a tuple or mapping of several, an object with fields (those of transformers,
dataclasses), or, as detectors do, a list with what was found in each sample.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from tqcodec.errors import EncodeError
from tqcodec.torch.batches import Outputs, check_output

ALONE: Final = ""  # name of the only output, where it has none of its own
EACH: Final = "[]"  # in the name of what a list holds of each sample
BY_PRODUCTS: Final = "hidden_states", "attentions", "past_key_values", "mems", "loss"
LEAST_SPREAD: Final = 1e-10  # of the energy: a variance below it is rounding
ONE_LENGTH: Final = 1e-3  # outputs whose lengths vary by less are normalised: an embedding


def outputs_of(given: Any, samples: int) -> dict[str, Tensor]:
    """The outputs of a network by name, floating-point tensors of one dimension or more.

    A name is made of keys, fields and positions with dots between. Of a list with one entry for
    each sample, `[]` in the name, the entries of all samples are one output, in one dimension.
    Complex numbers are pairs of floats. Left out are tensors that are there twice, single numbers,
    and by-products beside other outputs: `hidden_states`, `attentions`, `past_key_values`, `mems`,
    `loss`, names that end so, and `last_hidden_state` and the like beside `logits`.

    Args:
        given: what the network gave.
        samples: in the batch.
    """
    found: dict[str, Tensor] = {}
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in _walk(given, ALONE, samples, {}):
        if is_joined(name):
            parts.setdefault(name, []).append(tensor.reshape(-1))
        elif tensor.ndim:
            found[name] = tensor
    found |= {name: torch.cat(each) for name, each in parts.items()}
    products = list(BY_PRODUCTS)
    if any(name.endswith("logits") for name in found):
        products.append("hidden_state")
    own = {
        name: tensor
        for name, tensor in found.items()
        if not any(part.endswith(tuple(products)) for part in name.split("."))
    }
    return own or found


def _walk(
    value: Any, name: str, samples: int, seen: dict[int, Any]
) -> Iterator[tuple[str, Tensor]]:
    """Floating-point tensors and their names; each object once, those seen by their `id`."""
    if value is None or isinstance(value, (str, bytes, int, float, type)) or id(value) in seen:
        return
    seen[id(value)] = value
    if isinstance(value, Tensor):
        tensor = torch.view_as_real(value) if value.is_complex() else value
        if tensor.is_floating_point() and is_dense(tensor):
            yield name, tensor
        return
    by_sample = not is_joined(name) and _is_by_sample(value, samples)
    for key, one in _members(value):
        key = EACH if by_sample else key
        yield from _walk(one, f"{name}.{key}" if name else str(key), samples, seen)


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor is neither sparse nor nested."""
    return tensor.layout == torch.strided and not tensor.is_nested


def is_joined(name: str) -> bool:
    """Whether the output of a name is what was found in each sample, which may be any number."""
    return EACH in name.split(".")


def _members(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, (list, tuple)):
        return enumerate(value)
    if not isinstance(value, torch.nn.Module) and getattr(value, "__dict__", None):
        return list(vars(value).items())
    slots = [n for n in getattr(type(value), "__slots__", ()) if hasattr(value, n)]
    return [(name, getattr(value, name)) for name in slots]


def _is_by_sample(value: Any, samples: int) -> bool:
    """Whether a list holds what was found in each sample, not one tensor of all for each level."""
    if not isinstance(value, list) or len(value) != samples:
        return False
    tensors = [one for one in value if isinstance(one, Tensor)]
    if len(tensors) < len(value):
        return not tensors
    return any(not one.ndim or len(one) != samples for one in tensors)


def numbers_of(
    given: Any,
    samples: int,
    batch: int,
    what: str,
    chosen: Outputs | None = None,
    *,
    needs_gradient: bool = False,
) -> dict[str, Tensor]:
    """Outputs by name, checked to be finite; where there are several, perhaps empty ones.

    Args:
        given: what the network gave.
        samples: in the batch.
        batch: its number, for messages.
        what: name of the numbers, for messages.
        chosen: of the user, from what the model gives to the one output that counts.
        needs_gradient: True where those that no weight has a part in are left out.

    Raises:
        EncodeError: nothing is left, or a number is not finite.
    """
    if chosen is not None:
        one = chosen(given)
        check_output(one, batch, what, needs_gradient)
        return {ALONE: one}
    found = outputs_of(given, samples)
    if len(found) < 2 and not any(map(is_joined, found)):
        check_output(next(iter(found.values()), given), batch, what, needs_gradient)
        return found
    if needs_gradient:
        found = {name: tensor for name, tensor in found.items() if tensor.requires_grad}
        if not found:
            raise EncodeError(
                f"no output of the network for batch {batch} has a gradient by any weight matrix"
            )
    for name, tensor in found.items():
        if not tensor.isfinite().all():
            raise EncodeError(f"output {name!r} of the network for batch {batch} is not finite")
    return found


def samples_in(outputs: Mapping[str, Tensor], samples: int) -> int:
    """Number of samples that outputs are of.

    Args:
        outputs: of the network, by name.
        samples: in the inputs, along their first dimension, which a sequence may have elsewhere.
    """
    own = [tensor for name, tensor in outputs.items() if not is_joined(name)]
    if not own or any(len(tensor) == samples for tensor in own):
        return max(1, samples)
    return len(own[0])


def sizes_of(outputs: Mapping[str, Tensor], samples: int) -> dict[str, float]:
    """What squared errors are measured by: the mean energy of one output, the variance of several.

    Args:
        outputs: of the original by name; what is not finite in them does not count.
        samples: in the batch.

    Returns:
        by name, of those that are not empty; 0 of zeros.
    """
    found = {}
    for name, y in outputs.items():
        if y.numel():
            finite = y.isfinite()
            known = y.detach().where(finite, 0).double()
            energy = float(known.square().sum() / finite.sum().clamp(min=1))
            found[name] = energy if len(outputs) == 1 else spread_of(known, samples)
    return found


def mean_sizes(batches: Iterable[tuple[Mapping[str, Tensor], int]]) -> dict[str, float]:
    """`sizes_of` over batches, pairs of outputs and samples; 1 of an output that is always 0."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for outputs, samples in batches:
        for name, size in sizes_of(outputs, samples).items():
            sums[name][0] += size * outputs[name].numel()
            sums[name][1] += outputs[name].numel()
    return {name: total / number or 1.0 for name, (total, number) in sums.items()}


def spread_of(values: Tensor, samples: int) -> float:
    """What squared errors of one output among several are measured by: its variance.

    That is the mean over elements of the variance over samples; where these are one, or all alike,
    or the first dimension is not theirs, the variance of all elements; of a constant its square.

    Args:
        values: finite, not empty.
        samples: in the batch.

    Returns:
        at least 0; 0 of zeros.
    """
    known = values.detach().double()
    energy = float(known.square().mean())
    found = 0.0
    if len(known) == samples > 1:
        found = float(known.var(0).mean())
    if not found > LEAST_SPREAD * energy and known.numel() > 1:
        found = float(known.var())
    return found if found > LEAST_SPREAD * energy else energy


def class_axis(outputs: Mapping[str, Tensor]) -> int | None:
    """The dimension that holds the classes where the only output is known to be their scores.

    Known are (samples, classes), and what the network itself calls `logits`: (samples, places,
    classes) and (samples, classes, height, width), as transformers has them. Others, such as maps
    of a plain tensor, may be anything. None where it is not known, or there is one class.
    """
    if len(outputs) != 1:
        return None
    ((name, values),) = outputs.items()
    axes = {2: 1}
    if name.endswith("logits"):
        axes |= {3: 2, 4: 1}
    axis = axes.get(values.ndim)
    return axis if axis is not None and values.shape[axis] > 1 else None


def is_classes(*batches: Tensor) -> bool:
    """Whether outputs are scores of classes: (samples, classes), at least 2, not normalised.

    A single sample does not tell, and counts as scores.
    """
    if any(outputs.ndim != 2 or outputs.shape[1] < 2 for outputs in batches):
        return False
    # Neither float32 nor float16 may hold the squares.
    scores = [outputs.detach().double() for outputs in batches]
    lengths = torch.cat([one.where(one.isfinite(), 0).norm(dim=1) for one in scores])
    return len(lengths) < 2 or bool(lengths.std() > ONE_LENGTH * lengths.mean())


def divergence(given: Tensor, wanted: Tensor, axis: int, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of the softmax of scores from that of the wanted ones, in nats.

    Args:
        given, wanted: scores, of one shape.
        axis: of the classes.
        temperature: that scores are divided by.

    Returns:
        the mean over all places, to be differentiated.
    """
    y, z = (one.movedim(axis, -1).flatten(0, -2) / temperature for one in (wanted, given))
    aim = y.log_softmax(1)
    return functional.kl_div(z.log_softmax(1), aim, reduction="batchmean", log_target=True)


def comparable(wanted: Mapping[str, Tensor], *given: Mapping[str, Tensor]) -> list[str]:
    """Names of the outputs that can be compared: not empty, and everywhere of one shape.

    Of boxes that are found there may be more or fewer than the original's.

    Args:
        wanted: outputs of the original.
        given: those of other networks for the same inputs.
    """
    return [
        name
        for name, y in wanted.items()
        if y.numel() and all(name in z and z[name].shape == y.shape for z in given)
    ]
