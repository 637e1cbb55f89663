"""Running means far from zero keep as many bits as their spread needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

import tqcodec
import tqcodec.torch
from tqcodec import Settings

Array = NDArray[Any]
KINDS = {"running_mean": "running_var", "moving_mean": "moving_variance"}


def encoded(mean: Array, variance: Array, name: str, settings: Settings) -> Array:
    one = np.random.default_rng(0).uniform(0.9, 1.1, len(mean)).astype(mean.dtype)
    tensors = {"bn.weight": one, "bn.bias": one, f"bn.{name}": mean, f"bn.{KINDS[name]}": variance}
    tensors["fc.weight"] = np.eye(64, dtype=mean.dtype)
    found = tqcodec.decode(tqcodec.encode(tensors, settings))[f"bn.{name}"]
    return np.asarray(found, np.float64)


@given(
    st.integers(0, 2**32 - 1),
    st.floats(-3, 6),
    st.sampled_from(sorted(KINDS)),
    st.sampled_from([0, 4, 7, 12]),
    st.sampled_from([np.float32, np.float64, np.float16]),
)
def test_errors_are_little_beside_the_spread(
    seed: int, far: float, name: str, kept: int, dtype: type
) -> None:
    rng = np.random.default_rng(seed)
    spread = 10 ** rng.uniform(-1, 1, 16)
    mean: Array = (rng.normal(size=16) * spread * 10**far).clip(-6e4, 6e4).astype(dtype)
    variance: Array = np.square(spread).astype(dtype)
    found = encoded(mean, variance, name, Settings(side_bits=kept, effort=1))
    exact = mean.astype(np.float64)
    errors = np.abs(found - exact)
    assert (errors <= np.abs(exact) * 2.0 ** -(kept + 1)).all()
    distance = (np.abs(exact) / spread).max()
    if distance > 17:  # a variance is rounded to its type
        assert (errors / spread).max() <= 2.0**-7 * 1.01
    elif distance < 15 and kept < 10:
        assert errors.any()  # no more bits than asked for


def test_what_is_asked_for_by_name_holds() -> None:
    mean, variance = np.random.default_rng(0).normal(2010, 5, (2, 16)).astype(np.float32)
    settings = Settings(rules=[("*mean", "side:3")])
    errors = np.abs(encoded(mean, variance, "running_mean", settings) - mean)
    assert errors.max() > 1


@pytest.mark.parametrize("inference", [False, True])
def test_features_far_from_zero(inference: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def years(count: int) -> torch.Tensor:
        return 2019.5 + 3 * torch.randn(count, 8, generator=generator)

    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 256), nn.Linear(256, 5))
    with torch.no_grad():
        for _ in range(8):
            model(years(256))
    model.eval()
    data = tqcodec.torch.encode(model, Settings(bits=8, effort=1, inference=inference))
    x = years(64)
    before = model(x).detach()
    model.load_state_dict(tqcodec.torch.decode(data))
    with torch.no_grad():
        error = float((model(x) - before).norm() / (before - before.mean(0)).norm())
    assert error < 0.05


@pytest.mark.parametrize("number", [5.0123, 1e306])
@pytest.mark.parametrize("inference", [False, True])
def test_constant_channels(number: float, inference: bool) -> None:
    """Their variance is 0: what they give is the error of their mean, divided by a little."""
    mean = np.random.default_rng(0).normal(size=16)
    mean[3] = number
    variance = np.where(np.arange(16) == 3, 0.0, 1.0)
    found = encoded(mean, variance, "running_mean", Settings(effort=1))
    assert abs(found[3] - number) <= max(0.003 * 2.0**-6, number * 2.0**-50)
    if number > 1e30:
        return
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 64)).eval()
    state = {"0.running_mean": torch.from_numpy(mean), "0.running_var": torch.from_numpy(variance)}
    model.load_state_dict({**model.state_dict(), **state})
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(64, 16))).float()
    x[:, 3] = number
    with torch.no_grad():
        before = model(x)
        data = tqcodec.torch.encode(model, Settings(quality=100, effort=1, inference=inference))
        model.load_state_dict(tqcodec.torch.decode(data))
        assert (model(x) - before).norm() < 0.03 * before.norm()
