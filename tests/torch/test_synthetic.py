"""Inputs that are made from the network alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tqcodec.torch
from tqcodec import EncodeError, EncodeWarning, Settings
from tqcodec.torch.synthetic import make
from tqcodec.torch.synthetic.leaves import dead_leaves, pink_noise
from tqcodec.torch.synthetic.steps import Moments, SyntheticRecipe
from tqcodec.torch.synthetic.tokens import Writer, embedding_of, random_tokens, shares_of


class Classifier(nn.Module):
    def __init__(self, channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.drop(functional.relu(self.norm(self.conv(x))).mean((2, 3))))


class Speaker(nn.Module):
    """Says the token behind the one that it saw last."""

    def __init__(self, tokens: int = 7) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(torch.eye(tokens))
        self.linear = nn.Linear(tokens, tokens, bias=False)
        self.linear.weight.data = 50 * torch.eye(tokens).roll(1, 0)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(self.embedding(tokens))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 16)

    def forward(self, features: Tensor, mask: Tensor, kind: str) -> dict[str, Tensor]:
        assert kind == "kind" and mask.dtype == torch.int64
        return {"out": self.linear(features) * mask[:, :1]}


def classifier(**options: int) -> Classifier:
    torch.manual_seed(0)
    model = Classifier(**options).eval()
    with torch.no_grad():
        model.norm.running_mean = torch.randn_like(model.norm.weight)
        model.norm.running_var = torch.empty_like(model.norm.weight).uniform_(0.5, 2)
    return model


def state_of(model: nn.Module) -> list[Any]:
    """All that must stay as it was."""
    return [
        [(name, tensor.clone()) for name, tensor in model.state_dict().items()],
        [module.training for module in model.modules()],
        [(p.requires_grad, p.grad is None) for p in model.parameters()],
        [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()],
        torch.random.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # type: ignore[index]
    ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_pictures() -> None:
    model = classifier().train()
    before, stages = state_of(model), []
    batches = tqcodec.torch.synthetic_inputs(
        model, 40, size=24, mean=127, std=(64, 128, 128), progress=lambda *s: stages.append(s)
    )
    assert same(before, state_of(model))
    assert [tuple(b.shape) for b in batches] == [(n, 3, 24, 24) for n in (13, 13, 14)]
    low, high = -127 / torch.tensor([64, 128, 128]), 128 / torch.tensor([64, 128, 128])
    for batch in batches:
        assert (batch.amin((0, 2, 3)) >= low - 1e-5).all()
        assert (batch.amax((0, 2, 3)) <= high + 1e-5).all()
    assert stages[-1][1] == stages[-1][2] == len(stages)
    again = tqcodec.torch.synthetic_inputs(model, 40, size=24, mean=127, std=(64, 128, 128))
    assert same(batches, again)
    other = tqcodec.torch.synthetic_inputs(model, 40, size=24, mean=127, std=128, seed=1)
    assert not same(batches, other)
    assert tqcodec.torch.calibrate(model, batches)


def test_every_second_batch_is_left_to_the_moments() -> None:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*body, nn.Linear(8, 5)).eval()
    (first, second, third), (other, same, another) = (
        tqcodec.torch.synthetic_inputs(
            model, 24, size=16, mean=127, std=64, recipe=SyntheticRecipe(batch=8, outputs=outputs)
        )
        for outputs in (0.0, 5.0)
    )
    assert torch.equal(second, same)
    assert not torch.equal(first, other)
    assert not torch.equal(third, another)


@pytest.mark.parametrize(
    ("weights", "floats", "integers", "count"),
    [
        (10, 3 * 32 * 32, 0, 1024),
        (10, 3 * 44 * 44, 0, 541),
        (10, 3 * 64 * 64, 0, 512),
        (10, 3 * 224 * 224, 0, 512),
        (1 << 20, 100, 0, 1024),
        (3 << 19, 100, 0, 682),
        (1 << 21, 100, 0, 512),
        (1 << 22, 100, 0, 512),
        (10, 0, 32, 1024),
        (10, 0, 50, 655),
        (10, 0, 128, 256),
        (22_700_000, 0, 32, 1024),  # MiniLM
        (110_000_000, 0, 32, 312),
        (10, 1, 512, 256),
        (10, 1 << 20, 5, 256),
        (10, 1 << 20, 0, 512),
        (0, 0, 0, 1024),
    ],
)
def test_small_samples_of_small_networks_are_more(
    weights: int, floats: int, integers: int, count: int
) -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.empty(weights, device="meta"))
    assert make.default_count(model, floats, integers) == count


@pytest.mark.parametrize(
    ("way", "count"),
    [
        ({"size": (4, 1200), "mean": 127, "std": 128}, 655),
        ({"tokens": 50}, 655),
        ({"example": torch.zeros(2, 6, 1000)}, 524),
        ({"example": {"x": torch.ones(1, 50).long(), "mask": torch.ones(1, 9)}}, 655),
    ],
)
def test_number_by_default(
    way: dict[str, Any], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        make, "dead_leaves", lambda n, h, w, channels, seed: np.zeros((n, channels, h, w))
    )

    class Means(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.conv = nn.Embedding(30, 4), nn.Conv2d(1, 1, 1)

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return x.flatten(1).float().mean(1, keepdim=True) * self.embedding.weight.sum()

    made = tqcodec.torch.synthetic_inputs(Means(), **way)
    assert sum(len(one["x"] if isinstance(one, dict) else one) for one in made) == count


def test_pictures_come_nearer_to_the_statistics() -> None:
    model = classifier()

    def distance(x: Tensor) -> float:
        moments = Moments(model)
        with moments.watching():
            model(x.requires_grad_())
        found = moments.distance()
        assert isinstance(found, Tensor)
        return found.item()

    moved = torch.cat(tqcodec.torch.synthetic_inputs(model, 32, size=16, mean=127, std=128))
    leaves = dead_leaves(32, 16, 16)
    assert distance(moved) < 0.7 * distance((torch.from_numpy(leaves).float() - 127) / 128)


def test_classes_differ() -> None:
    model = classifier()
    moved = torch.cat(tqcodec.torch.synthetic_inputs(model, 32, size=16, mean=127, std=128))
    leaves = (torch.from_numpy(dead_leaves(32, 16, 16)).float() - 127) / 128
    assert model(moved).std(0).mean() > 1.2 * model(leaves).std(0).mean()


class Detector(Classifier):
    def forward(self, x: Tensor) -> Any:
        return [functional.relu(self.norm(self.conv(x)))]


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_other_outputs_and_types(kind: torch.dtype) -> None:
    model = Detector(1).eval().to(kind)
    batches = tqcodec.torch.synthetic_inputs(model, 5, size=(16, 24))
    assert [tuple(b.shape) for b in batches] == [(n, 1, 16, 24) for n in (1, 2, 2)]
    assert batches[0].dtype == kind


def test_without_batch_normalisation_pictures_are_dead_leaves() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(5))
    with pytest.raises(EncodeError, match="lazy"):
        tqcodec.torch.synthetic_inputs(model, 3, size=16)
    model(torch.zeros(1, 3, 16, 16))
    batches = tqcodec.torch.synthetic_inputs(model, 3, size=16)
    assert float(batches[0].min()) >= 0 and float(batches[0].max()) > 50


def test_like_an_example() -> None:
    generator = torch.Generator().manual_seed(0)
    example: dict[str, Any] = {
        "features": torch.randn(10, 5, generator=generator) * torch.arange(5) + 3,
        "mask": torch.tensor([[1, 1, 0], [1, 0, 0]] * 5),
        "kind": "kind",
    }
    batches = tqcodec.torch.synthetic_inputs(Two(), 70, example=example)
    assert [len(b["features"]) for b in batches] == [23, 23, 24]
    features = torch.cat([b["features"] for b in batches])
    assert features[:, 0].eq(3).all()
    assert 0.5 < features.std(0)[4] / example["features"].std(0)[4] < 1.5
    masks = torch.cat([b["mask"] for b in batches])
    assert {tuple(row) for row in masks.tolist()} == {(1, 1, 0), (1, 0, 0)}
    assert tqcodec.torch.calibrate(Two(), batches, outputs=lambda given: given["out"])


def test_like_a_batch_of_tokens() -> None:
    example = torch.tensor([[1, 5, 9, 2], [1, 7, 3, 2]]), None
    batch = torch.cat(tqcodec.torch.synthetic_inputs(Speaker(10), 30, example=example))
    assert batch[:, 0].eq(1).all() and batch[:, 3].eq(2).all()
    assert int(batch[:, 1:3].min()) >= 3 and int(batch.max()) <= 9


def test_like_sounds_and_pictures() -> None:
    sound = torch.randn(4, 1, 400, generator=torch.Generator().manual_seed(0)) * 0.1
    model = nn.Sequential(nn.Conv1d(1, 4, 9), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(1568, 2))
    batch = torch.cat(tqcodec.torch.synthetic_inputs(model.eval(), 9, example=sound))
    assert (
        batch.shape == (9, 1, 400) and float(batch.abs().max()) <= float(sound.abs().max()) + 1e-6
    )
    picture = torch.rand(2, 3, 20, 30).half()
    batch = tqcodec.torch.synthetic_inputs(nn.Conv2d(3, 1, 3).half(), 6, example=picture)[0]
    assert batch.shape == (2, 3, 20, 30) and batch.dtype == torch.float16


def test_tokens_and_texts() -> None:
    class Encoder(Speaker):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens) + self.embedding(tokens).mean(1, keepdim=True)

    text = torch.cat(tqcodec.torch.synthetic_inputs(Speaker(), 12, tokens=6))
    assert text.equal((text[:, :1] + torch.arange(6)) % 7)
    random = torch.cat(tqcodec.torch.synthetic_inputs(Encoder(), 12, tokens=6))
    assert random.shape == (12, 6) and set(random.flatten().tolist()) == set(range(7))


class Failing(Classifier):
    error: BaseException = RuntimeError("no\nsuch shape")

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        self.norm.running_mean = torch.zeros(8)
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("no\nsuch shape"), KeyboardInterrupt()])
def test_left_as_it_was_by_an_exception(error: BaseException) -> None:
    model = Failing().train()
    model.error = error
    model.norm.weight.requires_grad_(False)
    before = state_of(model)
    wanted = EncodeError if isinstance(error, Exception) else KeyboardInterrupt
    with pytest.raises(wanted) as found:
        tqcodec.torch.synthetic_inputs(model, 4, size=16)
    assert same(before, state_of(model))
    if wanted is EncodeError:
        assert "no such shape" in str(found.value) and "example" in str(found.value)
        assert "\n" not in str(found.value)


class ByKeyword(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm(input=self.conv(x)))
        return self.linear(y.mean((2, 3)))


def test_normalisations_may_be_called_by_keyword() -> None:
    model, other = classifier(), ByKeyword()
    other.load_state_dict(model.state_dict())
    one, two = (
        tqcodec.torch.synthetic_inputs(network, 3, size=16, mean=127, std=128)
        for network in (model, other.eval())
    )
    assert same(one, two)


class Aside(nn.Module):
    """A normalisation of what is no input, and outputs that no input has a gradient by."""

    def __init__(self, with_gradient: bool) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.with_gradient = with_gradient

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x if self.with_gradient else x.detach())
        return y + self.norm(self.linear.weight)


@pytest.mark.parametrize("with_gradient", [True, False])
def test_inputs_are_moved_where_something_says_where_to(with_gradient: bool) -> None:
    model, still = Aside(with_gradient).eval(), SyntheticRecipe(steps=0)
    example = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    made = [
        torch.cat(tqcodec.torch.synthetic_inputs(model, 12, example=example, recipe=recipe))
        for recipe in (SyntheticRecipe(), still)
    ]
    assert torch.equal(*made) != with_gradient


def test_one_sample_as_the_example() -> None:
    """Nothing is known to stay: all of its numbers vary."""
    example = torch.tensor([[1, 5, 9, 2]])
    batch = torch.cat(tqcodec.torch.synthetic_inputs(Speaker(10), 40, example=example))
    assert [len(column.unique()) > 4 for column in batch.T] == [True] * 4
    assert (int(batch.min()), int(batch.max())) == (1, 9)


def test_a_network_names_the_embedding_of_its_tokens() -> None:
    class Named(Speaker):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Embedding(99, 7)

        def get_input_embeddings(self) -> nn.Module:
            return self.embedding

    model = Named()
    assert embedding_of(model) is model.embedding
    model.get_input_embeddings = lambda: None  # type: ignore[assignment, return-value]
    assert embedding_of(model) is model.places  # the longest


class Scores(Speaker):
    """Gives what is no text: of the whole, of fewer tokens than it knows."""

    def __init__(self, cut: Any) -> None:
        super().__init__()
        self.cut = cut

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens)[self.cut]


@pytest.mark.parametrize("cut", [np.s_[:, 0], np.s_[:, 1:], np.s_[..., :5]], ids=str)
def test_networks_that_write_no_text(cut: Any) -> None:
    tokens = torch.arange(12).reshape(3, 4) % 7
    assert Writer(Speaker(), 7).writes(tokens) and not Writer(Speaker(), 7).writes(tokens[:, :1])
    assert not Writer(Scores(cut), 7).writes(tokens)


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"batch": 0}, {"side": 0}, {"rate": np.inf}])
def test_wrong_recipes(wrong: dict[str, Any]) -> None:
    with pytest.raises(EncodeError, match="numbers must be finite and at least 0"):
        SyntheticRecipe(**wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of size"),
        ({"size": 16, "tokens": 4}, "one of size"),
        ({"size": 16, "mean": (1, 2)}, "mean"),
        ({"size": 16, "std": 0}, "std"),
        ({"size": 16, "std": float("nan")}, "std"),
        ({"size": (1, 2, 3)}, "height, width"),
        ({"tokens": 4}, "example"),
        ({"tokens": 4, "mean": 3}, "mean and std are of pictures"),
        ({"example": torch.ones(8, 3, 16, 16), "std": 3}, "mean and std are of pictures"),
        ({"example": {}}, "example"),
        ({"example": [torch.zeros(2, 3).fill_(torch.inf)]}, "finite"),
        ({"example": torch.zeros(2, 3, dtype=torch.complex64)}, "complex numbers"),
        ({"size": 16, "device": "nowhere"}, "device"),
    ],
)
def test_what_cannot_be_made(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(EncodeError, match=message):
        tqcodec.torch.synthetic_inputs(classifier(), 4, **arguments)


def test_tokens_that_a_network_knows_are_drawn_by_their_place() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(320, 16)
    with torch.no_grad():
        embedding.weight[100:200] *= 0.01
    shares = shares_of(embedding)
    drawn = random_tokens(500, 40, shares, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn.flatten(), minlength=320)
    assert drawn.shape == (500, 40) and not counts[100:200].any()
    assert counts[:20].sum() > 4 * counts[-20:].sum() > 0
    with torch.no_grad():
        embedding.weight.zero_()
    assert shares_of(embedding).all()


@pytest.mark.parametrize(
    ("given", "said"), [("mean", "std 1,"), ("std", "mean 0,"), (None, "mean 0 and std 1")]
)
def test_numbers_that_nobody_gave_are_said(given: str | None, said: str) -> None:
    arguments: dict[str, Any] = {"size": 16, **({} if given is None else {given: 2.0})}
    with pytest.warns(tqcodec.EncodeWarning, match=f"normalised by {said}") as caught:
        tqcodec.torch.synthetic_inputs(nn.Conv2d(3, 8, 3), 3, **arguments)
    assert [Path(one.filename).name for one in caught] == ["test_synthetic.py"]


@pytest.mark.parametrize(
    "arguments", [{"count": 0}, {"count": 1.5}, {"size": 0}, {"size": "a"}, {"seed": 1 << 70}]
)
def test_wrong_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match="tqcodec: "):
        tqcodec.torch.synthetic_inputs(classifier(), **{"count": 4, "size": 16, **arguments})


class Nothing(nn.Module):
    """Takes anything by name."""

    def forward(self, x: Any = None, y: Any = None) -> Tensor:
        return torch.ones(len(x), 1)


@pytest.mark.parametrize(
    "example",
    [
        lambda: torch.zeros(2, 0),
        lambda: {"x": torch.randn(2, 5), "y": torch.zeros(2, 0)},
        lambda: torch.arange(10).view(2, 5).to(torch.uint16),
        lambda: torch.nested.nested_tensor([torch.randn(2), torch.randn(3)]),
        lambda: torch.eye(5).to_sparse(),
        lambda: torch.zeros(2, 5, device="meta"),
        lambda: torch.quantize_per_tensor(torch.randn(2, 5), 0.1, 0, torch.qint8),
    ],
)
@pytest.mark.parametrize("count", [None, 4])
@pytest.mark.filterwarnings("ignore")
def test_odd_examples_are_one_line(example: Callable[[], Any], count: int | None) -> None:
    try:
        made = tqcodec.torch.synthetic_inputs(Nothing(), count, example=example())
    except EncodeError as error:
        assert "\n" not in str(error) and "--example" not in str(error)
    else:
        assert made


@pytest.mark.parametrize("numbers", ["a", 1j, 10**400, [1, "a", 2]])
def test_pixels_are_normalised_by_numbers(numbers: Any) -> None:
    for name, other in (("mean", "std"), ("std", "mean")):
        with pytest.raises(EncodeError, match=f"^{name} .*: not numbers"):
            tqcodec.torch.synthetic_inputs(classifier(), 4, size=8, **{name: numbers, other: 1})


@pytest.mark.parametrize(
    "model", [nn.Embedding(5, 3, device="meta"), nn.Embedding(0, 3)], ids=["meta", "empty"]
)
def test_tokens_that_cannot_be_drawn(model: nn.Module) -> None:
    with pytest.raises(EncodeError, match="--example"):
        tqcodec.torch.synthetic_inputs(model, 4, tokens=4)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_dead_leaves(channels: int) -> None:
    leaves = dead_leaves(20, 24, 40, channels, seed=3)
    assert leaves.shape == (20, channels, 24, 40)
    assert np.array_equal(leaves, dead_leaves(20, 24, 40, channels, seed=3))
    assert not np.array_equal(leaves, dead_leaves(20, 24, 40, channels, seed=4))
    x = leaves.astype(float)
    assert 80 < x.mean() < 160 and 30 < x.std() < 90
    # Neighbours are alike, and those further away less so.
    apart = [np.corrcoef(x[..., :-d].ravel(), x[..., d:].ravel())[0, 1] for d in (1, 8)]
    assert apart[0] > 0.7 and apart[1] < apart[0] - 0.1


def test_noise() -> None:
    noise = pink_noise((3, 2, 512), seed=1)
    assert noise.shape == (3, 2, 512) and abs(noise.std() - 1) < 0.01
    power = np.abs(np.fft.rfft(noise)).mean((0, 1))
    assert power[1:5].mean() > 20 * power[200:].mean()
    assert abs(pink_noise((2000, 3)).std() - 1) < 0.05


class Detects(nn.Module):
    """Gives boxes, and scores that are next to nothing wherever nothing is found."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.boxes, self.scores = nn.Linear(48, 48), nn.Linear(48, 32), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        found = self.body(x).relu()
        return torch.cat([self.boxes(found), (self.scores(found) - 12).sigmoid()], 1)


def test_a_head_that_made_up_inputs_do_not_wake_keeps_its_bits() -> None:
    torch.manual_seed(0)
    model = Detects().eval()
    statistics = tqcodec.torch.calibrate(model, list(torch.randn(4, 16, 48)))
    errors = []
    for given in (statistics, statistics.made_up()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EncodeWarning)  # of the head that is lost
            state = tqcodec.torch.decode(tqcodec.torch.encode(model, Settings(bits=4), given))
        weight = model.scores.weight.detach()
        errors.append(
            float((state["scores.weight"] - weight).square().sum() / weight.square().sum())
        )
    assert errors[0] > 0.5
    assert errors[1] < 0.1
