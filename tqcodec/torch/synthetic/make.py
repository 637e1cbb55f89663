"""Makes inputs for calibration from a network alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tqcodec.common import foreign
from tqcodec.common.checks import need, need_function, need_number
from tqcodec.common.progress import Progress
from tqcodec.errors import EncodeError, TQCError
from tqcodec.torch.batches import SEEDS, Runner, check_network, copied, device_of
from tqcodec.torch.held_out import LEAST
from tqcodec.torch.inputs import MEAN, MOST_SIZE, STD, warn_of_normalisation
from tqcodec.torch.synthetic.examples import numbers_of, parts_like
from tqcodec.torch.synthetic.leaves import dead_leaves
from tqcodec.torch.synthetic.parts import ALONE, Part, Parts, batch_of, call_of
from tqcodec.torch.synthetic.steps import DEFAULT, Moments, SyntheticRecipe, move
from tqcodec.torch.synthetic.tokens import Writer, embedding_of, random_tokens, shares_of
from tqcodec.torch.unchanged import Buffers, unchanged

# Samples by default, and what bounds them in between, where they cost little (docs/encoder.md).
LEAST_FLOATS, LEAST_INTEGERS, MOST = 512, 256, 1024
FLOATS, FLOAT_WORK = 3 << 20, 1 << 30  # in all samples, and times weights
INTEGERS, INTEGER_WORK = 1 << 15, 1 << 35
MOST_COUNT = 1 << 20
MOST_TOKENS = 1 << 20
STRIDE = 32
CPU = torch.device("cpu")

Numbers = float | Sequence[float]
Size = int | tuple[int, int]


def synthetic_inputs(
    model: nn.Module,
    count: int | None = None,
    *,
    size: Size | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    example: Any = None,
    tokens: int | None = None,
    recipe: SyntheticRecipe = DEFAULT,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> list[Any]:
    """Inputs for `calibrate` and `tune`, made from the network alone, where there is no data.

    One of `size`, `tokens` and `example` says what the network takes.

    - Pictures are dead leaves (Lee, Mumford, Huang, IJCV 2001): opaque shapes over each other.
    - In a network with batch normalisation they, and the floats of an example, are then moved by
      steps of gradient: the mean and the variance of each channel towards those that its running
      statistics hold, and each output towards one of its own. That is a random class where outputs
      are (samples, classes) and not all of one length, as those of embeddings are; else a random
      direction from the mean of the outputs.
    - Tokens are random, earlier ones of the vocabulary more often than later ones, those whose
      vectors are short never. Where the outputs are scores for all tokens at each place, by the
      tokens up to it alone, the network goes on from the first one and writes the others itself.

    The network runs in evaluation mode and is left as it was, also by an exception. The same
    arguments give the same inputs on one machine; torch's and numpy's own random states are not
    touched.

    Args:
        model: the network.
        count: number of samples; by default 256 to 1024, of floats 512 at least, the smaller they
            and the network are the more (docs/encoder.md, "Made-up inputs").
        size: of pictures: the side in pixels, or (height, width). Those that are made are smaller
            (`recipe.side`) if the network takes such. They have as many channels as the first
            convolution takes.
        mean: of the channels on the scale of 0 to 255, taken off; one for each, or one for all; 0
            if None. Of pictures alone.
        std: of the channels on that scale, divided by; 1 if None. Likewise.
        example: one batch, for networks that take something else: a tensor, a tuple of which the
            first is the input, or a mapping of keyword arguments; samples along dimension 0. The
            inputs have its shapes and types, and its means and spreads (`synthetic.examples`).
        tokens: length of a text for networks that take integers (samples, length).
        recipe: steps of gradient and what they weigh.
        seed: of all that is random.
        device: where the network runs; by default that of its first parameter. Elsewhere a copy of
            the network does.
        progress: called with ("synthetic inputs", steps done, of how many).

    Returns:
        Batches of at most `recipe.batch` samples on the CPU, as `calibrate` takes them: tensors, or
        mappings where the example was one. Floats are of the type of the network's first parameter,
        or of the example.

    Raises:
        EncodeError: arguments that do not fit the network or each other, or a network that fails on
            such inputs.

    Warns:
        EncodeWarning: pictures whose mean or std is not given.
    """
    check_network(model)
    if count is not None:
        need_number("count", count, 1, MOST_COUNT)
    need_number("seed", seed, *SEEDS)
    need("recipe", recipe, SyntheticRecipe, "a SyntheticRecipe")
    need_function("progress", progress)
    if sum(way is not None for way in (size, tokens, example)) != 1:
        raise EncodeError(
            "synthetic inputs: say what the network takes, by one of size (of pictures), tokens "
            "(length of a text) and example (one batch)"
        )
    if size is not None:
        warn_of_normalisation("synthetic inputs: pixels", mean, std)
    elif mean is not None or std is not None:
        raise EncodeError("synthetic inputs: mean and std are of pictures, which need size")
    if tokens is not None:
        need_number("tokens", tokens, 1, MOST_TOKENS)
    network = _on(model, device)
    where = device_of(network)
    generator = torch.Generator().manual_seed(seed)
    with _explained(example is not None):
        sides = None if size is None else _sides(network, size, recipe.side)
        if count is None:
            count = default_count(network, *_numbers(network, sides, tokens, example))
        if sides is not None:
            mean, std = MEAN if mean is None else mean, STD if std is None else std
            parts = _pictures(network, count, sides, mean, std, generator)
        elif tokens is not None:
            parts = _tokens(network, count, tokens, generator)
        else:
            parts = parts_like(example, count, generator)
        batches = _split(parts, count, recipe.batch, where)
        with unchanged(network, where, seed) as buffers:
            finish = _finish(network, batches[0], tokens, recipe, generator)
            return _finished(batches, finish, buffers, progress)


def _numbers(
    model: nn.Module, sides: tuple[int, int] | None, tokens: int | None, example: Any
) -> tuple[int, int]:
    """Floats and integers of one sample; arguments as of `synthetic_inputs`, sides of pictures."""
    if sides is not None:
        return _channels(model) * math.prod(sides), 0
    return (0, tokens) if tokens is not None else numbers_of(example)


def default_count(model: nn.Module, floats: int, integers: int) -> int:
    """Samples by default: as many as keep the work small, between the least and the most.

    Args:
        model: the network.
        floats: in one sample.
        integers: likewise.
    """
    weights = max(1, sum(parameter.numel() for parameter in model.parameters()))
    least, most = LEAST_INTEGERS if integers else LEAST_FLOATS, MOST
    if floats:
        most = min(most, FLOATS // floats, FLOAT_WORK // weights)
    if integers:
        most = min(most, INTEGERS // integers, INTEGER_WORK // weights)
    return max(least, most)


def _on(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    """The network, or a copy of it on another device."""
    if device is None:
        return model
    try:
        wanted = torch.empty(0, device=device).device
        return model if wanted == device_of(model) else copied(model).to(wanted)
    except TQCError:
        raise
    except Exception as error:
        raise EncodeError(f"device {str(device)!r}: {foreign.described(error)}") from error


def _pictures(
    model: nn.Module,
    count: int,
    sides: tuple[int, int],
    mean: Numbers,
    std: Numbers,
    generator: torch.Generator,
) -> Parts:
    """Dead leaves, normalised as the network wants them."""
    channels = _channels(model)
    means, stds = (_by_channel(*one, channels) for one in (("mean", mean), ("std", std)))
    if not stds.all():
        raise EncodeError("std must not be 0")
    seed = int(torch.randint(1 << 62, (), generator=generator, device="cpu"))
    leaves = torch.from_numpy(dead_leaves(count, *sides, channels=channels, seed=seed))
    part = Part(
        leaves.float() / 255, 255 / stds, -means / stds, is_picture=True, dtype=_type_of(model)
    )
    return {ALONE: part}


def _sides(model: nn.Module, size: Size, most: int) -> tuple[int, int]:
    """Height and width of the pictures: those asked for, or smaller where the network takes them.

    Args:
        model: the network.
        size: as in `synthetic_inputs`.
        most: of the short side, in pixels.
    """
    need("size", size, (int, tuple, list), "a number of pixels or (height, width)")
    given = (size, size) if isinstance(size, int) else tuple(size)
    if len(given) != 2:
        raise EncodeError(f"size {size} is not (height, width)")
    for side in given:
        need_number("size", side, 1, MOST_SIZE)
    height, width = given
    if min(given) <= most:
        return height, width
    # Multiples of what networks usually divide by, as their own sizes are.
    smaller = [max(1, round(side * most / min(given) / STRIDE)) * STRIDE for side in given]
    kind, where = _type_of(model), device_of(model)
    try:
        with unchanged(model, where, 0), torch.no_grad():
            model(torch.zeros(2, _channels(model), *smaller, dtype=kind, device=where))
    except Exception:  # a network for one size: what else is wrong shows when it runs on that
        return height, width
    return smaller[0], smaller[1]


def _channels(model: nn.Module) -> int:
    """Of the pictures that a network takes."""
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)


def _type_of(model: nn.Module) -> torch.dtype:
    """Of the floats that a network takes."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _by_channel(what: str, values: Numbers, channels: int) -> Tensor:
    """One number for each channel, float32 (channels, 1, 1)."""
    try:
        given = torch.as_tensor(values, dtype=torch.float32, device="cpu").flatten()
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise EncodeError(f"{what} {values!r}: not numbers") from error
    if len(given) not in (1, channels) or not given.isfinite().all():
        raise EncodeError(f"{what} {values}: not one finite number, nor one for each of {channels}")
    return given.expand(channels).reshape(channels, 1, 1)


