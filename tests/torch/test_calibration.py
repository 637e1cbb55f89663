"""Calibration: the sums of every kind of layer are those of brute force, and nothing is changed."""

from __future__ import annotations

import copy
import json
import math
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from kinds import Counts
from PIL import Image
from seen import Seen
from torch import Tensor, nn
from torch.nn import functional

import tqcodec.torch.calibration.recorder
import tqcodec.torch.calibration.sums
from tqcodec import EncodeError
from tqcodec.cli.commands import main
from tqcodec.encoder.statistics import ARRAYS, Statistics, WeightStatistics
from tqcodec.torch import calibrate
from tqcodec.torch.inputs import DataOptions, load_batches
from tqcodec.torch.synthetic.file import save_inputs

SEED = 5


class Net(nn.Module):
    """One layer and a nonlinearity; the logits are all that comes out."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer: Any = layer

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(first(self.layer(x))).flatten(1)


class Attention(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True, **settings)

    def forward(self, x: Tensor) -> Tensor:
        kdim, vdim = self.layer.kdim, self.layer.vdim
        return self.layer(x, x[:, 1:, :kdim], x[:, 1:, :vdim])[0].flatten(1)


class Tied(nn.Module):
    """A matrix that is used twice, at unlike lengths, and known by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh()[:, 1:]).flatten(1)


