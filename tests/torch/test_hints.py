"""Blocks inside of a network that training compares with the original's."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tqcodec
from tqcodec import torch as codec
from tqcodec.torch.batches import Runner, copied
from tqcodec.torch.retraining.hints import MOST, Hints
from tqcodec.torch.retraining.recipe import TrainingRecipe

SAMPLES, WIDE = 6, 24


class Block(nn.Module):
    def __init__(self, out: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(WIDE, WIDE), out

    def forward(self, x: Tensor) -> Any:
        return self.out(x + self.layer(x).relu())


class Blocks(nn.Module):
    """Blocks, perhaps some again, and a head."""

    def __init__(self, count: int, again: int = 0, head: Callable[[Tensor], Any] | None = None):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(count))
        self.again, self.classes = again, nn.Linear(WIDE, 3)
        self.head = head or (lambda y: y)

    def forward(self, x: Tensor) -> Any:
        for block in (*self.blocks, *self.blocks[: self.again]):
            x = block(x)
            x = x[0] if isinstance(x, tuple) else x
        return self.head(self.classes(x))


class Wrapped(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.module(x)


def pairs() -> Blocks:
    found = Blocks(2)
    found.blocks = nn.ModuleList(Block(lambda y: (y, y.mean())) for _ in range(2))
    return found


def frozen() -> Blocks:
    found = Blocks(3)
    found.blocks[1].requires_grad_(False)
    return found


NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "fewer than the most": (lambda: Blocks(2), ["blocks.0", "blocks.1"]),
    "more": (lambda: Blocks(9), [f"blocks.{i}" for i in (1, 3, 6, 8)]),
    "run twice": (lambda: Blocks(3, again=1), ["blocks.1", "blocks.2"]),
    "several outputs of a block": (pairs, ["blocks.0", "blocks.1"]),
    "not trained": (frozen, ["blocks.0", "blocks.2"]),
    "wrapped": (lambda: Wrapped(Blocks(1)), ["module.blocks.0"]),
    "layers alone": (
        lambda: nn.Sequential(
            nn.Linear(WIDE, WIDE), nn.ReLU(), nn.Linear(WIDE, 5), nn.Linear(5, 3)
        ),
        ["0", "2"],
    ),
    "one layer": (lambda: nn.Linear(WIDE, 3), []),
    "no scores": (lambda: Blocks(2, head=lambda y: y[:, :, None]), []),
    "one class": (lambda: Blocks(2, head=lambda y: y[:, :1]), []),
    "several outputs": (lambda: Blocks(2, head=lambda y: (y, y + 1)), []),
    "TorchScript": (lambda: torch.jit.trace(Blocks(2), torch.ones(SAMPLES, WIDE)), []),
    "a part in TorchScript": (
        lambda: nn.Sequential(
            torch.jit.script(nn.Linear(WIDE, WIDE)), nn.Linear(WIDE, WIDE), nn.Linear(WIDE, 3)
        ),
        ["1"],
    ),
}


def inputs(seed: int = 0) -> Tensor:
    return torch.randn(SAMPLES, WIDE, generator=torch.Generator().manual_seed(seed))


def hinted(network: nn.Module) -> tuple[Hints, Any, Any]:
    student, original = network, copied(network)
    for parameter in original.parameters():
        parameter.requires_grad_(False)
    hints = Hints(student, original)
    hints.choose(Runner(original), ((inputs(),), {}), SAMPLES)
    return hints, student, original


def taken(hints: Hints) -> float:
    return float(torch.as_tensor(hints.take()).detach())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_which_blocks_are_compared(name: str) -> None:
    build, names = NETWORKS[name]
    torch.manual_seed(0)
    hints, student, original = hinted(build())
    assert hints.names == names and len(names) <= MOST
    assert taken(hints) == 0.0  # nothing has run yet
    student(inputs())
    assert taken(hints) == 0.0
    student(inputs()), original(inputs())
    assert taken(hints) == 0.0
    student(inputs()), original(inputs(1))
    found = hints.take()
    assert isinstance(found, Tensor) == bool(names)
    if isinstance(found, Tensor):
        assert float(found.detach()) > 0.1
        found.backward()
        assert any(p.grad is not None and p.grad.any() for p in student.parameters())


def test_the_distance_is_the_error_over_the_variance() -> None:
    torch.manual_seed(0)
    hints, student, original = hinted(Blocks(1))
    student(inputs()), original(inputs(1))
    x, y = (n.blocks[0](i) for n, i in ((student, inputs()), (original, inputs(1))))
    wanted = (x - y).square().mean() / y.var(correction=0)
    assert taken(hints) == pytest.approx(float(wanted.detach()))
    # Another number of samples, and outputs that do not vary, do not count.
    student(inputs()), original(inputs()[:2])
    assert taken(hints) == 0.0
    original.blocks[0].layer.requires_grad_(False)
    with torch.no_grad():
        original.blocks[0].layer.weight.zero_(), original.blocks[0].layer.bias.zero_()
    student(inputs()), original(torch.full((SAMPLES, WIDE), 2.0))
    assert taken(hints) == 0.0
    with torch.no_grad():
        student(inputs())
    original(inputs())
    assert taken(hints) == 0.0


def test_copies_are_not_watched() -> None:
    torch.manual_seed(0)
    hints, student, original = hinted(Blocks(2))
    student(inputs()), original(inputs())
    copied(student)(inputs(1))
    torch.save(copied(student).state_dict(), io.BytesIO())
    assert taken(hints) == 0.0


def test_compiled_networks_are_watched() -> None:
    torch.manual_seed(0)
    hints, student, original = hinted(Blocks(3))
    compiled: Any = torch.compile
    one, other = (compiled(n, backend="eager") for n in (student, original))
    for seed in (1, 2):
        student(inputs()), original(inputs(seed))
        wanted = taken(hints)
        one(inputs()), other(inputs(seed))
        assert taken(hints) == pytest.approx(wanted) != 0


def test_training_with_and_without() -> None:
    torch.manual_seed(0)
    model = Blocks(3).eval()
    batches = [inputs(seed) for seed in range(4)]
    settings = tqcodec.Settings(bits=16)

    def trained(**fields: Any) -> tuple[bytes, float]:
        moments: list[codec.TrainingMoment] = []
        file = codec.retrain(
            model,
            batches,
            settings,
            epochs=2,
            recipe=TrainingRecipe(**fields),
            watch=moments.append,
        )
        return file, moments[0].loss

    with_hints, loss = trained()
    without, less = trained(hints=0.0)
    assert loss > less > 0 and with_hints != without
    assert trained() == (with_hints, loss)
    # The user's network has no hooks of ours.
    assert not any(module._forward_hooks for module in model.modules())
