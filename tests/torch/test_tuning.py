"""Tuning: vectors make up for disturbed matrices, and nothing else is touched."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from kinds import Counts
from seen import Seen
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import tqcodec
from tqcodec import EncodeReport, Origin, Settings
from tqcodec.errors import EncodeError, EncodeWarning, EvaluationError
from tqcodec.torch.tuning import Distances, tune

CLASSES = 5


class Net(nn.Module):
    """Two paths that share a normalisation, and a dropout that must not draw."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 12, 3, bias=False)
        self.bn = nn.BatchNorm2d(12)
        self.norm = nn.LayerNorm(12)
        self.same = self.norm
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(12, CLASSES)
        self.count = nn.Parameter(torch.arange(3), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(3))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.bn(self.conv(x)).relu().mean((2, 3))
        return 3 * self.fc(self.drop(self.same(self.norm(x))))


NAMES = {"bn.weight", "bn.bias", "fc.bias", "unused"} | {
    f"{module}.{vector}" for module in ("norm", "same") for vector in ("weight", "bias")
}


@pytest.fixture(scope="module")
def model() -> Net:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for x in data(8):
            net(x)
    return net


def data(batches: int, seed: int = 1) -> list[Tensor]:
    return list(torch.randn(batches, 16, 2, 6, 6, generator=generator(seed)))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def disturbed(model: nn.Module) -> dict[str, Tensor]:
    """Each row of a matrix times a factor, and some noise."""
    draw, state = generator(7), dict(model.state_dict())
    for name, t in state.items():
        if t.ndim > 1:
            factors = 1 + 0.3 * torch.randn(len(t), *[1] * (t.ndim - 1), generator=draw)
            noise = 0.1 * t.float().std() * torch.randn(t.shape, generator=draw)
            state[name] = (t * factors + noise).to(t.dtype)
    return state


def divergence(model: nn.Module, state: dict[str, Tensor], batches: list[Tensor]) -> float:
    """Mean of KL(softmax(original) || softmax(state)), written out."""
    other = copy.deepcopy(model).eval()
    original = copy.deepcopy(model).eval()
    other.load_state_dict(state)
    with torch.no_grad():
        p, q = (m(torch.cat(batches)).softmax(1).double() for m in (original, other))
    return float((p * (p / q).log()).sum(1).mean())


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_outputs_of_other_data_come_nearer(model: Net) -> None:
    state = disturbed(model)
    new = tune(model, state, data(16), epochs=5, rate=3e-2)
    before = divergence(model, state, data(10, seed=2))
    after = divergence(model, {**state, **new}, data(10, seed=2))
    assert after < 0.5 * before


def test_gives_vectors_only(model: Net) -> None:
    state = {name: t.to(torch.float64) for name, t in disturbed(model).items()}
    new = tune(model, state, data(9), epochs=1)
    assert new.keys() == NAMES
    assert all(t.dtype == torch.float64 and not t.requires_grad for t in new.values())
    assert torch.equal(new["norm.weight"], new["same.weight"])
    assert torch.equal(new["unused"], torch.ones(3).double())
    assert not torch.equal(new["bn.weight"], state["bn.weight"])


