"""Comparison of outputs: held against formulas written out with plain Python numbers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from kinds import Counts
from seen import Seen
from torch import nn

from tqcodec.errors import EvaluationError
from tqcodec.torch.evaluation import Comparison, Reference, compare, evaluate

IMAGES, CLASSES = 60, 5


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5), nn.Flatten(), nn.Linear(54, CLASSES)
    )


def batches(labels: bool = True, sizes: tuple[int, ...] = (25, 25, 10)) -> list[Any]:
    generator = torch.Generator().manual_seed(3)
    out = []
    for size in sizes:
        inputs = torch.randn(size, 2, 5, 5, generator=generator)
        classes = torch.randint(0, CLASSES, (size,), generator=generator)
        out.append((inputs, classes if labels else None))
    return out


def disturbed(model: nn.Module, amount: float = 0.05) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        name: t + amount * torch.randn(t.shape, generator=generator) if t.ndim > 1 else t.clone()
        for name, t in model.state_dict().items()
    }


def logits(model: nn.Module, state: dict[str, torch.Tensor] | None = None) -> list[list[float]]:
    model = copy.deepcopy(model).eval()
    model.load_state_dict(state or model.state_dict())
    return torch.cat([model(inputs) for inputs, _ in batches()]).tolist()


def softmax(row: list[float]) -> list[float]:
    exponentials = [math.exp(y) for y in row]
    return [e / sum(exponentials) for e in exponentials]


def best(row: list[float]) -> int:
    return row.index(max(row))


def mean_interval(values: list[float]) -> tuple[float, float, float]:
    n, mean = len(values), sum(values) / len(values)
    half = 1.959964 * math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return mean, mean - half, mean + half


def wilson(hits: int, n: int) -> tuple[float, float, float]:
    """The p at which (hits/n - p) / sqrt(p (1 - p) / n) is +-1.96, by bisection."""

    def root(low: float, high: float, sign: int) -> float:
        for _ in range(200):
            p = (low + high) / 2
            score = abs(hits / n - p) / math.sqrt(max(p * (1 - p) / n, 1e-300))
            inside = score < 1.959964
            low, high = (p, high) if inside == (sign > 0) else (low, p)
        return (low + high) / 2

    share = hits / n
    return 100 * share, 100 * root(0, share, -1), 100 * root(share, 1, 1)


def values(estimate: Any) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def test_every_measure_against_its_formula() -> None:
    model = network()
    state = disturbed(model)
    found = compare(model, state, batches())
    ys, zs = logits(model), logits(model, state)
    labels = torch.cat([classes for _, classes in batches()]).tolist()

    assert found.images == IMAGES
    divergences = [
        sum(p * math.log(p / q) for p, q in zip(softmax(y), softmax(z), strict=True))
        for y, z in zip(ys, zs, strict=True)
    ]
    assert values(found.kl) == pytest.approx(mean_interval(divergences), rel=1e-4)
    same = sum(best(y) == best(z) for y, z in zip(ys, zs, strict=True))
    assert 0 < same < IMAGES
    assert values(found.agreement) == pytest.approx(wilson(same, IMAGES), rel=1e-5)
    right = [best(y) == label for y, label in zip(ys, labels, strict=True)]
    still = [best(z) == label for z, label in zip(zs, labels, strict=True)]
    assert found.top1 is not None
    assert found.top1_decoded is not None
    assert found.drop is not None
    assert values(found.top1) == pytest.approx(wilson(sum(right), IMAGES), rel=1e-5)
    assert values(found.top1_decoded) == pytest.approx(wilson(sum(still), IMAGES), rel=1e-5)
    lost = [100.0 * (a - b) for a, b in zip(right, still, strict=True)]
    assert values(found.drop) == pytest.approx(mean_interval(lost), rel=1e-5)


def test_snr_and_its_interval_by_the_jackknife() -> None:
    model = network()
    state = disturbed(model)
    energies = [sum(y * y for y in row) for row in logits(model)]
    errors = [
        sum((y - z) ** 2 for y, z in zip(*rows, strict=True))
        for rows in zip(logits(model), logits(model, state), strict=True)
    ]
    total, wrong = sum(energies), sum(errors)
    snr = compare(model, state, batches()).snr
    assert snr.value == pytest.approx(10 * math.log10(total / wrong), rel=1e-4)
    without = [
        10 * math.log10((total - y) / (wrong - e)) for y, e in zip(energies, errors, strict=True)
    ]
    middle = sum(without) / IMAGES
    deviation = math.sqrt((IMAGES - 1) / IMAGES * sum((w - middle) ** 2 for w in without))
    assert snr.high - snr.value == pytest.approx(1.959964 * deviation, rel=0.05)
    assert snr.value - snr.low == pytest.approx(snr.high - snr.value)


def test_equal_networks() -> None:
    model = network()
    found = compare(model, model.state_dict(), batches())
    assert values(found.snr) == (math.inf,) * 3
    assert values(found.kl) == (0, 0, 0)
    assert values(found.agreement) == pytest.approx(wilson(IMAGES, IMAGES), rel=1e-5)
    assert found.agreement.high <= 100
    assert found.drop is not None
    assert values(found.drop) == (0, 0, 0)


def test_classes_that_are_impossible_add_nothing() -> None:
    model = network()

    def outputs(logits: torch.Tensor) -> torch.Tensor:
        return logits.masked_fill(torch.arange(CLASSES) == 1, -math.inf)

    found = compare(model, disturbed(model), batches(labels=False), outputs=outputs)
    assert 0 < found.kl.value < math.inf
    possible = [i for i in range(CLASSES) if i != 1]
    some = batches(labels=False)
    fewer = compare(model, disturbed(model), some, outputs=lambda y: y[:, possible])
    assert values(found.kl) == pytest.approx(values(fewer.kl))
    assert values(found.snr) == pytest.approx(values(fewer.snr))


def test_outputs_that_are_false_are_called() -> None:
    seen = Seen()
    logits = evaluate(network(), batches(), outputs=seen)
    assert torch.equal(torch.cat(seen), logits)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_network(value: float) -> None:
    model = network()
    state = disturbed(model)
    state["4.bias"][2] = value
    found = compare(model, state, batches())
    assert math.isnan(found.kl.value) or found.kl.value == math.inf
    assert math.isnan(found.kl.low)
    assert math.isnan(found.snr.value)
    assert found.top1_decoded is not None
    assert found.agreement.value < 100


def test_without_labels() -> None:
    model = network()
    with_labels = compare(model, disturbed(model), batches())
    found = compare(model, disturbed(model), batches(labels=False))
    assert found.top1 is found.top1_decoded is found.drop is None
    assert (found.kl, found.snr) == (with_labels.kl, with_labels.snr)


def test_reference_runs_the_original_once() -> None:
    model, calls = network(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    state = disturbed(model)
    reference = Reference(model, batches())
    calls.clear()
    first = reference.compare(state)
    model.load_state_dict(network(seed=1).state_dict())  # what it was is what counts
    assert reference.compare(state) == first == compare(network(), state, batches())
    assert reference.compare(disturbed(network(), 0.1)).kl.value > first.kl.value
    assert torch.equal(reference.logits, evaluate(network(), batches()))
    labels = torch.cat([classes for _, classes in batches()])
    assert reference.labels is not None
    assert torch.equal(reference.labels, labels)


def test_a_module_can_be_compared() -> None:
    model, other = network(), network()
    other.load_state_dict(disturbed(model))
    assert compare(model, other, batches()) == compare(model, disturbed(model), batches())


def test_batches_of_other_sizes_give_the_same() -> None:
    model = network()
    found = compare(model, disturbed(model), batches())
    inputs, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    again = compare(model, disturbed(model), [(inputs, labels)])
    assert again.kl.value == pytest.approx(found.kl.value, rel=1e-4)
    assert again.top1 == found.top1


def test_networks_and_generator_stay_as_they_were() -> None:
    model, other = network(), network(seed=1)
    model.train()
    model[2].eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    compare(model, other, batches())
    assert [m.training for m in model] == [True, True, False, True, True]
    assert model.training
    assert all(module.training for module in other.modules())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is not None and p.grad.eq(1).all() for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_buffers_that_a_run_changes_come_back() -> None:
    model, other = Counts(), Counts()
    compare(model, other, [(torch.randn(5, 64), None)] * 3)
    for one in (model, other):
        assert not one.runs.any() and not one.mean.any()


def test_modes_come_back_after_an_error() -> None:
    model = network().train()
    with pytest.raises(EvaluationError, match="not logits"):
        evaluate(model, batches(), outputs=lambda logits: logits.argmax(1))
    with pytest.raises(EvaluationError, match="not the batches or the logits"):
        Reference(network(), batches()).compare(nn.Sequential(nn.Flatten(), nn.Linear(50, 2)))
    assert model.training


class Wrapped(nn.Module):
    """Takes its inputs by name and gives a dict, of which the first entry is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, images: torch.Tensor, half: bool = False) -> dict[str, Any]:
        logits = self.inner(images)
        return {"loss": None, "logits": logits / 2 if half else logits, "double": 2 * logits}


