"""Retraining of odd networks and losses: nothing is lost silently, and refusals come first."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tqcodec
import tqcodec.torch as codec
from tqcodec.errors import EncodeError, EncodeWarning, EvaluationError
from tqcodec.torch.batches import Runner
from tqcodec.torch.retraining import checkpointing, judging, objective
from tqcodec.torch.retraining import start as starting
from tqcodec.torch.retraining.loop import call_of
from tqcodec.torch.retraining.recipe import TrainingRecipe
from tqcodec.torch.unchanged import Buffers

INPUTS = [torch.randn(4, 32, generator=torch.Generator().manual_seed(i)) for i in range(2)]
PLAIN = tqcodec.Statistics({})  # a start by weights alone, which is faster


class Layers(nn.Module):
    """Two matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(32, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.first(x).relu())


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def trained(model: nn.Module, batches: Any = INPUTS, bits: float = 6.0, **more: Any) -> bytes:
    more = {"epochs": 1, "statistics": PLAIN, **more}
    return codec.retrain(model, batches, tqcodec.Settings(bits=bits), **more)


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EncodeWarning)
        yield


class Fixed(Layers):
    """Its first layer matters, and no gradient reaches it."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.first(x)
        return self.last(y.relu())


def test_what_no_gradient_reaches_stays() -> None:
    """The bits alone would bring it to zero."""
    model = made(Fixed)
    fast = TrainingRecipe(rate=0.3, pull=1e5, trim=(), warm_up=0)
    with pytest.warns(EncodeWarning, match=r"by 1 of 2 matrices, .*: first.weight; the network"):
        file = trained(model, INPUTS * 4, bits=7.0, recipe=fast)
    found = codec.decode(file)
    assert (found["first.weight"] - model.get_parameter("first.weight")).abs().max() < 0.05


class Adds(Layers):
    """Makes a buffer when it first runs, and brings weights to a length whenever it runs."""

    def forward(self, x: Tensor) -> Any:
        if "mean" not in self._buffers:
            self.register_buffer("mean", x.mean(0).detach())
        weight = self.first.weight
        weight.data = functional.normalize(weight.data, dim=1)
        with torch.no_grad():
            self.last.weight.mul_(0.5)
        return super().forward(x - self.get_buffer("mean"))


class Words(nn.Module):
    """Brings vectors of words to a length when it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(32, 16, max_norm=0.5), nn.Linear(16, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.words(ids).mean(1))


