"""A training that starts at a file of the user: any file of the network, and no other."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tqcodec
import tqcodec.torch as codec
from tqcodec.errors import EncodeError
from tqcodec.torch.retraining import start as starting
from tqcodec.torch.retraining.recipe import TrainingRecipe

BITS = tqcodec.Settings(bits=8)
STILL = TrainingRecipe(rate=0, scale_rate=0, vector_rate=0)


class Small(nn.Module):
    """A convolution, a normalisation, two equal matrices, a mask, one matrix that is tiny."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.inner = nn.Linear(32, 32)
        self.twin = copy.deepcopy(self.inner)
        self.last = nn.Linear(32, 4)
        self.mask: Tensor
        self.register_buffer("mask", torch.full((32,), -1.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.last(self.twin(self.inner(x).relu()).relu() + 0.01 * self.mask)


def small() -> nn.Module:
    torch.manual_seed(0)
    model = Small()
    state = model.state_dict()
    state["norm.running_mean"].normal_(0, 0.1)
    state["norm.running_var"].uniform_(0.5, 2)
    return model.eval()


def batches(count: int = 3) -> list[Tensor]:
    made = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 6, 6, generator=made) for _ in range(count)]


def retrained(start: bytes, bits: float = 20.0, **more: Any) -> bytes:
    more = {"settings": tqcodec.Settings(bits=bits), "epochs": 1, **more}
    return codec.retrain(small(), batches(), more.pop("settings"), start=start, **more)