def test_inputs_by_name_and_outputs_of_any_kind() -> None:
    state = disturbed(network())
    plain = compare(network(), state, batches())
    state = {f"inner.{name}": tensor for name, tensor in state.items()}
    assert compare(Wrapped(), state, batches()) == plain

    double = compare(Wrapped(), state, batches(), outputs=lambda given: given["double"])
    assert double.kl.value > plain.kl.value
    named = [({"images": inputs, "half": True}, labels) for inputs, labels in batches()]
    half = compare(Wrapped(), state, named)
    assert half.kl.value < plain.kl.value
    assert half.top1 == plain.top1
    with pytest.raises(EvaluationError, match="None, not logits"):
        evaluate(Wrapped(), batches(), outputs=lambda given: given["loss"])


class Heads(nn.Module):
    """Gives what `pack` makes of a map (images, 5, 4), boxes (images, 6) and a text."""

    def __init__(self, pack: Callable[..., Any]) -> None:
        super().__init__()
        self.map, self.boxes, self.pack = nn.Linear(12, 20), nn.Linear(12, 6), pack

    def forward(self, x: torch.Tensor) -> Any:
        return self.pack(self.map(x).reshape(-1, 5, 4), 100 * self.boxes(x) + 500)


def heads(pack: Callable[..., Any], **options: Any) -> tuple[Comparison, torch.Tensor, Any]:
    """A comparison, the squared errors of maps and boxes by image, and their variances."""
    torch.manual_seed(0)
    model, images = Heads(pack), torch.randn(20, 12)
    state = disturbed(model)
    given = [(part, None) for part in images.split(8)]
    found = compare(model, state, given, **options)
    plain, other = Heads(lambda *one: one), Heads(lambda *one: one)
    plain.load_state_dict(model.state_dict())
    other.load_state_dict(state)
    with torch.no_grad():
        pairs = list(zip(plain(images), other(images), strict=True))
    errors = torch.stack([(y - z).square().flatten(1).mean(1) for y, z in pairs])
    return found, errors.double(), [y for y, _ in pairs]