class Branch(nn.Module):
    """Batch normalisations: alone, with a branch before it, called twice, and behind a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.alone = nn.Conv2d(3, 8, 3, bias=False, padding=1)
        self.bn_alone = nn.BatchNorm2d(8)
        self.branched = nn.Conv2d(8, 8, 3, bias=False, padding=1)
        self.bn_branched = nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 8, 3, bias=False, padding=1)
        self.bn_twice = nn.BatchNorm2d(8)
        self.biased = nn.Conv2d(8, 8, 3, padding=1)
        self.bn_biased = nn.BatchNorm2d(8)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.bn_alone(self.alone(x)).relu_()
        x = self.branched(x)
        x = x + self.bn_branched(x)
        x = self.bn_twice(self.bn_twice(self.twice(x)))
        return self.bn_biased(self.biased(x)).mean((2, 3))


def first(given: Any) -> Tensor:
    return given if isinstance(given, Tensor) else given[0]


Module = TypeVar("Module", bound=nn.Module)


def seeded(make: Callable[[], Module]) -> Module:
    torch.manual_seed(1)
    return make().eval()


def equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


def data(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def signs(shape: torch.Size, probes: int) -> Tensor:
    """As `calibrate` draws them: (samples, probes, ...)."""
    generator = torch.Generator().manual_seed(SEED)
    return 2.0 * torch.randint(0, 2, (shape[0], probes, *shape[1:]), generator=generator) - 1


def blocks_of(matrices: Tensor, blocks: int, by_rows: bool) -> Tensor:
    """SUM of dW^T dW over matrices (k, rows, columns): (blocks, n, n)."""
    k, rows, columns = matrices.shape
    shape = (k, blocks, -1, columns) if by_rows else (k, rows, blocks, -1)
    apart = matrices.reshape(shape)
    if not by_rows:
        apart = apart.transpose(1, 2)
    return torch.einsum("kbrn,kbrm->bnm", apart, apart)


def gradients(model: nn.Module, x: Tensor, name: str, probes: int, rows: int) -> Tensor:
    """Gradient of each probe of each sample by a weight: (pairs, rows, columns)."""
    weight = model.get_parameter(name)
    y = model(x)
    found = []
    for i, vectors in enumerate(signs(y.shape, probes)):
        for v in vectors:
            (g,) = torch.autograd.grad((v * y[i]).sum(), weight, retain_graph=True)
            found.append(g.movedim(rows, 0).flatten(1))
    return torch.stack(found)


def unfolded(layer: Any, x: Tensor) -> Tensor:
    """What each output position sees, by a kernel for each column: (groups, n, positions)."""
    kernel = layer.kernel_size
    seen = x.shape[1] // layer.groups
    n = seen * math.prod(kernel)
    eye = torch.eye(n).reshape(n, seen, *kernel)
    dims = len(kernel)
    settings = {"stride": layer.stride, "dilation": layer.dilation}
    operation: Callable[..., Tensor]
    if layer.transposed:
        operation = (functional.conv_transpose1d, functional.conv_transpose2d)[dims - 1]
        eye = eye.transpose(0, 1)
        settings |= {"padding": layer.padding, "output_padding": layer.output_padding}
    else:
        operation = (functional.conv1d, functional.conv2d, functional.conv3d)[dims - 1]
        settings |= {"padding": layer.padding}
    parts = [operation(part, eye, **settings) for part in x.chunk(layer.groups, 1)]
    return torch.stack([part.transpose(0, 1).flatten(1) for part in parts])


def assert_near(found: Any, wanted: Tensor) -> None:
    wanted = wanted.detach().double()
    tolerance = 1e-5 * float(wanted.abs().max())
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=tolerance)


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.Conv1d(4, 6, 5, stride=2, padding=3), (4, 13)),
    "2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(1, 2), dilation=(2, 1), padding=1), (4, 8, 7)),
    "3d": (lambda: nn.Conv3d(3, 6, (2, 3, 1), padding=(1, 0, 0)), (3, 4, 5, 3)),
    "same": (lambda: nn.Conv2d(3, 6, 4, padding="same"), (3, 5, 6)),
    "pointwise": (lambda: nn.Conv2d(16, 8, 1, stride=2), (16, 5, 5)),
    "grouped": (lambda: nn.Conv2d(6, 8, 3, groups=2), (6, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), (8, 6, 6)),
    "multiplied": (lambda: nn.Conv1d(5, 10, 7, groups=5), (5, 9)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1), (4, 7)),
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), 2, padding=(3, 0), output_padding=1, dilation=2),
        (4, 6, 5),
    ),
    "transposed grouped": (lambda: nn.ConvTranspose2d(6, 8, 3, 2, 1, groups=2), (6, 4, 4)),
    "wide image": (lambda: nn.Conv2d(4, 64, 2), (4, 3, 3)),
}


@pytest.mark.parametrize("chunk", [1 << 26, 1], ids=["whole", "chunked"])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_convolutions(kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tqcodec.torch.calibration.sums, "CHUNK", chunk)
    make, shape = CONVOLUTIONS[kind]
    model, x = seeded(lambda: Net(make())), data(3, *shape)
    layer: Any = model.layer
    one = calibrate(model, list(x.split(2)), probes=2, seed=SEED)["layer.weight"]
    columns = unfolded(layer, x)
    rows = int(layer.transposed)
    assert (one.rows, one.images, one.probes, one.vectors) == (rows, 3, 6, columns.shape[2])
    assert_near(one.inputs, columns @ columns.mT)
    assert_near(one.sums, columns.sum(-1))
    found = gradients(model, x, "layer.weight", 2, rows)
    assert_near(one.gradients, blocks_of(found, layer.groups, by_rows=not rows))
    out = layer(x)
    y = functional.silu(out).flatten(1)
    wanted = 0.0
    for v in signs(y.shape, 2).unbind(1):
        (g,) = torch.autograd.grad((v * y).sum(), out, retain_graph=True)
        g = g.transpose(0, 1).reshape(layer.groups if rows else 1, one.outputs.shape[1], -1)
        wanted = wanted + (g @ g.mT).sum(0, keepdim=True)
    assert isinstance(wanted, Tensor)
    assert_near(one.outputs, wanted)
    assert (one.shift, one.shift_sign) == (
        (None, 1) if rows and layer.groups > 1 else ("layer.bias", 1)
    )


@pytest.mark.parametrize("lead", [(4,), (4, 5), (4, 3, 2)], ids=str)
def test_linear(lead: tuple[int, ...]) -> None:
    model, x = seeded(lambda: Net(nn.Linear(9, 8))), data(*lead, 9)
    one = calibrate(model, [x], seed=SEED)["layer.weight"]
    flat = x.reshape(-1, 9)
    assert_near(one.inputs[0], flat.T @ flat)
    assert_near(one.sums[0], flat.sum(0))
    found = gradients(model, x, "layer.weight", 1, 0)
    assert_near(one.gradients, blocks_of(found, 1, by_rows=True))
    assert (one.vectors, one.images, one.shift, one.gain) == (len(flat), 4, "layer.bias", None)


def test_blocks() -> None:
    model, x = seeded(lambda: Net(nn.Linear(10, 11))), data(4, 3, 10)
    whole = calibrate(model, [x])["layer.weight"]
    narrow = calibrate(model, [x], block=4)["layer.weight"]
    assert [getattr(narrow, name).shape for name in ARRAYS] == [
        (3, 4, 4),
        (3, 4),
        (3, 4, 4),
        (3, 4, 4),
    ]
    for name, size in (("inputs", 10), ("gradients", 10), ("outputs", 11)):
        wanted = np.pad(getattr(whole, name)[0], (0, 12 - size))
        for i in range(3):
            part = slice(4 * i, 4 * i + 4)
            np.testing.assert_allclose(
                getattr(narrow, name)[i], wanted[part, part], rtol=1e-4, atol=1e-5
            )
    grouped = seeded(lambda: Net(nn.Conv2d(8, 8, 3, groups=2)))
    assert "block=8" in calibrate(grouped, [data(2, 8, 4, 4)], block=8).without["layer.weight"]


def test_large_products_are_symmetric() -> None:
    model, x = seeded(lambda: Net(nn.Linear(300, 270))), data(6, 300)
    one = calibrate(model, [x], seed=SEED)["layer.weight"]
    assert_near(one.inputs[0], x.T @ x)
    assert (one.outputs == one.outputs.swapaxes(1, 2)).all()
    found = gradients(model, x, "layer.weight", 1, 0)
    assert_near(one.gradients, blocks_of(found, 1, by_rows=True))


RECURRENT: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(6, 8, batch_first=True),
    "deep": lambda: nn.LSTM(6, 8, num_layers=2, bidirectional=True, batch_first=True),
    "projected": lambda: nn.LSTM(6, 16, proj_size=8, bias=False, batch_first=True),
    "gru": lambda: nn.GRU(6, 8, num_layers=2, bidirectional=True, batch_first=True),
    "rnn": lambda: nn.RNN(6, 12, nonlinearity="relu", batch_first=True),
    "rnn of tanh": lambda: nn.RNN(6, 12, batch_first=True),
}


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_recurrent(kind: str) -> None:
    model, x = seeded(lambda: Net(RECURRENT[kind]())), data(3, 5, 6)
    seen = Seen()
    found = calibrate(model, list(x.split(2)), probes=2, seed=SEED, outputs=seen)
    assert_near(torch.cat(seen).detach(), model(x))
    assert set(found) == {n for n, p in model.named_parameters() if p.ndim == 2}
    for name, one in found.items():
        wanted = gradients(model, x, name, 2, 0)
        assert_near(one.gradients, blocks_of(wanted, 1, by_rows=True))
        assert (one.vectors, one.images) == (15, 3)
        bias = name.replace("weight", "bias")
        assert one.shift == (bias if bias in model.state_dict() else None)
    flat = x.reshape(-1, 6)
    assert_near(found["layer.weight_ih_l0"].inputs[0], flat.T @ flat)
    if kind == "lstm":
        states = first(model.layer(x))[:, :-1].reshape(-1, 8)
        assert_near(found["layer.weight_hh_l0"].inputs[0], states.T @ states)
        assert_near(found["layer.weight_hh_l0"].sums[0], states.sum(0))


def test_cells() -> None:
    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.gru = nn.LSTMCell(6, 8), nn.GRUCell(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            h = x.new_zeros(len(x), 8)
            state, other = (h, h), h
            for part in x.unbind(1):
                state = self.lstm(part, state)
                other = self.gru(state[0], other)
            return other

    model, x = seeded(Cells), data(3, 4, 6)
    found = calibrate(model, [x], seed=SEED)
    for name, one in found.items():
        assert_near(one.gradients, blocks_of(gradients(model, x, name, 1, 0), 1, by_rows=True))
        assert one.shift is None
    assert len(found) == 4


@pytest.mark.parametrize("sizes", [{}, {"kdim": 4, "vdim": 6}], ids=["one", "three"])
def test_attention(sizes: dict[str, int]) -> None:
    model, x = seeded(lambda: Attention(**sizes)), data(3, 5, 8)
    seen = Seen()
    found = calibrate(model, [x], seed=SEED, outputs=seen)
    assert_near(seen[0].detach(), model(x))
    assert not found.without
    assert found["layer.out_proj.weight"].shift == "layer.out_proj.bias"
    for name, one in found.items():
        parts = 1 if sizes or "out" in name else 3
        wanted = gradients(model, x, name, 1, 0)
        assert_near(one.gradients, blocks_of(wanted, parts, by_rows=True))
    if not sizes:
        one = found["layer.in_proj_weight"]
        query, key = x.reshape(-1, 8), x[:, 1:].reshape(-1, 8)
        assert_near(one.inputs[0] / one.vectors, query.T @ query / len(query))
        assert_near(one.sums[2] / one.vectors, key.mean(0))
        assert one.outputs.shape == (3, 8, 8)
        assert one.shift == "layer.in_proj_bias"


def test_transformer_layers_take_the_same_path() -> None:
    model = seeded(lambda: Net(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)))
    found = calibrate(model, [data(3, 5, 8)])
    assert len(found) == 4
    assert not found.without


def test_embedding() -> None:
    model = seeded(lambda: Net(nn.Embedding(12, 6, max_norm=1.0)))
    before = model.layer.weight.clone()
    tokens = torch.tensor([[3, 1, 1], [0, 11, 3]])
    one = calibrate(model, [tokens], probes=2, seed=SEED)["layer.weight"]
    assert torch.equal(model.layer.weight, before)
    out = model.layer(tokens)
    y = functional.silu(out).flatten(1)
    wanted = torch.zeros(6, 6)
    for v in signs(y.shape, 2).unbind(1):
        (g,) = torch.autograd.grad((v * y).sum(), out, retain_graph=True)
        wanted += g.reshape(-1, 6).T @ g.reshape(-1, 6)
    assert_near(one.inputs[0], wanted)
    assert_near(one.gradients[0], wanted)
    assert one.vectors == 12
    assert one.outputs.shape == (12, 1, 1)
    assert one.outputs[[0, 1, 2, 3, 11], 0, 0].tolist() == [2, 4, 0, 4, 2]
    assert not one.sums.any()


def test_tied_weights() -> None:
    model, x = seeded(Tied), data(3, 4, 8)
    found = calibrate(model, [x], seed=SEED)
    assert list(found) == ["a.weight"]
    assert not found.without
    one = found["a.weight"]
    wanted = gradients(model, x, "a.weight", 1, 0)
    assert_near(one.gradients, blocks_of(wanted, 1, by_rows=True))
    assert one.vectors == 3 * (4 + 3)


def test_an_embedding_that_is_a_matrix_as_well() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Embedding(12, 8), nn.Linear(8, 12)
            self.head.weight = self.tokens.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.tokens(x).tanh())

    model, tokens = seeded(Language), torch.tensor([[3, 1, 1], [0, 11, 3]])
    found = calibrate(model, [tokens])
    assert list(found) == ["tokens.weight"]
    x = model.tokens(tokens).tanh().flatten(0, 1)
    assert_near(found["tokens.weight"].inputs[0], x.T @ x)
    assert found["tokens.weight"].outputs.shape == (1, 12, 12)
    assert found["tokens.weight"].shift is None  # the weight has two calls


def test_shift_and_gain() -> None:
    found = calibrate(seeded(Branch), [data(2, 3, 6, 6)])
    facts = {name: (one.shift, one.shift_sign, one.gain) for name, one in found.items()}
    assert facts == {
        "alone.weight": ("bn_alone.running_mean", -1, "bn_alone.weight"),
        "branched.weight": (None, 1, None),
        "twice.weight": (None, 1, None),
        "biased.weight": ("biased.bias", 1, "bn_biased.weight"),
    }


def test_what_has_no_statistics() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.loose = nn.Linear(8, 8), nn.Linear(8, 8)
            self.asked, self.matrix = nn.Linear(8, 8), nn.Parameter(torch.ones(8, 8))
            self.small = nn.Linear(8, 4)
            self.lstm = nn.LSTM(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            self.asked(x)
            packed = nn.utils.rnn.pack_sequence([x])
            return self.small(self.used(x) @ self.matrix + self.lstm(packed)[0].data)

    found = calibrate(seeded(Odd), [data(3, 8)])
    assert list(found) == ["used.weight"]
    unused = tqcodec.torch.calibration.recorder.UNUSED
    assert found.without == {
        "loose.weight": unused,
        "asked.weight": "the output does not depend on it",
        "matrix": unused,
        "lstm.weight_ih_l0": unused,
        "lstm.weight_hh_l0": unused,
    }


def test_sums_add() -> None:
    model, x = seeded(Branch), data(6, 3, 6, 6)
    whole = calibrate(model, [x])
    halves = calibrate(model, list(x.split(3)))
    parts = calibrate(model, [x[:4]]) + calibrate(model, [x[4:]])
    for name, one in whole.items():
        for array in ARRAYS:  # whatever the batches, the signs of an image are the same
            assert_near(getattr(halves[name], array), torch.tensor(getattr(one, array)))
        assert_near(parts[name].inputs, torch.tensor(one.inputs))
        assert_near(parts[name].sums, torch.tensor(one.sums))
        assert (parts[name].images, parts[name].vectors) == (one.images, one.vectors)


def assert_equal(one: Statistics, other: Statistics) -> None:
    assert list(one) == list(other)
    for name in one:
        for array in ARRAYS:
            assert (getattr(one[name], array) == getattr(other[name], array)).all()


class Experts(nn.Module):
    """Each sample goes to one of two experts; empty batches too, if they are not guarded."""

    def __init__(self, guarded: bool = True) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.head, self.guarded = nn.Linear(16, 10), guarded

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            chosen = (x[:, 0] > 0) == bool(i)
            if chosen.any() or not self.guarded:
                out[chosen] = expert(x[chosen])
        return self.head(out)


EXPERTS = ["experts.0.weight", "experts.1.weight", "head.weight"]


@pytest.mark.parametrize("guarded", [True, False])
def test_experts_that_see_a_part_of_the_data(guarded: bool) -> None:
    """The machines' sums are those of one; a rare expert does not count as if always used."""
    torch.manual_seed(0)
    model, x = Experts(guarded), data(64, 16)
    x[:, 0] = torch.linspace(-1, 3, 64)
    left, right = x[x[:, 0] <= 0], x[x[:, 0] > 0]
    whole = calibrate(model, [left, right])
    one, other = calibrate(model, [left]), calibrate(model, [right])
    assert list(one.without) == ["experts.1.weight"]
    for found in (one + other, other + one):
        assert sorted(found) == sorted(whole) == EXPERTS
        assert not found.without
        for name in EXPERTS:
            assert (found[name].images, found[name].probes) == (64, 64)
            assert (whole[name].images, whole[name].probes) == (64, 64)
            assert found[name].vectors == whole[name].vectors
            assert_near(found[name].inputs, torch.tensor(whole[name].inputs))
            assert found[name].shift == whole[name].shift == name.replace("weight", "bias")
    assert whole["experts.0.weight"].vectors == len(left)
    assert tqcodec.torch.encode(model, tqcodec.Settings(quality=80), one)