@pytest.mark.parametrize(
    ("kind", "batch", "statistics"),
    [(Words, torch.arange(32).reshape(4, 8), None), (Adds, INPUTS[0], PLAIN)],
)
def test_networks_that_change_their_weights(
    kind: type[nn.Module], batch: Tensor, statistics: tqcodec.Statistics | None
) -> None:
    model = made(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with quiet():
        file = trained(model, [batch], 12.0, statistics=statistics, evaluate=lambda network: 0.0)
    after = model.state_dict()
    assert before.keys() == after.keys() == codec.decode(file).keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_weights_are_brought_back() -> None:
    """Those that are named, whatever a run did to them."""
    model = made(Adds)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = list(model.parameters())
    held = Buffers(model, parameters)
    model(INPUTS[0])
    model.get_submodule("last").weight = nn.Parameter(torch.zeros(8, 32))
    for _ in range(2):
        held.restore()
        assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
        assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
        model(INPUTS[0])


class Forces(nn.Module):
    """Differentiates by its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        x.requires_grad_(True)
        return torch.autograd.grad(self.energy(x).square().sum(), x, create_graph=True)[0]


def test_networks_that_differentiate() -> None:
    with quiet():
        assert codec.decode(trained(made(Forces)))


@pytest.mark.parametrize(
    "evaluate",
    [
        lambda network: float(len(vars(network.half()))),
        lambda n: len(vars(n.requires_grad_(False))),
    ],
)
def test_whatever_evaluate_does(evaluate: Callable[[nn.Module], float]) -> None:
    """To the network that it gets."""
    with quiet():
        files = [trained(made(Layers), epochs=2, evaluate=one) for one in (None, evaluate)]
    assert files[0] == files[1]


class Pair(NamedTuple):
    one: Tensor
    other: Any


def test_inputs_in_inputs() -> None:
    """All tensors are copies, and those of floats float32."""
    deep = torch.zeros(2, dtype=torch.float64)
    batch = ({"a": {"x": deep}, "b": [deep.half(), None], "c": Pair(deep, (deep.long(), "s"))}, 0)
    _, found = call_of(batch, torch.device("cpu"))
    one, two, pair = found["a"]["x"], found["b"], found["c"]
    assert one.dtype == two[0].dtype == pair.one.dtype == torch.float32 and two[1] is None
    assert type(pair) is Pair and pair.other[0].dtype == torch.int64 and pair.other[1] == "s"
    for changed in (one, pair.one):
        changed.add_(1)
    assert not deep.any()
    whole = Runner(lambda x: x["y"].add_(1))
    given = {"x": {"y": torch.zeros(1)}}
    whole(*call_of(given, torch.device("cpu")))
    assert not given["x"]["y"].any()


class Halves(Layers):
    """Makes float16 of what it gets, whatever its weights are."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.half())


class Renames(Layers):
    """Has a state dict that it does not load."""

    def state_dict(self, *arguments: Any, **more: Any) -> Any:
        state = super().state_dict(*arguments, **more)
        del state["last.bias"]
        return state


LABELS = torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        (Halves, {}, "float32 copy .* does not run: RuntimeError: .*: leave out what makes"),
        (Layers, {"loss": lambda given, batch: given}, r"the loss is of shape \(4, 8\)"),
        (Layers, {"loss": lambda given, batch: given.sum() * 1j}, "complex64, not a tensor of one"),
        (Layers, {"batches": [(INPUTS[0], LABELS + 8)]}, "labels are 8 to 8, the network has 8"),
        (Layers, {"batches": [((INPUTS[0],), LABELS)]}, "a batch begins with a tuple, not a tens"),
    ],
)
def test_refusals_come_first(
    model: type[nn.Module], more: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("calibrates")

    monkeypatch.setattr(starting, "calibrate", refuse)
    network = made(model).half() if model is Halves else made(model)
    more = {"statistics": None, **more}
    with pytest.raises(EncodeError, match=message):
        trained(network, more.pop("batches", INPUTS), **more)


def test_a_state_dict_that_does_not_load() -> None:
    """Is refused where the decoded network is to be evaluated, not after the training."""
    with pytest.raises(EvaluationError):
        trained(made(Renames), evaluate=lambda network: pytest.fail("trained"))


def test_a_size_that_cannot_be_reached() -> None:
    """Is refused before the first step: the start may be larger, but what is not trained counts."""
    with pytest.raises(EncodeError, match="cannot be reached from this start"):
        trained(made(Layers), bits=1.0, watch=lambda moment: pytest.fail("trained"))


@pytest.mark.parametrize(
    ("second", "about"),
    [
        (LABELS, None),
        (None, None),
        (LABELS[:, None], r"torch.int64 \(4, 1\) is no whole number for each sample"),
        (torch.zeros(4, 8), r"torch.float32 \(4, 8\) is no"),
        (["name"] * 4, "a list is no"),
    ],
)
def test_labels_that_do_not_count(second: Any, about: str | None) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", EncodeWarning)
        judging.check_batch(made(Layers), [(INPUTS[0], second)], None)
        judging.check_batch(made(Layers), [(INPUTS[0], second)], lambda given, batch: given.sum())
    assert len(caught) == (about is not None)
    assert about is None or re.search(about, str(caught[0].message))


@pytest.mark.parametrize(
    ("size", "distances", "about"),
    [
        (9990, (0.4, 1.0), None),
        (10_000, (0.0, 0.0), None),
        (9150, (0.4, 1.0), "9150 bytes, 0.915 bits per weight, where 10000 bytes, 1.000 bits"),
        (9990, (0.6, 1.0), "outputs are 0.6 from the original's, .* for every input would be 1:"),
    ],
)
def test_what_there_is_to_know_of_a_file(
    size: int, distances: tuple[float, float], about: str | None
) -> None:
    """A file that is much smaller than asked for, and outputs of which little is left."""
    loop: Any = SimpleNamespace(
        student=SimpleNamespace(latents={"one": None}, weights=80_000),
        state=SimpleNamespace(reached={"one": True}),
        distances=lambda: distances,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", EncodeWarning)
        judging.judge(loop, size, 10_000)
    assert len(caught) == (about is not None)
    assert about is None or re.search(about, str(caught[0].message))


@pytest.mark.parametrize(("capability", "is_slow"), [("AVX2", True), ("AVX512", False)])
def test_processors_without_bfloat16(
    capability: str, is_slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", EncodeWarning)
        judging.warn_of_bfloat16(torch.device("cpu"))
        judging.warn_of_bfloat16(torch.device("cuda"))
    assert [str(one.message).endswith("leave it out") for one in caught] == [True] * is_slow


def test_outputs_that_are_alike() -> None:
    """Their distance is the variance over the energy."""
    wanted = 3 + torch.randn(6, 5, 4)
    found = float(wanted.var(0).mean() / wanted.square().mean())
    assert objective.chance(wanted, 6) == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize("damage", ["flip", "cut", "other", "nothing"])
def test_a_damaged_checkpoint(damage: str, tmp_path: Path) -> None:
    """Torch takes flipped bits for numbers; the training would go on with them."""
    path = tmp_path / "run.ckpt"
    torch.save({"facts": {"seed": "1"}, "values": torch.full((100,), 7.0)}, path)
    data = bytearray(path.read_bytes())
    assert checkpointing.load(path, {"seed": "1"}) is not None
    if damage == "flip":
        data[data.index(torch.full((100,), 7.0).numpy().tobytes()) + 90] ^= 64
    path.write_bytes(data[: {"cut": -100, "nothing": 0}.get(damage)])
    if damage == "other":
        torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(EncodeError, match=r"run.ckpt: not a checkpoint .*: remove it, or name"):
        checkpointing.load(path, {"seed": "1"})
    assert path.exists()


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), MemoryError()])
def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.ckpt"
    torch.save({"facts": {"seed": "1"}}, path)

    def failing(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(torch, "load", failing)
    with pytest.raises(type(error)):
        checkpointing.load(path, {"seed": "1"})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_batches_of_another_type_than_the_network(dtype: torch.dtype) -> None:
    """They are trained on in float32, so they calibrate in it, too."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).to(dtype)
    file = codec.retrain(model, [torch.randn(4, 64)], tqcodec.Settings(bits=6), epochs=1)
    assert {one.dtype for one in codec.decode(file).values()} == {dtype}