def test_all_outputs_count_where_none_are_scores() -> None:
    found, errors, outputs = heads(lambda m, b: {"map": m, "boxes": b, "each": [b[0]] * len(b)})
    parts = [[y[:8], y[8:16], y[16:]] for y in outputs]
    sizes = [sum(p.var(0).mean() * len(p) for p in one) / 20 for one in parts]
    wanted = 10 * math.log10(1 / float((errors / torch.tensor(sizes)[:, None]).mean()))
    assert found.snr.value == pytest.approx(wanted, rel=1e-5)
    assert found.snr.low < found.snr.value < found.snr.high
    assert all(map(math.isnan, (*values(found.agreement), *values(found.kl))))
    assert found.images == 20

    model = Heads(lambda m, b: (m, b))
    reference = Reference(model, [(torch.randn(8, 12), torch.zeros(8).long())] * 2)
    same = reference.compare(model)
    assert same.snr.value == math.inf and same.top1 is None
    with pytest.raises(EvaluationError, match="not logits"):
        _ = reference.logits
    with pytest.raises(EvaluationError, match=r"of the original: .* in place of"):
        reference.compare(Heads(lambda m, b: (m, b[:, 1:])))


def test_a_map_alone_is_measured_by_its_energy() -> None:
    found, errors, outputs = heads(lambda m, _: m)
    wanted = outputs[0].square().mean() / errors[0].mean()
    assert found.snr.value == pytest.approx(10 * math.log10(wanted), rel=1e-5)