def test_statistics_know_their_network(tmp_path: Path) -> None:
    model, batches = seeded(Branch), list(data(6, 3, 6, 6).split(3))
    found = calibrate(model, batches)
    found.save(tmp_path / "s.npz")
    old = Statistics({n: replace(one, sketch=None) for n, one in found.items()})
    settings = tqcodec.Settings(bits=8)
    for statistics in (found, Statistics.load(tmp_path / "s.npz")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for same in (model, copy.deepcopy(model).half(), copy.deepcopy(model).bfloat16()):
                tqcodec.torch.encode(same, settings, statistics)
            tqcodec.torch.encode(trained_on(model, 0.02), settings, statistics)
        with pytest.warns(tqcodec.EncodeWarning, match="statistics: .* changed since, most 'alone"):
            tqcodec.torch.encode(trained_on(model, 0.3, "alone"), settings, statistics)
        with pytest.warns(tqcodec.EncodeWarning, match="statistics: 1 of "):
            tqcodec.torch.encode(trained_on(model, 100, "alone"), settings, statistics)
        other = trained_on(model, 3)
        with pytest.raises(EncodeError, match="statistics: of another network: half of its"):
            tqcodec.torch.encode(other, settings, statistics)
        with pytest.raises(EncodeError, match="differ by"):
            statistics + calibrate(other, batches)
        with warnings.catch_warnings():  # of before there were sketches
            warnings.simplefilter("error")
            tqcodec.torch.encode(other, settings, old)
            assert (old + statistics)["alone.weight"].sketch == found["alone.weight"].sketch


def trained_on(model: Module, distance: float, only: str = "") -> Module:
    """A copy whose weights are so far, relative to their norm, from where they were."""
    model = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith(only):
                noise = torch.randn_like(weight)
                weight.add_(distance * noise * weight.norm() / noise.norm())
    return model


def test_deterministic_and_independent_of_global_state(tmp_path: Path) -> None:
    model, x = seeded(Branch), data(4, 3, 6, 6)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one = calibrate(model, [x], seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert_equal(one, calibrate(model, [x], seed=7))
    other = calibrate(model, [x], seed=8)["alone.weight"]
    assert (other.gradients != one["alone.weight"].gradients).any()
    one.save(tmp_path / "s.npz")
    assert_equal(one, Statistics.load(tmp_path / "s.npz"))


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_it_was(fails: bool) -> None:
    model = seeded(Branch).train()
    model.bn_alone.eval()
    model.twice.weight.requires_grad_(False)
    model(data(2, 3, 6, 6)).sum().backward()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    batches = [data(2, 3, 6, 6), "no data" if fails else data(1, 3, 6, 6)]
    if fails:
        with pytest.raises(EncodeError, match="a batch is a str"):
            calibrate(model, batches)
    else:
        calibrate(model, batches)
    assert [module.training for module in model.modules()] == modes
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name != "twice.weight")
        before, after = grads[name], parameter.grad
        assert before is after is None or equal(before, after)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


def test_each_batch_finds_the_buffers_as_they_are() -> None:
    model, batch = seeded(Counts), data(2, 64)
    once, twice = (calibrate(model, [batch] * n)["linear.weight"] for n in (1, 2))
    np.testing.assert_allclose(twice.sums, 2 * once.sums)
    np.testing.assert_allclose(twice.inputs, 2 * once.inputs)
    assert not model.runs.any() and not model.mean.any()


@pytest.mark.parametrize("one", [torch.ones(4, 8), np.ones((4, 8)), {"input": torch.ones(4, 8)}])
def test_one_batch_in_place_of_batches(one: Any) -> None:
    """A linear layer would take each sample of it without a word."""
    with pytest.raises(EncodeError, match=r"the data: one .* in place of batches: put it into a"):
        calibrate(nn.Linear(8, 3), one)


class Stream(torch.utils.data.IterableDataset[Any]):
    """Does not know how many there are."""

    def __init__(self, samples: Tensor) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.samples)