def test_changes_nothing_else(model: Net) -> None:
    model.train()
    model.fc.weight.requires_grad_(False)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    state = disturbed(model)
    kept, calls = copy.deepcopy(state), model.calls

    def fails(stage: str, done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    first = tune(model, state, data(9), epochs=1, seed=3)
    with pytest.raises(KeyboardInterrupt):
        tune(model, state, data(9), progress=fails)
    torch.rand(5)  # the seed alone matters
    assert equal(first, tune(model, state, data(9), epochs=1, seed=3))
    assert not equal(first, tune(model, state, data(9), epochs=1, seed=4))

    torch.set_rng_state(random)
    tune(model, state, TensorDataset(torch.cat(data(9))), epochs=1)
    assert torch.equal(torch.get_rng_state(), random)
    assert equal(model.state_dict(), before) and equal(state, kept)
    assert all(module.training for module in model.modules()) and model.calls == calls
    assert model.bn.weight.requires_grad and model.bn.weight.grad is None
    assert not model.fc.weight.requires_grad
    model.fc.weight.requires_grad_(True)


def test_all_kinds_of_batches(model: Net) -> None:
    state, batches = disturbed(model), data(4)

    def once() -> Iterator[Any]:
        yield from batches

    wanted = tune(model, state, batches, epochs=2)
    labelled = [(x, torch.zeros(len(x))) for x in batches]
    for other in (once(), [{"x": x} for x in batches], labelled):
        assert equal(wanted, tune(model, state, other, epochs=2))
    seen = Seen()
    assert equal(wanted, tune(model, state, batches, epochs=2, outputs=seen))
    assert seen


def test_each_run_finds_the_buffers_as_they_are() -> None:
    """So a network is no distance from itself, whichever batch comes first."""
    model = Counts().eval()
    batches = list(torch.randn(3, 8, 64, generator=generator(1)))
    distances = Distances(copy.deepcopy(model), model, batches, None)
    assert distances.mean_loss([2, 0, 1]) == 0
    assert float(distances.loss(1).detach()) == 0


def test_data_that_teach_nothing(model: Net) -> None:
    """What is learned from the training batches is wrong for those held out."""
    state = disturbed(model)
    good, noise = data(2), [50 * x for x in data(14, seed=5)]
    batches = noise[:3] + good[:1] + noise[3:10] + good[1:] + noise[10:]
    start = {name: state[name] for name in NAMES}
    assert equal(start, tune(model, state, batches, epochs=2, rate=0.5))
    assert equal(start, tune(model, state, batches, epochs=0))
    assert equal(start, tune(model, state, batches, rate=1e30))  # no longer finite
    exact = copy.deepcopy(model.state_dict())
    assert equal({n: exact[n] for n in NAMES}, tune(model, exact, batches))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_that_are_no_classes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = nn.Conv1d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv1d(8, 2, 3)
    net = nn.Sequential(*layers).to(dtype)
    state = disturbed(net)
    parts = torch.randn(11, 16, 3, 12, generator=generator(1)).to(dtype)
    new = tune(net, state, list(parts[:10]), epochs=8, rate=3e-3)
    assert all(t.dtype == dtype for t in new.values())

    def error(values: dict[str, Tensor]) -> float:
        other = copy.deepcopy(net)
        other.load_state_dict(values)
        with torch.no_grad():
            return float((other(parts[10]) - net(parts[10])).float().square().mean())

    assert error({**state, **new}) < 0.8 * error(state)


def test_nothing_to_tune() -> None:
    net, batches = nn.Linear(4, 3, bias=False), [torch.ones(2, 4)] * 2
    assert tune(net, net.state_dict(), batches) == {}
    net.register_parameter("unused", nn.Parameter(torch.ones(3)))
    assert equal(tune(net, net.state_dict(), batches), {"unused": torch.ones(3)})


def test_progress(model: Net) -> None:
    seen: list[tuple[str, int, int]] = []
    tune(model, disturbed(model), data(9), epochs=2, progress=lambda *step: seen.append(step))
    assert seen == [("tune", done, 16) for done in range(1, 17)]


@pytest.mark.parametrize(("batches", "steps"), [(2, 8), (9, 64), (36, 93), (80, 140)])
def test_few_batches_are_gone_through_more_often(model: Net, batches: int, steps: int) -> None:
    seen: list[tuple[str, int, int]] = []
    tune(model, disturbed(model), data(batches), progress=lambda *step: seen.append(step))
    assert seen[-1] == ("tune", steps, steps)


def test_temperatures_count(model: Net) -> None:
    state = disturbed(model)
    first = tune(model, state, data(9), epochs=1)
    assert equal(first, tune(model, state, data(9), epochs=1, temperatures=(1.0, 4.0)))
    assert not equal(first, tune(model, state, data(9), epochs=1, temperatures=(2, 8)))


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "there is 0"),
        (data(1), {}, "there is 1"),
        ([1, 2], {}, "a batch is an int"),
        (data(2), {"epochs": -1}, "epochs=-1"),
        (data(2), {"rate": 0.0}, "rate=0.0"),
        (data(2), {"temperatures": ()}, "one at least"),
        (data(2), {"temperatures": (1.0, 0.0)}, "above 0"),
        (data(2), {"outputs": lambda y: None}, "batch 1 is None"),
        (data(2), {"outputs": lambda y: y.argmax(1)}, "not numbers by sample"),
        ([data(1)[0], data(1)[0] / 0], {}, "batch 2 is not finite"),
    ],
)
def test_errors(model: Net, batches: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(EncodeError, match=message):
        tune(model, model.state_dict(), batches, **options)


def test_state_of_another_network(model: Net) -> None:
    with pytest.raises(EvaluationError, match="is not among the decoded ones"):
        tune(model, {}, data(2))


@pytest.mark.parametrize("target", [{"bits": 3.0}, {"max_size": 3300}], ids=str)
def test_tuning_that_does_not_fit_is_left_out(target: dict[str, Any]) -> None:
    """Vectors of equal numbers cost nothing until they are tuned; the target holds all the same."""
    rng = np.random.default_rng(0)
    tensors = {
        "linear.weight": rng.normal(size=(64, 128)).astype(np.float32),
        "norm.weight": np.ones(512, np.float32),
    }
    origins = dict.fromkeys(tensors, Origin.PARAMETER)
    wish, report = Settings(**target, side_bits=None, effort=1), EncodeReport()
    tuned = {"norm.weight": rng.normal(size=512).astype(np.float32)}
    with pytest.warns(EncodeWarning, match="tuning was left out: with it"):
        data = tqcodec.encode(tensors, wish, origins=origins, refine=lambda _: tuned, report=report)
    assert [one.kind for one in report.findings] == ["tuning"]
    assert len(data) <= target.get("max_size", 1.02 * 3 * 64 * 128 / 8)
    assert (tqcodec.decode(data)["norm.weight"] == 1).all()