def test_scores_at_many_places() -> None:
    found, _, (y, _) = heads(lambda m, _: {"logits": m, "hidden_states": (m,)})
    flat, *_ = heads(lambda m, _: m.reshape(-1, 4))
    assert found.images == 20 and flat.images == 100
    for name in ("agreement", "kl", "snr"):
        assert getattr(found, name).value == pytest.approx(getattr(flat, name).value)
    assert 50 < found.agreement.value < 100 and len(y) == 20


def embedding(_: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(boxes - 500)


def test_embeddings_are_no_scores_unless_that_is_said() -> None:
    assert math.isnan(heads(embedding)[0].kl.value)
    assert heads(embedding, outputs=lambda y: 10 * y)[0].kl.value > 0
    model, images = Heads(embedding), torch.randn(6, 12)
    one_by_one = compare(model, model, [(one[None], None) for one in images])
    assert math.isnan(one_by_one.agreement.value)


def test_one_number_for_each_image() -> None:
    found, *_ = heads(lambda _, b: b[:, 0])
    same, *_ = heads(lambda _, b: b[:, :1])
    assert found.images == 20 and values(found.snr) == values(same.snr)
    assert found.snr.low < found.snr.value < found.snr.high


@pytest.mark.parametrize("pack", [lambda _, b: b, embedding, lambda m, b: (m, b)])
def test_empty_batches_count_for_nothing(pack: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model, images = Heads(pack), torch.randn(8, 12)
    labels = torch.arange(8) % 6
    given, state = [(images, labels)], disturbed(model)
    found = compare(model, state, [(images[:0], labels[:0]), *given, (images[:0], labels[:0])])
    assert found.images == 8
    assert values(found.snr) == values(compare(model, state, given).snr)


def test_outputs_may_be_empty_in_a_batch() -> None:
    model = Heads(lambda m, _: m[:, : 5 * (len(m) % 2)])
    found = compare(model, disturbed(model), [(torch.randn(n, 12), None) for n in (3, 4)])
    assert found.images == 7 and math.isfinite(found.snr.value)


def test_inputs_by_name_may_begin_with_what_is_no_tensor() -> None:
    named = [({"half": True, "images": inputs}, labels) for inputs, labels in batches()]
    assert Reference(Wrapped(), named).images == IMAGES


def test_networks_without_values_are_named() -> None:
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES))
    with pytest.raises(EvaluationError, match="is lazy and has no values"):
        evaluate(lazy, batches())
    with pytest.raises(EvaluationError, match="is lazy and has no values"):
        compare(network(), lazy, batches())


def test_iterators() -> None:
    def walk() -> Iterator[Any]:
        yield from batches()

    model = network()
    found = compare(model, disturbed(model), walk())
    assert isinstance(found, Comparison)
    assert found == compare(model, disturbed(model), batches())
    assert torch.equal(evaluate(model, walk()), evaluate(model, batches()))
    with pytest.raises(EvaluationError, match="only once"):
        Reference(model, walk())


def test_progress() -> None:
    calls: list[tuple[str, int, int]] = []
    evaluate(network(), batches(), progress=lambda *call: calls.append(call))
    assert calls == [("evaluate", done, IMAGES) for done in (25, 50, 60)]
    calls.clear()
    evaluate(network(), iter(batches()), progress=lambda *call: calls.append(call))
    assert calls == [("evaluate", done, done) for done in (25, 50, 60)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "no images"),
        ([*batches(), *batches(labels=False)], r"labels of shape \(60,\) for 120 images"),
        ([(batches()[0][0], torch.zeros(25, 1))], r"labels of shape \(25, 1\) for 25 images"),
        ([(batches()[0][0], torch.tensor(1))], r"labels of shape \(\) for 25 images"),
        ([*batches(), (batches()[0][0], [1] * 25)], "labels are a list of 25"),
        ([(batches()[0][0], torch.full((25,), 0.5))], "that are no whole numbers"),
        ([(batches()[0][0], torch.full((25,), math.nan))], "that are no whole numbers"),
        ([(batches()[0][0], torch.full((25,), CLASSES))], "label 5 is none of the classes 0 to 4"),
        ([(batches()[0][0], torch.full((25,), -100))], "label -100 is none of the classes"),
        ([(batches()[0][0][:0], None)], "no images"),
        ((batches()[0][0], torch.tensor(1)), "a batch is a Tensor"),
        ([None], "a batch is None"),
    ],
    ids=[
        "empty",
        "some labels",
        "shape of labels",
        "one label",
        "a list",
        "halves",
        "not a number",
        "too large",
        "ignored",
        "no sample",
        "no pairs",
        "nothing",
    ],
)
def test_batches_that_are_refused(wrong: list[Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        Reference(network(), wrong)


@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16, torch.int32, torch.float32])
def test_labels_of_any_type_that_holds_class_numbers(kind: torch.dtype) -> None:
    model, state = network(), disturbed(network())
    converted = [(inputs, classes.to(kind)) for inputs, classes in batches()]
    assert compare(model, state, converted) == compare(model, state, batches())