def test_kinds_of_batches() -> None:
    model, x = seeded(lambda: Net(nn.Linear(8, 8))), data(6, 8)
    wanted = calibrate(model, [x])
    labels = torch.zeros(6)
    dataset = torch.utils.data.TensorDataset(x, labels)
    for batches in (
        [(x, labels)],
        iter([[x]]),
        [{"x": x}],
        dataset,
        torch.utils.data.DataLoader(dataset, batch_size=6),
        Stream(x),
        torch.utils.data.DataLoader(Stream(x), batch_size=6),
    ):
        assert_equal(calibrate(model, batches), wanted)
    calls = []
    calibrate(model, list(x.split(2)), progress=lambda *call: calls.append(call))
    assert calls == [("calibrate", k, 3) for k in (1, 2, 3)]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda y: "logits", "is a str, not a tensor"),
        (lambda y: y.detach(), "has no gradient"),
        (lambda y: y.sum(), "not numbers by sample"),
        (lambda y: y / 0, "is not finite"),
    ],
)
def test_outputs_that_cannot_be_used(result: Any, message: str) -> None:
    model = seeded(lambda: Net(nn.Linear(8, 8)))
    with pytest.raises(EncodeError, match=message):
        calibrate(model, [data(2, 8)], outputs=result)


def test_errors() -> None:
    model = seeded(lambda: Net(nn.Linear(8, 8)))
    with pytest.raises(EncodeError, match="no batch"):
        calibrate(model, [])
    with pytest.raises(EncodeError, match="probes=0"):
        calibrate(model, [data(2, 8)], probes=0)
    with pytest.raises(EncodeError, match=r"layer 'layer\.weight'.* not finite"):
        calibrate(model, [1e25 * data(2, 8)])


