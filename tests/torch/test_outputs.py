"""What networks give, of every shape, is found, weighed and calibrated on."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tqcodec.torch
from tqcodec import EncodeError, EncodeReport, Settings
from tqcodec.torch import calibrate
from tqcodec.torch.outputs import class_axis, is_classes, outputs_of, samples_in, spread_of
from tqcodec.torch.tuning import tune

N = 4
Y, Z = torch.arange(8.0).reshape(N, 2), torch.ones(N, 3, 2)
Pair = namedtuple("Pair", "first second")


@dataclass
class Fields:
    boxes: Tensor
    about: Any = None
    name: str = "fields"


class Slots:
    __slots__ = ("never", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class ModelOutput(OrderedDict[str, Any]):
    """As that of transformers: keys that are attributes too."""

    def __init__(self, **values: Any) -> None:
        super().__init__(values)
        vars(self).update(values)


def looped() -> list[Any]:
    one: list[Any] = [Y]
    one.append(one)
    return one


GIVEN: dict[str, tuple[Any, list[str]]] = {
    "tensor": (Y, [""]),
    "tuple": ((Y, Z), ["0", "1"]),
    "named tuple": (Pair(Y, [Z]), ["0", "1.0"]),
    "levels": ([Y, Z, Y + 1, Z + 1], ["0", "1", "2", "3"]),
    "mapping": ({"a": Y, "b": {"c": (Z, None, 3, "x")}}, ["a", "b.c.0"]),
    "fields": (Fields(Y, Slots(Z)), ["boxes", "about.tensor"]),
    "twice": ((Y, {"again": Y}), ["0"]),
    "itself": (looped(), ["0"]),
    "integers": ((Y, Y.long(), Y > 0, torch.tensor(3.0)), ["0"]),
    "complex": ((Y, torch.complex(Y, Y)), ["0", "1"]),
    "by-products": (
        ModelOutput(loss=Y + 1, logits=Y, hidden_states=(Z,), encoder_last_hidden_state=Z + 1),
        ["logits"],
    ),
    "detr": (
        ModelOutput(logits=Y, pred_boxes=Z, last_hidden_state=Z + 1),
        ["logits", "pred_boxes"],
    ),
    "encoder": (ModelOutput(last_hidden_state=Z, pooler_output=Y, attentions=(Z + 1,)),
                ["last_hidden_state", "pooler_output"]),
    "nothing else": ({"hidden_states": (Y, Z)}, ["hidden_states.0", "hidden_states.1"]),
    "none": ({"labels": Y.long(), "text": ["a", "b"]}, []),
}  # fmt: skip


@pytest.mark.parametrize("kind", GIVEN)
def test_all_numbers_are_found(kind: str) -> None:
    given, names = GIVEN[kind]
    found = outputs_of(given, N)
    assert list(found) == names
    assert samples_in(found, N) == N and all(len(one) == N for one in found.values())


def test_what_is_found_in_each_sample() -> None:
    boxes = [torch.ones(k, 4) * k for k in (2, 0, 1, 3)]
    by_keys = [{"boxes": b, "scores": b[:, 0], "labels": b[:, 0].long()} for b in boxes]
    found = outputs_of(({"maps": Z}, by_keys), N)
    assert list(found) == ["0.maps", "1.[].boxes", "1.[].scores"]
    assert found["1.[].boxes"].equal(torch.cat(boxes).flatten())
    assert found["1.[].scores"].equal(torch.tensor([2.0, 2, 1, 3, 3, 3]))
    assert list(outputs_of(boxes, N)) == ["[]"]
    assert list(outputs_of([Fields(b) for b in boxes], N)) == ["[].boxes"]
    assert samples_in(outputs_of(boxes, N), N) == N
    assert samples_in({"": torch.ones(7, 3)}, N) == 7  # inputs whose first dimension is time


def test_spreads() -> None:
    grid = 100 * torch.arange(3.0)[None, :] + torch.tensor([[0.0], [2], [4]])
    assert spread_of(grid, 3) == pytest.approx(4)  # over samples, not over the grid
    assert spread_of(grid[:1], 1) == pytest.approx(1e4)
    assert spread_of(grid[:1].expand(3, 3), 3) == pytest.approx(7500)
    assert spread_of(torch.full((3, 2), 3.0), 3) == pytest.approx(9)
    assert spread_of(torch.zeros(2, 2), 2) == 0


def test_where_classes_are() -> None:
    for name, shape, axis in (
        ("", (2, 5), 1), ("", (2, 1), None), ("", (2, 6, 5), None), ("logits", (2, 6, 5), 2),
        ("logits", (2, 5, 6, 6), 1), ("logits", (2, 6, 1), None), ("0", (2, 5, 6, 6), None),
    ):  # fmt: skip
        assert class_axis({name: torch.zeros(shape)}) == axis
    assert class_axis({"a": Y, "b": Y}) is None


def test_classes_are_told_from_embeddings() -> None:
    outputs = torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
    assert is_classes(outputs)
    assert not is_classes(functional.normalize(outputs, dim=1))
    assert not is_classes(outputs[:, :1])
    assert not is_classes(outputs[:, :, None])


class Heads(nn.Module):
    """A body with two heads, the second of which is as much larger as it is told."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any], factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.one, self.two = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(16, 16)
        self.pack, self.factor = pack, factor

    def forward(self, x: Tensor) -> Any:
        y = self.body(x).tanh()
        return self.pack(self.one(y), self.factor * self.two(y) + 50)


