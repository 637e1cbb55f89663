"""Blocks inside of a network that training compares with the original's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

import tqcodec
from tqcodec import torch as codec
from tqcodec.torch.batches import copied
from tqcodec.torch.retraining.hints import MOST, Hints
from tqcodec.torch.retraining.recipe import TrainingRecipe

SAMPLES, WIDE = 6, 24
WITH = TrainingRecipe(hints=4.0)


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
    "in place": (
        lambda: nn.Sequential(
            *(nn.Sequential(nn.Linear(WIDE, WIDE), nn.ReLU(inplace=True)) for _ in range(2)),
            nn.Linear(WIDE, 3),
        ),
        ["0", "1"],
    ),
    "parametrized": (
        lambda: nn.Sequential(weight_norm(nn.Linear(WIDE, SAMPLES)), nn.Linear(SAMPLES, 3)),
        ["0"],
    ),
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
    hints = Hints(student, original)
    hints.choose(((inputs(),), {}), SAMPLES)
    assert all(parameter.grad is None for parameter in student.parameters())
    return hints, student, original


def taken(hints: Hints) -> float:
    found = float(torch.as_tensor(hints.take()).detach())
    hints.clear()
    return found


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
        assert all(p.grad is None for p in original.parameters())


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


def test_places_that_are_not_finite_do_not_count() -> None:
    torch.manual_seed(0)
    hints, student, original = hinted(Masked())
    assert hints.names == ["block"]
    x = inputs()
    x[0, :5] = 0  # masked there
    student(x), original(x)
    assert taken(hints) == 0.0
    y = inputs(1)
    student(x), original(y)
    found = hints.take()
    assert isinstance(found, Tensor) and found.isfinite()
    found.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


def test_copies_are_not_watched() -> None:
    torch.manual_seed(0)
    _, student, _ = hinted(Blocks(2))
    copy = Hints.unwatched(copied(student))
    assert not any(module._forward_hooks for module in copy.modules())
    assert any(module._forward_hooks for module in student.modules())


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


def trained(model: nn.Module, batches: Any = None, **more: Any) -> tuple[bytes, float]:
    """The file of a short training, and the first loss."""
    moments: list[codec.TrainingMoment] = []
    file = codec.retrain(
        model,
        [inputs(seed) for seed in range(4)] if batches is None else batches,
        tqcodec.Settings(bits=10),
        **{"epochs": 2, "watch": moments.append, "recipe": WITH, **more},
    )
    return file, moments[0].loss


def test_training_with_and_without() -> None:
    torch.manual_seed(0)
    model = Blocks(3).eval()
    with_hints, loss = trained(model)
    without, less = trained(model, recipe=TrainingRecipe())
    assert loss > less > 0 and with_hints != without
    assert trained(model) == (with_hints, loss)

    def evaluate(network: nn.Module) -> float:
        assert not any(module._forward_hooks for module in network.modules())
        return 0.0

    assert trained(model, evaluate=evaluate) == (with_hints, loss)
    # The user's network has no hooks of ours, nor gradients.
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


class Masking(Block):
    def forward(self, x: Tensor) -> Any:
        mask = x == 0
        mask[:, 0] = True
        return super().forward(x).masked_fill(mask, -math.inf)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.classes = Masking(), nn.Linear(WIDE, 3)

    def forward(self, x: Tensor) -> Any:
        return self.classes(self.block(x).softmax(1))


class Padded(nn.Module):
    """Attention makes nested tensors of what is padded."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDE, 2, 32, batch_first=True)
        self.encoder, self.classes = nn.TransformerEncoder(layer, 2), nn.Linear(WIDE, 3)

    def forward(self, x: Tensor) -> Any:
        x = x[:, None].repeat(1, 3, 1)
        mask = torch.zeros(x.shape[:2], dtype=torch.bool)
        mask[::2, 2] = True
        return self.classes(self.encoder(x, src_key_padding_mask=mask)[:, 0])


class Forces(nn.Module):
    """The energy's graph is gone when its gradient is there."""

    def __init__(self) -> None:
        super().__init__()
        self.energy, self.block, self.classes = Block(), Block(), nn.Linear(WIDE, 3)

    def forward(self, x: Tensor) -> Any:
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(z).sum(), z)
        return self.classes(self.block(x + slope))


class Again(Blocks):
    """Computes once more what backward needs."""

    reentrant = False

    def forward(self, x: Tensor) -> Any:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.classes(x)


class Counting(Blocks):
    """Another branch in each run; that of both networks is the same."""

    runs = 0

    def forward(self, x: Tensor) -> Any:
        self.runs += 1
        return self.classes(self.blocks[self.runs % 2](x))


def test_networks_that_count_their_runs() -> None:
    torch.manual_seed(0)
    model = Counting(2)
    assert trained(model, recipe=TrainingRecipe())[1] < trained(model)[1] < 2


@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_large_and_small_numbers_inside(size: float) -> None:
    torch.manual_seed(0)
    network = Blocks(1)
    network.blocks[0] = Block(lambda y: y * size)
    hints, student, original = hinted(network)
    student(inputs()), original(inputs(1))
    assert 0.1 < taken(hints) < 10


def test_what_hardly_varies_does_not_count() -> None:
    torch.manual_seed(0)
    network = Blocks(1)
    network.blocks[0] = Block(lambda y: y + 1e3)
    hints, student, original = hinted(network)
    student(inputs()), original(inputs(1))
    assert taken(hints) == 0.0


class Sometimes(Blocks):
    def forward(self, x: Tensor) -> Any:
        for block in self.blocks[: 1 + int(x.mean() > 0) * 2]:
            x = block(x)
        return self.classes(x)


def reentrant() -> nn.Module:
    model = Again(3)
    model.reentrant = True
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "build",
    [Masked, Padded, Forces, lambda: Again(3), reentrant, lambda: Sometimes(3)],
    ids=["masked", "padded", "forces", "checkpoint", "reentrant", "sometimes"],
)
def test_networks_that_are_odd_inside(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = build()
    file, loss = trained(model)
    assert math.isfinite(loss)
    assert codec.decode(file).keys() == model.state_dict().keys()


class Drawn:
    """Batches by torch's generator."""

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(4):
            yield torch.randn(SAMPLES, WIDE) + torch.randn(())


def test_a_cut_training_has_the_same_hints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tqcodec.torch.retraining.checkpointing.EVERY", 0.0)
    torch.manual_seed(0)
    model = Sometimes(3)
    more: dict[str, Any] = {"epochs": 3, "recipe": TrainingRecipe(fit_every=1, hints=4.0)}
    whole, _ = trained(model, Drawn(), **more)

    def cut(moment: codec.TrainingMoment) -> None:
        if moment.step == 7:
            raise KeyboardInterrupt

    for seed in range(4):
        torch.manual_seed(seed)
        more |= {"checkpoint": tmp_path / f"{seed}.ckpt", "resume": True}
        with pytest.raises(KeyboardInterrupt):
            trained(model, Drawn(), **{**more, "watch": cut})
        torch.manual_seed(seed + 9)
        assert trained(model, Drawn(), **more)[0] == whole


def test_compiled_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(function: Any, wanted: bool) -> Any:
        return torch.compile(function, backend="eager") if wanted else function

    monkeypatch.setattr("tqcodec.torch.retraining.loop._compiled", compiled)
    torch.manual_seed(0)
    model = Blocks(2)
    assert trained(model, compiled=True) == trained(model)