MODEL = """
import torch, helper
def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.LazyLinear(5))
def fixed():
    model = make(); model(torch.zeros(1, 3, 8, 8)); return model
def batches():
    return [(helper.images[:2], torch.zeros(2)), (helper.images[2:], torch.zeros(3))]
def generated():
    yield {"input": helper.images[:2]}
    yield {"input": helper.images[2:]}
def broken():
    raise ValueError("two\\nlines")
def number():
    return 3
"""
HELPER = """
import torch
images = torch.ones(5, 3, 8, 8)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "helper.py").write_text(HELPER)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "last.npz", labels=np.arange(5), images=pixels)
    np.savez(tmp_path / "first.npz", pixels.transpose(0, 3, 1, 2))
    np.savez(tmp_path / "floats.npz", x=pixels.transpose(0, 3, 1, 2).astype(np.float32) - 127)
    (tmp_path / "photos").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "photos" / f"{i}.png")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in (tmp_path / "photos").iterdir():
            archive.write(path, f"in/{path.name}")
    return tmp_path


def run(folder: Path, *more: str, data: str = "last.npz", model: str = "fixed") -> int:
    spec = f"{folder}/model.py:{model}"
    output = f"{folder}/out.npz"
    if data == "last.npz" and not {"--mean", "--std"} & set(more):
        more = (*more, "--mean", "0", "--std", "1")
    return main(["calibrate", "--model", spec, "--data", f"{folder}/{data}", "-o", output, *more])


def pixels_of(folder: Path, size: int) -> Tensor:
    batches = load_batches(str(folder), DataOptions(size=size, mean=[0], std=[1]))
    return torch.cat([pixels for pixels, _ in batches])


def test_pictures_of_16_bits_are_no_white_ones(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray((grey >> 8).astype(np.int32)).save(tmp_path / "c.png", "TIFF")
    first, second = pixels_of(tmp_path, 8)
    assert torch.equal(first, torch.from_numpy((grey >> 8).astype(np.float32)).expand(3, 8, 8))
    assert torch.equal(first, second)
    for pixels in (grey.astype(np.float32), grey.astype(np.int32), grey.astype(np.float32) / 65536):
        Image.fromarray(pixels).save(tmp_path / "d.png", "TIFF")
        with pytest.raises(EncodeError, match=r"d.png: .*32, not whole and 0 to 255"):
            pixels_of(tmp_path, 8)


def test_what_an_archive_of_macos_holds_beside_pictures(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "in").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "._a.png").write_bytes(b"\0\5\x16\7 resource fork")
    assert len(pixels_of(tmp_path, 8)) == 2
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(EncodeError, match=r"b.png: not an image of a kind that Pillow knows$"):
        pixels_of(tmp_path, 8)


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (9, 31), (5, 5), (1, 7), (300, 1)])
@pytest.mark.parametrize("size", [1, 8, 13])
def test_the_square_in_the_middle(shape: tuple[int, int], size: int, tmp_path: Path) -> None:
    """As if all were scaled and then cropped, which takes memory for what is thrown away."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8))
    image.save(tmp_path / "a.png")
    width, height = (max(size, round(n * size / min(image.size))) for n in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    scaled = image.resize((width, height), Image.Resampling.BILINEAR)
    wanted = np.asarray(scaled.crop((left, top, left + size, top + size)), np.float32)
    (found,) = pixels_of(tmp_path, size)
    assert np.abs(found.permute(1, 2, 0).numpy() - wanted).max() <= 1


def test_a_picture_of_one_column_takes_no_memory(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((60000, 1, 3), np.uint8)).save(tmp_path / "a.png")
    assert pixels_of(tmp_path, 224).shape == (1, 3, 224, 224)


def test_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    normal, files = ("--mean", "127", "--std", "1,1,1"), ("--size", "8")
    wanted: WeightStatistics | None = None
    for data, options in (
        ("last.npz", normal),
        ("first.npz", normal),
        ("floats.npz", ()),
        ("photos", (*normal, *files)),
        ("photos.zip", (*normal, *files)),
    ):
        assert run(folder, *options, "-f", "--json", "--batch", "2", data=data) == 0
        out, err = capsys.readouterr()
        assert "warning" not in err
        document = json.loads(out)
        assert (document["weights"], document["images"], document["without"]) == (2, 5, {})
        one = Statistics.load(folder / "out.npz")["0.weight"]
        assert document["bytes"] == (folder / "out.npz").stat().st_size
        wanted = wanted or one
        for array in ARRAYS:
            assert (getattr(one, array) == getattr(wanted, array)).all()
    assert run(folder, "-f", data="model.py:batches") == 0
    assert "out.npz: 2 weights, 5 images, " in capsys.readouterr().out
    for function in ("batches", "generated"):
        assert run(folder, "-f", "--images", "3", "--json", data=f"model.py:{function}") == 0
        assert json.loads(capsys.readouterr().out)["images"] == 3


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.arange(5)}, "no array but labels"),
        ({"x": np.ones(5, bool)}, "array 'x' is of type bool, not of integers or floats"),
        ({"x": np.ones(5, complex)}, "array 'x' is of type complex128"),
        ({"x": np.ones(5), "y": np.array(["a"] * 5)}, "array 'y' is of type <U1"),
        ({"x": np.ones(5), "y": np.arange(4)}, r"5 samples, but labels of shape \(4,\)"),
    ],
    ids=["labels alone", "booleans", "complex", "texts", "too few"],
)
def test_arrays_that_are_no_data(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(EncodeError, match=message):
        load_batches(str(tmp_path / "data.npz"), DataOptions())


def test_arrays_of_another_byte_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.arange(3, dtype=">f4"), y=np.arange(3, dtype=">i8"))
    ((x, y),) = load_batches(str(tmp_path / "data.npz"), DataOptions())
    assert y is not None and x.tolist() == y.tolist() == [0, 1, 2]


