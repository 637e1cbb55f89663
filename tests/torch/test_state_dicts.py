"""The verbs on state dicts: what goes in comes out, and is not changed on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tqcodec.torch
from tqcodec import EncodeError, Settings

EXACT = Settings(lossless=True)
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.bool,
]


def assert_same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    pair = [t.detach().contiguous().flatten().view(torch.uint8) for t in (found, wanted)]
    assert torch.equal(*pair)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Linear(8, 16))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(12, 10), (5,), (), (0, 3)], ids=str)
def test_every_dtype(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (10 * torch.randn(shape, generator=torch.Generator().manual_seed(1))).abs().to(dtype)
    found = tqcodec.torch.decode(tqcodec.torch.encode({"t": tensor}, EXACT))
    assert_same(found["t"], tensor)


def test_module_and_state_dict_give_the_same_bytes() -> None:
    network = small_network()
    data = tqcodec.torch.encode(network)
    assert data == tqcodec.torch.encode(network.state_dict())
    state = tqcodec.torch.decode(data)
    assert list(state) == list(network.state_dict())
    small_network().load_state_dict(state)
    error = state["3.weight"] - network.state_dict()["3.weight"]
    assert 0 < error.norm() < 0.1 * network.state_dict()["3.weight"].norm()


def test_inputs_are_not_changed() -> None:
    network = small_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    tqcodec.torch.encode(network)
    for name, tensor in network.state_dict().items():
        assert_same(tensor, before[name])
    assert all(p.requires_grad and p.is_leaf for p in network.parameters())


def test_tied_strided_and_parameter_tensors() -> None:
    base = torch.randn(40, 30, generator=torch.Generator().manual_seed(2))
    state = {
        "parameter": nn.Parameter(base.clone()),
        "transposed": base.T,
        "sliced": base[::2, 1::3],
        "expanded": base[:, :1].expand(40, 30),
        "half": base.to(torch.bfloat16).T,
        "eight": base.to(torch.float8_e5m2)[:, ::2],
        "tied.a": base,
        "tied.b": base,
    }
    data = tqcodec.torch.encode(state, EXACT)
    found = tqcodec.torch.decode(data)
    for name, tensor in state.items():
        assert_same(found[name], tensor)
    found["tied.a"].zero_()
    assert_same(found["tied.b"], base)
    without = tqcodec.torch.encode({k: v for k, v in state.items() if k != "tied.b"}, EXACT)
    assert len(data) < len(without) + 50


def test_small_tied_tensors_do_not_share_memory() -> None:
    state = {"a": torch.zeros(64), "b": torch.zeros(64)}
    found = tqcodec.torch.decode(tqcodec.torch.encode(state))
    found["a"].add_(1)
    assert_same(found["b"], torch.zeros(64))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "'x' is an int, not a tensor"),
        (None, "'x' is None"),
        ({"y": torch.ones(2)}, "'x' is a dict"),
        (torch.ones(2, 2).to_sparse(), "sparse"),
        (torch.ones(2, device="meta"), "meta"),
        (torch.ones(2, dtype=torch.complex64), "complex64"),
    ],
)
def test_what_cannot_be_encoded(value: Any, message: str) -> None:
    with pytest.raises(EncodeError, match=message):
        tqcodec.torch.encode({"x": value})


def test_files(tmp_path: Path) -> None:
    network, path = small_network(), tmp_path / "x.tqc"
    calls = []
    tqcodec.torch.save(network, path, progress=lambda *call: calls.append(call))
    assert calls
    tqcodec.torch.save(network, path, EXACT)
    for name, tensor in tqcodec.torch.load(path).items():
        assert_same(tensor, network.state_dict()[name])
    with tqcodec.torch.open(path) as file:
        assert list(file) == list(network.state_dict())
        assert len(file) == len(network.state_dict())
        assert_same(file["0.weight"], network.state_dict()["0.weight"])
        file["1.weight"].zero_()
        assert_same(file["1.weight"], network.state_dict()["1.weight"])
        assert file.metadata() == {"torch.versions": "{}"}
        assert file.container.length == path.stat().st_size
        with pytest.raises(KeyError):
            file["no such tensor"]


def test_limit() -> None:
    data = tqcodec.torch.encode({"w": torch.randn(64, 64)})
    with pytest.raises(tqcodec.LimitError):
        tqcodec.torch.decode(data, limit=1000)
