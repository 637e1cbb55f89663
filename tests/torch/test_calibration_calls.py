"""Layers that are called in unusual ways: their sums, what they are told of, and what they lack."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_calibration import SEED, Net, assert_near, blocks_of, data, gradients, seeded
from torch import Tensor, nn
from torch.nn import functional

import tqcodec
import tqcodec.torch
from tqcodec.encoder.statistics import ARRAYS, WeightStatistics
from tqcodec.torch import calibrate
from tqcodec.torch.calibration.recorder import UNUSED


class Calls(nn.Module):
    """A layer, and a function of it and of the input."""

    def __init__(self, layer: nn.Module, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer, x)


def assert_same(one: WeightStatistics, other: WeightStatistics) -> None:
    assert (one.images, one.probes, one.vectors) == (other.images, other.probes, other.vectors)
    for array in ARRAYS:
        assert_near(getattr(one, array), torch.tensor(getattr(other, array)))


@pytest.mark.parametrize(
    ("make", "shape"),
    [(lambda: nn.Linear(9, 8), (9,)), (lambda: nn.Conv1d(3, 8, 3), (3, 6))],
    ids=["linear", "convolution"],
)
def test_samples_that_come_one_by_one(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    """Without a dimension for the batch; which sample a call is of is not known."""
    plain, x = seeded(lambda: Net(make())), data(2, *shape)
    model = Calls(plain.layer, lambda layer, x: torch.stack([layer(one) for one in x]))
    single = Net(model)
    name = "layer.layer.weight"
    for batch in x.split(1):
        one = calibrate(single, [batch], seed=SEED)[name]
        assert_same(one, calibrate(plain, [batch], seed=SEED)["layer.weight"])
    both = calibrate(single, [x], seed=SEED)[name]
    whole = calibrate(plain, [x], seed=SEED)["layer.weight"]
    assert_near(both.inputs, torch.tensor(whole.inputs))
    summed = gradients(plain, x, "layer.weight", 1, 0).sum(0, keepdim=True)
    assert_near(both.gradients, blocks_of(summed, 1, by_rows=True))


def test_samples_whose_places_lie_in_the_batch() -> None:
    plain, x = seeded(lambda: Net(nn.Linear(9, 8))), data(4, 3, 9)
    flat = Net(Calls(plain.layer, lambda layer, x: layer(x.flatten(0, 1)).reshape(4, 3, 8)))
    one = calibrate(flat, [x], seed=SEED)["layer.layer.weight"]
    assert_same(one, calibrate(plain, [x], seed=SEED)["layer.weight"])


def test_embeddings_in_blocks_and_calls_that_lead_nowhere() -> None:
    tokens = torch.tensor([[3, 1, 1], [0, 11, 3]])
    plain = seeded(lambda: Net(nn.Embedding(12, 10)))
    whole = calibrate(plain, [tokens], seed=SEED)["layer.weight"]
    narrow = calibrate(plain, [tokens], seed=SEED, block=4)["layer.weight"]
    padded = functional.pad(torch.tensor(whole.inputs[0]), (0, 2, 0, 2))
    for i, part in enumerate((slice(0, 4), slice(4, 8), slice(8, 12))):
        assert_near(narrow.inputs[i], padded[part, part])
    assert (narrow.outputs == whole.outputs).all()

    def twice(layer: Any, x: Tensor) -> Tensor:
        layer(x + 1 - x)  # what it gives is not used
        return layer(x)

    asked = Net(Calls(plain.layer, twice))
    assert_same(calibrate(asked, [tokens], seed=SEED)["layer.layer.weight"], whole)


def both_ways(layer: Any, x: Tensor) -> Tensor:
    return functional.conv_transpose1d(layer(x), layer.weight)


def overwritten(layer: Any, x: Tensor) -> Tensor:
    y = layer(x)
    x.add_(1)
    return y + x


@pytest.mark.parametrize(
    ("call", "message"),
    [(both_ways, "used in two ways"), (overwritten, "its input is overwritten after use")],
)
def test_why_a_weight_has_no_statistics(call: Any, message: str) -> None:
    model = seeded(lambda: Calls(nn.Conv1d(8, 8, 3, padding=1), call))
    found = calibrate(model, [data(2, 8, 5)])
    assert (dict(found), found.without) == ({}, {"layer.weight": message})


def test_recurrent_layers_that_drop_at_random_are_left_to_torch() -> None:
    def drops(layer: Any, x: Tensor) -> Tensor:
        layer.train()  # as for samples of what a network does not know
        return layer(x)[0]

    model = seeded(lambda: Calls(nn.LSTM(6, 8, num_layers=2, dropout=0.5), drops))
    found = calibrate(model, [data(3, 5, 6)])
    assert not found and set(found.without.values()) == {UNUSED}


class Normed(nn.Module):
    """Batch normalisations that no layer comes straight before."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm1d(8)  # of the input
        self.changed, self.behind = nn.Conv1d(8, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.rows, self.places = nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.changed(self.first(x)).relu_()
        x = self.rows(self.behind(x))
        return self.places(x)  # by place; the rows of the layer lie along the last dimension


def test_normalisations_that_take_up_nothing() -> None:
    found = calibrate(seeded(Normed), [data(4, 8, 8)])
    facts = {name: (one.shift, one.gain) for name, one in found.items()}
    assert facts == {"changed.weight": ("changed.bias", None), "rows.weight": (None, None)}


def test_batches_that_reach_no_matrix_count() -> None:
    """The gradient of their samples is 0, as it is where they come beside others."""

    class Guarded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expert = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            out, chosen = torch.zeros_like(x), x[:, 0] > 0
            if chosen.any():
                out[chosen] = self.expert(x[chosen])
            return out

    model, x = seeded(Guarded), data(16, 8)
    x[:, 0] = torch.linspace(-1, 1, 16)
    ends: list[tuple[int, int]] = []
    for batches in ([x], [x[:8], x[8:]], [x[8:], x[:8]]):
        one = calibrate(model, batches, probes=2)["expert.weight"]
        ends.append((one.images, one.probes))
    assert ends == [(16, 32)] * 3


class Hidden(nn.Module):
    """Counts its runs by a write that autograd is not told of, as kernels of observers do."""

    runs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(8 * 36, 4)
        self.register_buffer("runs", torch.tensor([1.0, math.nan]))

    def forward(self, x: Tensor) -> Tensor:
        self.runs.numpy()[0] += 1
        return self.head(self.body(x)) * self.runs[0]


@pytest.mark.filterwarnings("ignore::tqcodec.EncodeWarning")
def test_what_a_network_writes_without_a_word_is_as_before() -> None:
    torch.manual_seed(0)
    model = Hidden().eval()
    batches = [torch.randn(4, 3, 8, 8) for _ in range(4)]
    before = {name: value.numpy().tobytes() for name, value in model.state_dict().items()}

    def check() -> None:
        for name, value in model.state_dict().items():
            assert before[name] == value.numpy().tobytes(), name

    statistics = tqcodec.torch.calibrate(model, batches)
    check()
    settings = tqcodec.Settings(bits=12)
    data = tqcodec.torch.encode(model, settings, statistics, tune=batches, held_out=batches)
    check()
    assert tqcodec.torch.decode(data)["runs"][0] == 1
    tqcodec.torch.synthetic_inputs(model, 8, size=8, mean=0, std=1)
    check()
    tqcodec.torch.Reference(model, [(one, None) for one in batches]).compare(model.state_dict())
    check()
    tqcodec.torch.retrain(model, batches, tqcodec.Settings(bits=12), epochs=1)
    check()