def _tokens(model: nn.Module, count: int, length: int, generator: torch.Generator) -> Parts:
    shares = shares_of(embedding_of(model))
    return {ALONE: Part(random_tokens(count, length, shares, generator))}


def _split(parts: Parts, count: int, most: int, device: torch.device) -> list[Parts]:
    """Batches of about equal size, `most` samples at most; as many as holding some out needs."""
    batches = max(min(LEAST, count), math.ceil(count / most))
    bounds = [count * i // batches for i in range(batches + 1)]
    return [
        {name: part.chosen(slice(start, end), device) for name, part in parts.items()}
        for start, end in itertools.pairwise(bounds)
    ]


@dataclass(frozen=True)
class _Finish:
    """What is done to each batch.

    Attributes:
        rounds: calls of `done` that it takes.
        call: with the parts, the number of the batch and `done`; returns new parts.
    """

    rounds: int
    call: Callable[[Parts, int, Callable[[], None]], Parts]


def _finish(
    model: nn.Module,
    first: Parts,
    tokens: int | None,
    recipe: SyntheticRecipe,
    generator: torch.Generator,
) -> _Finish:
    """What a network can do for its inputs.

    Args:
        model: the network.
        first: the first batch.
        tokens: length of texts, if it takes such.
        recipe: how inputs are moved.
        generator: of what is random.
    """
    moments, free = Moments(model), replace(recipe, outputs=0.0)
    if recipe.steps and moments.norms and any(part.gain is not None for part in first.values()):

        def moved(parts: Parts, number: int, done: Callable[[], None]) -> Parts:
            own = recipe if number % 2 else free
            with moments.watching():
                return move(model, moments, parts, number, own, generator, done)

        return _Finish(recipe.steps, moved)
    if tokens is not None:
        writer = Writer(model, embedding_of(model).num_embeddings)
        if writer.writes(first[ALONE].values):

            def written(parts: Parts, number: int, done: Callable[[], None]) -> Parts:
                return {ALONE: Part(writer.written(parts[ALONE].values, generator, done))}

            return _Finish(tokens - 1, written)
    args, kwargs = call_of(first)  # nobody else runs it here, and it may not take such inputs
    Runner(model)(args, kwargs)
    return _Finish(0, lambda parts, number, done: parts)


def _finished(
    batches: list[Parts], finish: _Finish, buffers: Buffers, progress: Progress | None
) -> list[Any]:
    total, steps = len(batches) * finish.rounds, 0
    buffers.restore()

    def done() -> None:
        nonlocal steps
        steps += 1
        buffers.restore()
        if progress is not None:
            progress("synthetic inputs", steps, total)

    made = []
    for number, parts in enumerate(batches, start=1):
        found = finish.call(parts, number, done)
        made.append(batch_of({n: p.chosen(slice(None), CPU) for n, p in found.items()}))
    return made


@contextmanager
def _explained(has_example: bool) -> Iterator[None]:
    """What the user's network or example raises becomes one line that says what to do."""
    try:
        yield
    except (TQCError, MemoryError):
        raise
    except Exception as error:
        reason = f"the network fails on made-up inputs: {foreign.described(error)}"
        if has_example:
            raise EncodeError(f"{reason}; or no inputs can be made like the example") from error
        raise EncodeError(
            f"{reason}; give one batch that it takes as the example (--example)"
        ) from error
