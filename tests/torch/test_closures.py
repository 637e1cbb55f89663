"""Functions that hold the network they were made for: copies run their own weights."""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tqcodec.torch
from tqcodec import EncodeReport, EncodeWarning, Settings
from tqcodec.torch.batches import copied

BATCHES = [(torch.randn(32, 8, generator=torch.Generator().manual_seed(k)), None) for k in (0, 1)]
FAST = Settings(bits=4, effort=1)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 5))


def run(model: Any, x: torch.Tensor) -> torch.Tensor:
    for layer in model:
        x = layer(x)
    return x


def around_forward(m: Any) -> Any:
    before = m.forward
    m.forward = lambda x: before(x)
    return m


def default(m: Any) -> Any:
    m.forward = lambda x, m=m: run(m, x)
    return m


def named_default(m: Any) -> Any:
    def forward(x: torch.Tensor, *, m: Any = m) -> torch.Tensor:
        return run(m, x)

    m.forward = forward
    return m


def hook(m: Any) -> Any:
    m.register_forward_hook(lambda _, args, __: run(m, args[0]))
    return m


def hook_before(m: Any) -> Any:
    m[2].register_forward_pre_hook(lambda _, __: (m[1](m[0](m.given)),))
    m.register_forward_pre_hook(lambda m, args: setattr(m, "given", args[0]))
    return m


def partial(m: Any) -> Any:
    m.forward = functools.partial(lambda layers, x: run(layers, x), list(m))
    return m


def partial_of_closure(m: Any) -> Any:
    m.forward = functools.partial(lambda scale, x: scale * run(m, x), 2)
    return m


def listed(m: Any) -> Any:
    layers = {"all": list(m)}
    m.forward = lambda x: run(layers["all"], x)
    return m


def method(m: Any) -> Any:
    m.forward = types.MethodType(lambda _, x: run(m, x), m)
    return m


def nested(m: Any) -> Any:
    def inner(x: torch.Tensor) -> torch.Tensor:
        return run(m, x)

    m.steps = [lambda x: inner(x)]
    m.forward = lambda x: m.steps[0](x)
    return m


def wrapped(m: Any) -> Any:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def outer(*args: Any) -> Any:
            return function(*args)

        return outer

    m.forward = decorate(m.forward)
    return m


def of_itself(m: Any) -> Any:
    def forward(x: torch.Tensor, depth: int = 2) -> torch.Tensor:
        again: Callable[..., torch.Tensor] = forward
        return again(x, depth - 1) if depth else run(m, x)

    m.forward = forward
    return m


def of_each_other(m: Any) -> Any:
    def one(x: torch.Tensor, depth: int) -> torch.Tensor:
        found: torch.Tensor = other(x, depth - 1) if depth else run(m, x)
        return found

    def other(x: torch.Tensor, depth: int) -> torch.Tensor:
        return one(x, depth)

    m.forward = lambda x: one(x, 3)
    return m


def held_twice(m: Any) -> Any:
    steps = {"all": lambda x: run(m, x)}
    m.steps = steps
    m.forward = lambda x: steps["all"](x)
    return m


def in_an_object(m: Any) -> Any:
    m.helper = types.SimpleNamespace(run=lambda x: run(m, x))
    m.forward = lambda x: m.helper.run(x)
    return m


def as_attributes(m: Any) -> Any:
    def forward(x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = run(forward.layers, x)  # type: ignore[attr-defined]
        return found

    forward.layers = list(m)  # type: ignore[attr-defined]
    m.forward = forward
    return m


class Inside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()
        self.function: Callable[[torch.Tensor], torch.Tensor] = lambda x: run(self.inner, x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


WAYS = [
    *(around_forward, default, named_default, hook, hook_before, partial, partial_of_closure),
    *(listed, method, nested, wrapped, of_itself, of_each_other, held_twice, in_an_object),
    as_attributes,
]
MODELS = [pytest.param(functools.partial(way, network()), id=way.__name__) for way in WAYS]


@pytest.mark.parametrize("make", [*MODELS, pytest.param(Inside, id="inside")])
def test_copies_run_their_own_weights(make: Callable[[], Any]) -> None:
    model = make()
    x = BATCHES[0][0]
    before = model(x)
    copy = copied(model)
    assert torch.equal(copy(x), before)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert not copy(x).any()
    assert torch.equal(model(x), before)
    nothing = {name: torch.zeros_like(t) for name, t in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = tqcodec.torch.compare(model, nothing, BATCHES)
    assert found.agreement is None or found.agreement.value < 100
    lazy = tqcodec.torch.network(model, tqcodec.torch.encode(model, FAST), "lazy")
    assert 0 < (lazy(x) - before).abs().max() < before.abs().max()
    assert torch.equal(model(x), before)


def test_hooks_of_copies_can_be_removed() -> None:
    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.runs = network(), 0
            self.handle = self.inner.register_forward_hook(lambda *_: self.look())
            self.inner.register_forward_hook(lambda *_: self.training)

        def look(self) -> None:
            self.runs += 1
            self.handle.remove()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.inner(x)
            return found

    model = Once()
    copy = copied(model)
    for _ in range(3):
        copy(BATCHES[0][0])
    assert (copy.runs, model.runs) == (1, 0)


def test_functions_that_hold_nothing_of_it_are_the_same() -> None:
    model, seen = network(), []

    def count(*_: Any) -> None:
        seen.append(1)

    model.register_forward_hook(count)
    copy = copied(model)
    assert list(copy._forward_hooks.values()) == [count]
    copy(BATCHES[0][0])
    assert seen == [1]


GLOBAL = network()


class OfGlobal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = GLOBAL

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = GLOBAL(x)
        return found


def test_a_copy_that_runs_other_weights_is_told() -> None:
    model = OfGlobal()
    nothing = {name: torch.zeros_like(t) for name, t in model.state_dict().items()}
    with pytest.warns(EncodeWarning, match="2 of 2 matrices are not the original's"):
        tqcodec.torch.compare(model, nothing, BATCHES)
    report = EncodeReport()
    with pytest.warns(EncodeWarning, match="the same in every bit"):
        tqcodec.torch.encode(
            model, FAST, tqcodec.torch.calibrate(model, BATCHES), held_out=BATCHES, report=report
        )
    assert any("not its own" in finding.message for finding in report.findings)