def listed(one: Tensor, two: Tensor) -> list[dict[str, Tensor]]:
    """As detectors give it; of the first sample nothing is found."""
    return [
        {
            "boxes": a.view(-1, 4)[: min(i, 2)],
            "scores": (b - 50).sigmoid(),
            "labels": b.argmax()[None],
        }
        for i, (a, b) in enumerate(zip(one, two, strict=True))
    ]


X = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "pack",
    [
        lambda one, two: (one, two),
        lambda one, two: {"out": one, "aux": {"deep": [two]}},
        lambda one, two: ModelOutput(logits=one, pred_boxes=two, hidden_states=(one + 1,)),
        lambda one, two: Fields(one, two),
        listed,
    ],
    ids=["tuple", "mapping", "model output", "fields", "list"],
)
def test_every_head_has_statistics(pack: Callable[[Tensor, Tensor], Any]) -> None:
    model = Heads(pack).eval()
    statistics = calibrate(model, X.split(8))
    assert set(statistics) == {"body.weight", "one.weight", "two.weight"}
    assert all(one.images == 32 for one in statistics.values())
    report = EncodeReport()
    batches = list(X.split(8))
    data = tqcodec.torch.encode(model, Settings(snr=12, effort=1), synthetic=batches, report=report)
    assert report.held_out is not None and report.held_out.measure == "error"
    assert tqcodec.torch.decode(data).keys() == model.state_dict().keys()


def test_the_only_output_counts_as_ever() -> None:
    model = Heads(lambda one, two: one).eval()
    alone = calibrate(model, X.split(8), probes=2)
    for pack in (
        lambda one, two: {"logits": one, "hidden_states": (two,), "loss": None},
        lambda one, two: (one, two.detach(), two.argmax(1)),
    ):
        model.pack = pack
        other = calibrate(model, X.split(8), probes=2)
        for name, one in alone.items():
            assert (one.outputs == other[name].outputs).all()
            assert (one.gradients == other[name].gradients).all()
    assert "two.weight" not in other


def test_units_do_not_matter() -> None:
    """Boxes in pixels count no more than the same in shares of the picture."""
    found = []
    for factor in (1.0, 1000.0):
        statistics = calibrate(Heads(lambda one, two: (one, two), factor).eval(), [X] * 2)
        found.append(statistics["body.weight"].outputs)
        both = statistics["one.weight"], statistics["two.weight"]
    assert abs(found[1] / found[0] - 1).max() < 0.01
    # By the inputs' second moments, which both heads share, each head is worth its variance.
    one, two = (s.outputs.trace() if s.outputs.ndim == 2 else s.outputs[0].trace() for s in both)
    with torch.no_grad():
        y, z = Heads(lambda one, two: (one, two), 1000.0)(X)
    worth = [float(v) for v in (one * y.var(0).mean(), two / 1e6 * z.var(0).mean())]
    assert worth[0] == pytest.approx(worth[1], rel=1e-4)


def test_several_outputs_are_tuned() -> None:
    model = Heads(lambda one, two: (one, {"two": two}), 100.0).eval()
    state = {n: t + (0.3 if n.endswith("bias") else 0.0) for n, t in model.state_dict().items()}
    new = tune(model, state, list(X.repeat(8, 1).split(16)), epochs=20, rate=0.02)
    for head in ("one", "two"):
        before, after = (
            (s[f"{head}.bias"] - model.state_dict()[f"{head}.bias"]).abs().mean()
            for s in (state, new)
        )
        assert after < 0.5 * before


@pytest.mark.parametrize(
    ("pack", "message"),
    [
        (lambda one, two: (one.long(), "x"), "is a tuple, not a tensor: name one"),
        (lambda one, two: (one.detach(), two.detach()), "no output .* has a gradient"),
        (lambda one, two: {"a": one, "b": two / 0}, "output 'b' .* batch 1 is not finite"),
    ],
)
def test_outputs_that_say_nothing(pack: Callable[[Tensor, Tensor], Any], message: str) -> None:
    with pytest.raises(EncodeError, match=message):
        calibrate(Heads(pack).eval(), [X])


def test_nothing_found_is_no_error() -> None:
    def pack(one: Tensor, two: Tensor) -> list[dict[str, Tensor]]:
        return [{"boxes": a[a > 1e3], "scores": a[a > 1e3]} for a in one]

    statistics = calibrate(Heads(pack).eval(), [X])
    assert not statistics and set(statistics.without) == {"body.weight", "one.weight", "two.weight"}


@pytest.mark.parametrize("shape", [(9, 5), (5, 3, 3)])
def test_logits_of_places_are_judged_by_their_classes(shape: tuple[int, ...]) -> None:
    """A shift that all classes of a place share is nothing to KL, whatever place it is."""

    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(6, 45)

        def forward(self, x: Tensor) -> Any:
            return ModelOutput(logits=self.linear(x).reshape(len(x), *shape))

    model = Places().eval()
    by_place = nn.Parameter(torch.randn(9))
    shift = by_place.detach()
    moved = shift[:, None].expand(9, 5) if len(shape) == 2 else shift.reshape(1, 3, 3).expand(shape)
    state = {**model.state_dict(), "linear.bias": model.linear.bias.detach() + moved.flatten()}
    data = tqcodec.torch.encode(state, Settings(lossless=True))
    found = tqcodec.torch.held_out.Judge(model, [X]).compare(data)
    assert found.measure == "KL" and found.calibrated == pytest.approx(0, abs=1e-9)
    new = tune(model, state, [X, X], epochs=1)["linear.bias"]
    assert (new - state["linear.bias"]).abs().max() < 1e-2