def test_labels_that_do_not_count_may_be_anything() -> None:
    torch.manual_seed(0)
    images = torch.randn(8, 12)
    model = Heads(lambda m, b: {"out": m})
    plain = compare(model, disturbed(model), [(images, None)])
    for labels in (torch.zeros(8, 5, 4), [{"boxes": torch.zeros(2, 4)}] * 8):
        again = compare(model, disturbed(model), [(images, labels)])
        assert (again.snr, again.top1) == (plain.snr, None)


def test_batches_without_images_are_left_out() -> None:
    model, empty = network(), (torch.zeros(0, 2, 5, 5), torch.zeros(0).long())
    found = compare(model, disturbed(model), [empty, *batches(), empty])
    assert found == compare(model, disturbed(model), batches())
    assert len(evaluate(model, [empty, *batches()])) == IMAGES


class Column(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0]


def nested(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"0.{name}": tensor for name, tensor in state.items()}


class Draws(nn.Module):
    """Draws random numbers in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(50, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.linear(x.flatten(1)), 0.5, training=True)


def test_networks_that_draw_draw_the_same() -> None:
    model, random = Draws(), torch.get_rng_state()
    assert compare(model, copy.deepcopy(model), batches()).snr.value == math.inf
    assert torch.equal(torch.get_rng_state(), random)
    first, second = evaluate(model, [batches()[0]] * 2).chunk(2)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan])
def test_scores_that_are_not_finite_are_scores_of_classes(value: float) -> None:
    """Labels or not: lengths and errors are those of the finite ones."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).masked_fill(torch.arange(CLASSES) == 1, value)

    model = Masked()
    for labels in (True, False):
        same = compare(model, model, batches(labels))
        assert same.agreement.value == 100 and same.snr.value == math.inf


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_scores_of_any_size_are_scores_of_classes(size: float) -> None:
    model = network()
    for parameter in model[4].parameters():
        parameter.requires_grad_(False).mul_(size)
    found = compare(model, model.state_dict(), batches(labels=False))
    assert found.agreement.value == 100


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y * math.nan, r"shape \(60, 5\), without any finite number"),
        (lambda y: y[:, :0], r"shape \(60, 0\), without any finite number"),
        (lambda y: y.argmax(1), r"torch.int64 of shape \(60,\), not logits"),
        (lambda y: y.mean(), r"torch.float32 of shape \(\), not logits"),
        (lambda y: y.to_sparse(), "a torch.sparse_coo tensor, not logits"),
        (lambda y: torch.nested.nested_tensor(list(y)), "a nested tensor, not logits"),
    ],
    ids=["not numbers", "empty", "integers", "one number", "sparse", "nested"],
)
def test_outputs_that_are_refused(change: Any, message: str) -> None:
    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: torch.Tensor) -> Any:
            return change(self.inner(x))

    with pytest.raises(EvaluationError, match=message):
        Reference(Changed(), batches(labels=False, sizes=(60,)))


def test_batches_that_change() -> None:
    data = batches()
    reference = Reference(network(), data)
    data.pop()
    with pytest.raises(EvaluationError, match="50 images, but 60 when the original ran"):
        reference.compare(network())


def test_one_image_has_no_interval() -> None:
    found = compare(network(), disturbed(network()), batches(sizes=(1,)))
    assert found.images == 1
    assert math.isnan(found.kl.low)
    assert not math.isnan(found.kl.value)