PICTURES = "first.npz", "last.npz", "photos", "photos.zip"
OTHERS = "floats.npz", "model.py:batches", "model.py:generated", "made.npz"


@pytest.mark.parametrize("data", [*PICTURES, *OTHERS])
def test_what_is_said_of_pictures_is_used_or_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], data: str
) -> None:
    save_inputs(folder / "made.npz", [torch.zeros(2, 3, 8, 8)] * 3)
    arguments = ["calibrate", "--model", f"{folder}/model.py:fixed", "--data", f"{folder}/{data}"]
    arguments += ["-o", f"{folder}/out.npz", "-f"]
    size = ["--size", "8"]
    wanted = size if data.startswith("photos") else []
    for given in ([], ["mean"], ["std"], ["mean", "std"]):
        options = [text for name in given for text in (f"--{name}", "2")]
        code, err = main([*arguments, *wanted, *options]), capsys.readouterr().err
        if data in OTHERS:
            assert code == (2 if given else 0)
            if given:
                refused = f"{data}: {given[0]} would be ignored, only pictures of uint8"
                assert refused in err and err.count("\n") == 1
            continue
        assert code == 0
        missing = [n for n in ("mean 0", "std 1") if n[:-2] not in given]
        said = f"{data}: pictures of 0 to 255 are normalised by {' and '.join(missing)}, as none"
        assert err.count("tqcodec: warning: ") == bool(missing) and (said in err) == bool(missing)
    if not wanted:
        assert main([*arguments, *size]) == 2
        assert "size would be ignored, only image files are scaled" in capsys.readouterr().err