@pytest.fixture(autouse=True)
def no_calibration(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a start that is given needs no statistics")

    monkeypatch.setattr(starting, "calibrate", refuse)


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Relative distance of what the network gives with two state dicts."""
    model, outputs = small(), []
    for state in (one, other):
        model.load_state_dict(state)
        with torch.no_grad():
            outputs.append(model(batches(1)[0]))
    return float((outputs[0] - outputs[1]).norm() / outputs[1].norm())


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize(
    "wish",
    [
        {"effort": 1},
        {"effort": 2, "payload": "fixed"},
        {"effort": 2, "transform": "elt"},
        {"effort": 2, "transform": "none", "side_bits": None},
    ],
    ids=str,
)
def test_a_training_starts_at_the_file(wish: dict[str, Any], inference: bool) -> None:
    """Without a step of the training the network is that of the file, form or not."""
    start = codec.encode(small(), tqcodec.Settings(quality=50, **wish))
    settings = tqcodec.Settings(bits=30, side_bits=None)
    file = retrained(start, settings=settings, recipe=STILL, inference=inference)
    found, known = codec.decode(file), codec.decode(start)
    assert distance(found, known) < 1e-5
    assert torch.allclose(found["conv.weight"], known["conv.weight"], rtol=1e-5, atol=1e-7)
    formed = bool((found["norm.running_mean"] == 0).all())
    assert formed == inference and not (known["norm.running_mean"] == 0).any()
    assert torch.equal(found["inner.weight"], found["twin.weight"])


def test_trellis_files_are_requantized() -> None:
    """Half steps are rounded to whole ones: the weights are near, and all integers are fewer."""
    for payload in ("range", "fixed"):
        start = codec.encode(small(), tqcodec.Settings(quality=70, payload=payload))
        file = retrained(start, recipe=STILL)
        assert 1e-4 < distance(codec.decode(file), codec.decode(start)) < 0.1
        assert len(file) < len(start)


def test_the_original_is_what_is_taught() -> None:
    """From the file of another training the network comes nearer to the original."""
    model = small()
    start = codec.encode(model, tqcodec.Settings(bits=4.5, effort=2, inference=True))
    file = codec.retrain(model, batches(), tqcodec.Settings(bits=5), epochs=15, start=start)
    before, after = (distance(codec.decode(f), model.state_dict()) for f in (start, file))
    assert after < 0.8 * before


def test_any_size_comes_to_the_target() -> None:
    start = codec.encode(small(), tqcodec.Settings(bits=12))
    for size in (1100, 2500):
        assert len(retrained(start, settings=tqcodec.Settings(max_size=size))) <= size
    with pytest.raises(EncodeError, match="300 bytes cannot be reached"):
        retrained(start, settings=tqcodec.Settings(max_size=300))


def test_a_size_that_no_training_reaches_is_refused_before_it() -> None:
    """Also where the start is calibrated, at some times the size."""
    seen: list[codec.TrainingMoment] = []
    wish, statistics = tqcodec.Settings(max_size=600), codec.calibrate(small(), batches())
    with pytest.raises(EncodeError, match="600 bytes cannot be reached from this start"):
        codec.retrain(small(), batches(), wish, epochs=1, statistics=statistics, watch=seen.append)
    assert not seen


def test_a_file_whose_matrices_are_nothing() -> None:
    """What an earlier training left all zero stays so."""
    low = codec.encode(small(), tqcodec.Settings(bits=5, effort=2))
    with pytest.raises(EncodeError, match="cannot be reached from this start") as refused:
        retrained(low, settings=tqcodec.Settings(max_size=100))
    least = int(re.findall(r"alone take (\d+):", str(refused.value))[0])
    still = replace(STILL, classify=())
    low = retrained(low, settings=tqcodec.Settings(max_size=least), recipe=still)
    again = retrained(low)
    assert not codec.decode(low)["twin.weight"].any()
    assert not codec.decode(again)["twin.weight"].any()


def test_a_cut_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoint knows the start."""
    monkeypatch.setattr("tqcodec.torch.retraining.checkpointing.EVERY", 0.0)
    files = [codec.encode(small(), tqcodec.Settings(bits=b)) for b in (6, 8)]
    more: dict[str, Any] = {"recipe": TrainingRecipe(fit_every=1), "epochs": 2}
    whole = retrained(files[0], **more)

    def cut(moment: codec.TrainingMoment) -> None:
        if moment.step == 4:
            raise KeyboardInterrupt

    more |= {"checkpoint": tmp_path / "run.ckpt", "resume": True}
    with pytest.raises(KeyboardInterrupt):
        retrained(files[0], watch=cut, **more)
    assert retrained(files[0], **more) == whole
    for other in (files[1], None):
        with pytest.raises(EncodeError, match="start: go on with the same"):
            codec.retrain(small(), batches(), tqcodec.Settings(bits=20), start=other, **more)


def test_a_training_that_goes_on_says_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some moments of the past, as many as are kept; and only on as many batches."""
    monkeypatch.setattr("tqcodec.torch.retraining.checkpointing.EVERY", 0.0)
    monkeypatch.setattr("tqcodec.torch.retraining.loop.HISTORY", 3)
    file, stages = codec.encode(small(), tqcodec.Settings(bits=8)), []
    more: dict[str, Any] = {"recipe": TrainingRecipe(fit_every=1), "epochs": 4, "start": file}
    more |= {"checkpoint": tmp_path / "run.ckpt", "resume": True}
    whole = codec.retrain(small(), batches(), BITS, **more)
    seen: list[codec.TrainingMoment] = []
    again = codec.retrain(
        small(),
        batches(),
        BITS,
        watch=seen.append,
        progress=lambda *stage: stages.append(stage),
        **more,
    )
    assert again == whole
    assert [moment.step for moment in seen] == [4, 8, 12]
    assert not any(stage == "retrain" for stage, *_ in stages)
    with pytest.raises(EncodeError, match="of 12 batches in all epochs, here are 8"):
        codec.retrain(small(), batches(2), BITS, **more)
    more |= {"resume": False, "checkpoint": None, "epochs": 1}
    codec.retrain(small(), batches(), BITS, progress=lambda *stage: stages.append(stage), **more)
    assert [stage for stage in stages if stage[0] == "retrain"] == [
        ("retrain", step, 3) for step in (1, 2, 3)
    ]


class Other(Small):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(4, 4)


def changed(**tensors: Tensor) -> dict[str, Tensor]:
    state = {name: tensor.clone() for name, tensor in small().state_dict().items()}
    return {**state, **{name.replace("_", "."): one for name, one in tensors.items()}}


def without(name: str) -> dict[str, Tensor]:
    return {n: tensor for n, tensor in changed().items() if n != name}


@pytest.mark.parametrize(
    ("start", "more", "message"),
    [
        (lambda: b"", {}, "start: .*file"),
        (lambda: codec.encode(small(), BITS)[:-40], {}, "start: "),
        (lambda: codec.encode(Other(), BITS), {}, "start: the network has no tensor 'more"),
        (lambda: codec.encode(without("last.bias"), BITS), {}, "'last.bias' is not in the file"),
        (
            lambda: codec.encode(changed(last_bias=torch.zeros(5)), BITS),
            {},
            r"'last.bias' is F32 \(5,\), in the network F32 \(4,\)",
        ),
        (lambda: codec.encode(small().half(), BITS), {}, "is F16 .*, in the network F32"),
        (
            lambda: codec.encode(changed(mask=torch.full((32,), -2.0)), BITS),
            {},
            "start: 'mask' is to be exact",
        ),
        (
            lambda: codec.encode(small(), tqcodec.Settings(lossless=True)),
            {},
            "start: 'conv.weight' is kept as numbers",
        ),
        (
            lambda: codec.encode(small(), BITS),
            {"settings": tqcodec.Settings(bits=20, rules=[("inner.weight", "exact")])},
            "start: 'inner.weight' is to be exact",
        ),
        (
            lambda: codec.encode(small(), tqcodec.Settings(bits=8, inference=True)),
            {"inference": False},
            "start: 'norm.running_.*' is in inference form",
        ),
        (lambda: codec.encode(small(), BITS), {"statistics": {}}, "give one of both"),
        (
            lambda: codec.encode({**changed(), "norm.running_var": -torch.ones(32)}, BITS),
            {"inference": True},
            "start: 'norm.running_.*' cannot be brought into inference form",
        ),
    ],
    ids=range(12),
)
def test_what_is_no_start(start: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(EncodeError, match=message):
        retrained(start(), **more)


def test_no_batches() -> None:
    """Which a calibration, where there is one, says before."""
    with pytest.raises(EncodeError, match="retrain: there is no batch"):
        codec.retrain(small(), [], BITS, epochs=1, start=codec.encode(small(), BITS))


def test_a_start_is_bytes() -> None:
    with pytest.raises(TypeError, match=r"the bytes of a \.tqc file"):
        retrained("model.tqc")  # type: ignore[arg-type]
