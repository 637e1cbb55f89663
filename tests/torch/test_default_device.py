"""Another default device, as scripts for GPUs set it, is only for what the user makes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import tqcodec.torch
from tqcodec import Settings
from tqcodec.torch.retraining.augment import Augmented

FAST = Settings(bits=5, effort=1)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 64)).eval()


@pytest.fixture
def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(16, 3, 8, 8), torch.randint(0, 64, (16,))) for _ in range(3)]


@pytest.fixture
def _meta(model: nn.Module, batches: object) -> Iterator[None]:
    torch.set_default_device("meta")  # where nothing can be computed
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.usefixtures("_meta")
def test_all_is_made_where_the_network_is(
    model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    inputs = [x for x, _ in batches]
    statistics = tqcodec.torch.calibrate(model, inputs)
    data = tqcodec.torch.encode(
        model, Settings(bits=5, effort=1, inference=True), statistics, tune=inputs, held_out=inputs
    )
    found = tqcodec.torch.compare(model, tqcodec.torch.decode(data), batches)
    assert found.kl is not None
    for mode in ("weights", "transform", "lazy"):
        assert tqcodec.torch.network(model, data, mode)(inputs[0]).device.type == "cpu"
    made = tqcodec.torch.synthetic_inputs(model, 8, size=8, mean=127, std=64)
    assert all(batch.device.type == "cpu" for batch in made)
    tqcodec.torch.encode(model, FAST, synthetic=made)
    augmented = Augmented(batches, 2, True)
    file = tqcodec.torch.retrain(model, augmented, FAST, epochs=1)
    assert all(t.device.type == "cpu" for t in tqcodec.torch.decode(file).values())