def test_data_can_be_gone_through_again(folder: Path) -> None:
    for data in ("last.npz", "photos.zip", "model.py:batches", "model.py:generated"):
        size = 8 if data == "photos.zip" else None
        normal = ([0.0], [1.0]) if size or data == "last.npz" else (None, None)
        batches = load_batches(f"{folder}/{data}", DataOptions(None, 2, size, *normal))
        for _ in range(2):
            inputs = [x["input"] if isinstance(x, dict) else x for x, _ in batches]
            assert sum(map(len, inputs)) == 5
    labels = [y for _, y in load_batches(f"{folder}/last.npz", DataOptions()) if y is not None]
    assert torch.equal(torch.cat(labels), torch.arange(5))


def test_pictures_are_found_once_the_folder_has_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    batches = load_batches("photos", DataOptions(None, 2, 8, [0.0], [1.0]))
    monkeypatch.chdir("photos")
    assert sum(len(x) for x, _ in batches) == 5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"data": "nothing.npz"}, "No such file"),
        ({"data": "model.py"}, "not data of a known kind"),
        ({"data": "model.py:number"}, "returned an int, not an iterable"),
        ({"data": "model.py:nothing"}, "no function 'nothing'"),
        ({"data": "empty"}, "no image files"),
        ({"model": "broken"}, "ValueError: two"),
        ({"model": "number"}, "returned an int, not an nn.Module"),
        ({"model": "no-name"}, "not of the form FILE.py:FUNCTION"),
    ],
)
def test_command_line_errors(
    folder: Path, capsys: pytest.CaptureFixture[str], more: dict[str, str], message: str
) -> None:
    (folder / "empty").mkdir()
    assert run(folder, **more) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "out.npz").exists()


def test_options_are_checked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, message in (
        (["--mean", "1,2"], "3 channels, but 2 values of mean"),
        (["--std", "0"], "std not 0"),
        (["--batch", "0"], "at least 1"),
        (["--probes", "0"], "probes=0"),
        (["--mean", "x"], "not numbers"),
        (["--device", "nowhere"], "device 'nowhere'"),
    ):
        assert run(folder, *more) == 2
        assert message in capsys.readouterr().err
    (folder / "out.npz").touch()
    assert run(folder) == 2
    assert "-f overwrites it" in capsys.readouterr().err


@pytest.mark.parametrize(("outputs", "probes"), [(1, 8), (16, 8), (17, 1)])
def test_several_probes_where_outputs_are_few(outputs: int, probes: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, outputs))
    batches = list(torch.randn(12, 8).split(4))
    found, wanted = (calibrate(model, batches, probes=n)["0.weight"] for n in (None, probes))
    assert found.probes == 12 * probes
    assert np.array_equal(found.gradients, wanted.gradients)
