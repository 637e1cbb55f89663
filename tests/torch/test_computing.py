"""Networks that compute from coefficients, or decode weights when they run: as with dense ones."""

from __future__ import annotations

import copy
import io
import math
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import tqcodec
import tqcodec.torch
from tqcodec.errors import DecodeError, EvaluationError
from tqcodec.reading.multiplications import Operations, of_tensor
from tqcodec.reading.transform_tensor import TransformTensor, narrowest
from tqcodec.torch.inference import coefficients
from tqcodec.torch.inference.coefficients import Coefficients
from tqcodec.torch.inference.held import HOLDER, Held, hold, holder_of

Rng = np.random.Generator
modes = pytest.mark.parametrize("mode", ["weights", "transform", "lazy"])
held_modes = pytest.mark.parametrize("mode", ["transform", "lazy"])

# What `network` states: largest difference of outputs, relative to the largest output.
FLOAT32 = 2e-6
BFLOAT16 = 2e-2


def random_tensor(rng: Rng, shape: tuple[int, ...], bases: Any, kept: float) -> TransformTensor:
    """A weight of a layer in the transform domain: (out, in, taps...)."""
    lengths = (shape[0], shape[1], math.prod(shape[2:]))
    rows = []
    for has, length in zip(bases, lengths, strict=True):
        basis = rng.integers(-300, 300, (max(1, length - int(has == "short")), length))
        rows.append(basis << rng.integers(0, 3, (len(basis), 1)) if has else None)
    out, inn, taps = (n if b is None else len(b) for n, b in zip(lengths, rows, strict=True))
    columns = np.flatnonzero(rng.random(inn * taps) < kept)
    size = math.prod(math.sqrt(b.shape[0]) * 200 for b in rows if b is not None)
    return TransformTensor(
        shape,
        np.dtype(np.float32),
        ("out", "in", *["taps"] * (len(shape) - 2)),
        narrowest(wild(rng, (out, len(columns)))),
        columns,
        (rows[0], rows[1], rows[2]),
        rng.choice([8, 9, 12], len(columns)),
        rng.integers(20, 40, lengths[0]),
        (1, round(math.log2(0.0002 / size))),
    )


def wild(rng: Rng, size: tuple[int, int]) -> Any:
    """Coefficients, some columns of which have a few of more than 8 bits."""
    found = rng.integers(-9, 9, size)
    far = rng.random(size) < 0.02
    far &= rng.random(size[1]) < rng.choice([0.0, 0.3, 1.0])
    return np.where(far, rng.integers(-500, 500, size), found)


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    scale = float(expected.abs().max()) + 1e-6
    return bool((found.float() - expected.float()).abs().max() <= tolerance * scale)


LAYERS: dict[str, Any] = {
    "conv1d": (lambda: nn.Conv1d(6, 8, 3, padding=1), (2, 6, 11)),
    "conv2d": (lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1), (2, 6, 9, 10)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2, dilation=2), (1, 4, 6, 7, 5)),
    "grouped": (lambda: nn.Conv2d(6, 8, (3, 2), groups=2, bias=False), (2, 6, 9, 10)),
    "depthwise": (lambda: nn.Conv2d(6, 12, 3, groups=6, padding="same"), (2, 6, 9, 10)),
    "pointwise": (lambda: nn.Conv2d(6, 8, 1, stride=2, padding=1), (2, 6, 9, 10)),
    "reflected": (
        lambda: nn.Conv2d(6, 8, 3, padding=2, padding_mode="reflect", stride=2),
        (2, 6, 9, 10),
    ),
    "unbatched": (lambda: nn.Conv2d(6, 8, 3), (6, 9, 10)),
    "linear": (lambda: nn.Linear(10, 7), (3, 4, 10)),
    "vector": (lambda: nn.Linear(10, 7, bias=False), (10,)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2), (2, 6, 5, 5)),
}
FORWARDS = {nn.Linear: coefficients.linear, nn.Embedding: coefficients.embedding}
basis = st.sampled_from([None, "full", "short"])


@pytest.mark.parametrize("kind", LAYERS)
@settings(max_examples=25)
@given(
    bases=st.tuples(basis, basis, basis),
    kept=st.sampled_from([1.0, 0.5, 0.1, 0.0]),
    own=st.booleans(),
    seed=st.integers(0, 99),
)
def test_layers_compute_what_dense_ones_do(
    kind: str, bases: Any, kept: float, own: bool, seed: int
) -> None:
    """With bases on any axis and columns dropped, by the way of their own and rebuilt."""
    make, shape = LAYERS[kind]
    torch.manual_seed(seed)
    dense, x = make().eval(), torch.randn(shape)
    tensor = random_tensor(np.random.default_rng(seed), tuple(dense.weight.shape), bases, kept)
    with torch.no_grad():
        dense.weight.copy_(torch.from_numpy(tensor.weights()))
        expected = dense(x)
    held = copy.deepcopy(dense)
    operations = of_tensor("w", tensor, getattr(dense, "groups", 1))
    if own and operations.transform is not None:  # which never takes more than this
        operations = Operations("w", tensor.shape, 1, 1, 1, 0, 0, 0)
        object.__setattr__(operations, "kept", len(tensor.columns))
    elif not own:
        operations = Operations("w", tensor.shape, 0, 0, 0, None, 0, 0)
    forward: Any = None
    if kind != "transposed":
        forward = FORWARDS.get(type(dense), coefficients.convolution)
    hold(held, "weight", Coefficients(tensor, dense.weight, operations), forward)
    with torch.no_grad():
        assert close(held.weight, dense.weight, FLOAT32)
        assert close(held(x), expected, 1e-5)
        assert close(held.bfloat16()(x.bfloat16()), expected, 6e-2)


@settings(max_examples=25)
@given(st.tuples(basis, basis), st.sampled_from([1.0, 0.5, 0.0]), st.integers(0, 99))
def test_embeddings_look_rows_up(bases: Any, kept: float, seed: int) -> None:
    tensor = random_tensor(np.random.default_rng(seed), (9, 5), (*bases, None), kept)
    dense = nn.Embedding(9, 5, padding_idx=2)
    held = copy.deepcopy(dense)
    holder = Coefficients(tensor, dense.weight, of_tensor("w", tensor))
    hold(held, "weight", holder, coefficients.embedding)
    x = torch.tensor([[0, 2, 8], [8, 1, 0]])
    expected = functional.embedding(x, torch.from_numpy(tensor.weights()))
    assert close(held(x), expected, FLOAT32)


class Own(nn.Linear):
    """A layer with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, 2 * self.weight, self.bias)


class Network(nn.Module):
    """Layers of every kind, some of them shared."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 32)
        self.conv = nn.Sequential(nn.Conv1d(32, 48, 3, padding=1), nn.BatchNorm1d(48), nn.ReLU())
        self.grouped = nn.Conv1d(48, 64, 5, groups=2)
        self.up = nn.ConvTranspose1d(64, 32, 4, stride=2)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0)
        self.own = Own(32, 32)
        self.again = self.own
        self.head = nn.Linear(32, 40, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.grouped(self.conv(self.words(x).transpose(1, 2)))).transpose(1, 2)
        y = self.again(self.own(self.block(y)))
        out: Tensor = self.head(y)
        return out


@pytest.fixture(scope="module")
def model() -> Network:
    torch.manual_seed(0)
    return Network().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randint(0, 40, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["auto", "none", "klt", "elt"])
def data(request: pytest.FixtureRequest, model: Network) -> bytes:
    rule = (("*weight", f"weight,transform:{request.param}"),)
    return tqcodec.torch.encode(model, tqcodec.Settings(snr=30, rules=rule))


def held_places(network: nn.Module) -> list[str]:
    """Names of the modules of a network with a held weight."""
    return [name for name, module in network.named_modules() if isinstance(module, Held)]


def unchanged(model: nn.Module) -> dict[str, Any]:
    return {key: (id(t), t._version, t.clone()) for key, t in model.state_dict().items()}


@modes
def test_outputs_are_those_of_dense_weights(
    mode: Any, model: Network, data: bytes, x: Tensor
) -> None:
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    dense = copy.deepcopy(model)
    dense.load_state_dict(tqcodec.torch.decode(data))
    network: Any = tqcodec.torch.network(model, data, mode)
    expected, found = dense(x), network(x)
    again = network(x)
    assert torch.equal(found, again)
    if mode == "transform":
        assert close(found, expected, 20 * FLOAT32)
        assert close(network.bfloat16()(x), dense.bfloat16()(x), 2 * BFLOAT16)
    else:
        assert torch.equal(found, expected)
        assert torch.equal(network.bfloat16()(x), dense.bfloat16()(x))
    assert type(model) is Network
    assert not held_places(model)
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in before.items())
    held = held_places(network)
    assert held == [] if mode == "weights" else len(held) >= 7


@held_modes
def test_what_is_shared_stays_shared(mode: Any, model: Network, data: bytes) -> None:
    network: Any = tqcodec.torch.network(model, data, mode)
    assert holder_of(network.words, "weight") is holder_of(network.head, "weight")
    assert network.own is network.again
    copied = copy.deepcopy(network)
    assert holder_of(copied.words, "weight") is holder_of(copied.head, "weight")
    assert holder_of(copied.words, "weight") is not holder_of(network.words, "weight")


@held_modes
def test_state_dicts_are_those_of_the_dense_network(
    mode: Any, model: Network, data: bytes, x: Tensor
) -> None:
    network: Any = tqcodec.torch.network(model, data, mode)
    state, expected = network.state_dict(), tqcodec.torch.decode(data)
    assert set(state) == set(model.state_dict())
    for name, tensor in expected.items():
        assert close(state[name], tensor, FLOAT32)
        if mode == "lazy":
            assert torch.equal(state[name], tensor)
    with pytest.raises(RuntimeError, match=r"conv\.0\.weight: compressed in this network"):
        network.load_state_dict(model.state_dict())
    with pytest.raises(EvaluationError, match="computes from a file already"):
        tqcodec.torch.network(network, data)
    names = {name for name, _ in network.named_parameters()}
    assert "conv.0.bias" in names
    assert "conv.0.weight" not in names
    copy.deepcopy(model).load_state_dict(state)


class Asking(nn.Module):
    """Asks its parameters what to compute in."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first = next(self.linear.parameters())
        return self.linear(x.to(first.device, first.dtype))


@held_modes
def test_networks_that_ask_for_a_parameter(mode: Any) -> None:
    torch.manual_seed(0)
    model = Asking()
    network = tqcodec.torch.network(
        model, tqcodec.torch.encode(model, tqcodec.Settings(bits=4)), mode
    )
    x = torch.randn(3, 64, dtype=torch.float64)
    assert network(x).dtype == torch.float32
    assert network.double()(x).dtype == torch.float64
    assert sum(p.numel() for p in network.parameters()) == 0
    assert list(network.state_dict()) == ["linear.weight"]


@held_modes
def test_copies_and_pickles(
    mode: Any, model: Network, data: bytes, x: Tensor, tmp_path: Path
) -> None:
    (tmp_path / "m.tqc").write_bytes(data)
    network: Any = tqcodec.torch.network(model, tmp_path / "m.tqc", mode)
    expected = network(x)
    assert torch.equal(copy.deepcopy(network)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(network))(x), expected)
    saved = io.BytesIO()
    torch.save(network, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=False)
    assert type(loaded.own) is type(network.own)
    assert isinstance(loaded.own, Own)
    assert torch.equal(loaded(x), expected)


@modes
def test_compiled(mode: Any, model: Network, data: bytes, x: Tensor) -> None:
    network: Any = tqcodec.torch.network(model, data, mode)
    compiled: Any = torch.compile(network, backend="aot_eager")
    assert close(compiled(x), network(x), 20 * FLOAT32)
    torch.compiler.reset()


@modes
def test_a_network_on_the_meta_device(mode: Any, model: Network, data: bytes, x: Tensor) -> None:
    with torch.device("meta"):
        empty = Network().eval().requires_grad_(False)
    network: Any = tqcodec.torch.network(empty, data, mode)
    assert torch.equal(network(x), tqcodec.torch.network(model, data, mode)(x))
    assert next(empty.parameters()).is_meta
    empty.register_buffer("lost", torch.empty(3, device="meta"), persistent=False)
    with pytest.raises(EvaluationError, match="'lost' is on the meta device"):
        tqcodec.torch.network(empty, data, mode)


@modes
def test_what_does_not_fit(mode: Any, data: bytes, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"'0\.weight' is not among"):
        tqcodec.torch.network(nn.Sequential(nn.Linear(3, 3)), data, mode)
    with pytest.raises(TypeError, match="the network"):
        tqcodec.torch.network({}, data, mode)  # type: ignore[arg-type]
    wrapped = nn.Sequential(Network())
    with pytest.raises(EvaluationError, match=r"but '\S+' is: load into its part '0'$"):
        tqcodec.torch.network(wrapped, data, mode)
    with pytest.raises(EvaluationError, match=r"but '0\.\S+' is: load into the network that holds"):
        tqcodec.torch.network(Network(), tqcodec.torch.encode(wrapped), mode)
    with pytest.raises(DecodeError):
        tqcodec.torch.network(nn.Linear(2, 2), b"rubbish", mode)
    with pytest.raises(ValueError, match="mode is 'fast'"):
        tqcodec.torch.network(nn.Linear(2, 2), data, "fast")  # type: ignore[arg-type]


def test_layers_that_are_loaded_as_they_are() -> None:
    """Small exact ones, and embeddings that change their own weights."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(
        nn.Embedding(64, 64, max_norm=1.0), nn.Linear(64, 512), nn.Linear(64, 2)
    )
    data = tqcodec.torch.encode(model, tqcodec.Settings(snr=15, rules=(("1.weight", "exact"),)))
    for mode, held in (("transform", []), ("lazy", ["1"])):
        network: Any = tqcodec.torch.network(model, data, mode)  # type: ignore[arg-type]
        assert held_places(network) == held


def sparse(*shape: int) -> Tensor:
    """A weight two thirds of whose columns are zero."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight[:, shape[1] // 3 :] = 0
    return weight


REFUSED: dict[str, Any] = {
    "linear": (nn.Linear(48, 32), [(4, 49), (4, 60), (4, 40), (), (4, 0)]),
    "conv": (
        nn.Conv2d(24, 32, 3),
        [(1, 25, 5, 5), (1, 48, 5, 5), (24, 5), (5,), (24, 2, 2), (1, 1, 24, 5, 5), (1, 0, 5, 5)],
    ),
    "embedding": (
        nn.Embedding(48, 24),
        [torch.tensor([-1]), torch.tensor([48]), torch.tensor([True]), torch.tensor([1]).byte()],
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_inputs_that_dense_layers_refuse_are_refused(kind: str) -> None:
    layer, inputs = copy.deepcopy(REFUSED[kind][0]), REFUSED[kind][1]
    with torch.no_grad():
        layer.weight.copy_(sparse(*layer.weight.shape))
    model = nn.Sequential(layer)
    rules = (("*weight", "weight,transform:none"),)
    data = tqcodec.torch.encode(model, tqcodec.Settings(snr=25, rules=rules))
    network: Any = tqcodec.torch.network(model, data, "transform")
    assert holder_of(network[0], "weight").operations.way == "transform"
    for given_ in inputs:
        x = given_ if isinstance(given_, Tensor) else torch.randn(given_)
        refused = []
        for one in (model, network):
            with pytest.raises((RuntimeError, IndexError)) as caught:
                one(x)
            refused.append(caught.type)
        assert refused[0] is refused[1]


class Doubled(nn.Linear):
    """A layer that makes something else of what is in a state dict."""

    def _load_from_state_dict(self, state: Any, prefix: str, *others: Any) -> None:
        state[prefix + "weight"] = 2 * state[prefix + "weight"]
        super()._load_from_state_dict(state, prefix, *others)


class Renamed(nn.Module):
    """A network that reads files of its older versions."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(32, 32))
        self.register_load_state_dict_pre_hook(self.rename)  # type: ignore[no-untyped-call]

    @staticmethod
    def rename(module: Any, state: Any, prefix: str, *others: Any) -> None:
        for name in [name for name in state if name.startswith(f"{prefix}old")]:
            state[name.replace("old", "inner")] = 3 * state.pop(name)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x)
        return found


@modes
def test_modules_that_load_in_a_way_of_their_own(mode: Any) -> None:
    torch.manual_seed(0)
    for make in (lambda: Doubled(32, 32), Renamed):
        model = nn.Sequential(make(), nn.Linear(32, 32))
        state = {key.replace("inner", "old"): t for key, t in model.state_dict().items()}
        data = tqcodec.torch.encode(state, tqcodec.Settings(snr=30, rules=(("*weight", "weight"),)))
        dense = copy.deepcopy(model)
        dense.load_state_dict(tqcodec.torch.decode(data))
        network: Any = tqcodec.torch.network(model, data, mode)
        x = torch.randn(2, 32)
        with torch.no_grad():
            assert close(network(x), dense(x), 20 * FLOAT32)
        assert held_places(network) == ([] if mode == "weights" else ["1"])


@modes
def test_tensors_that_only_one_has(mode: Any, model: Network, x: Tensor) -> None:
    state = {"position_ids": torch.arange(32.0)[None], **model.state_dict()}
    left = state.pop("own.bias")
    state.pop("again.bias")
    data = tqcodec.torch.encode(state, tqcodec.Settings(snr=30))
    with pytest.raises(EvaluationError, match=r"tensor 'own\.bias' is not among"):
        tqcodec.torch.network(model, data, mode)
    network: Any = tqcodec.torch.network(model, data, mode, strict=False)
    assert torch.equal(network.own.bias, left)
    dense = copy.deepcopy(model)
    dense.load_state_dict(tqcodec.torch.decode(data), strict=False)
    assert close(network(x), dense(x), 20 * FLOAT32)
    with torch.device("meta"):
        empty = Network()
    with pytest.raises(EvaluationError, match=r"'(own|again)\.bias' is on the meta device"):
        tqcodec.torch.network(empty, data, mode, strict=False)
    data = tqcodec.torch.encode({**state, "own.bias": left, "again.bias": left})
    with pytest.raises(EvaluationError, match=r"no tensor 'position_ids': .* strict=False"):
        tqcodec.torch.network(empty, data, mode)
    whole: Any = tqcodec.torch.network(empty, data, mode, strict=False)
    assert torch.isfinite(whole.eval()(x)).all()


@modes
def test_networks_that_deepcopy_does_not_take(mode: Any) -> None:
    """Tensors with a history, parts in TorchScript, parameters without a shape."""
    torch.manual_seed(0)

    def make() -> nn.Sequential:
        normed = nn.utils.weight_norm(nn.Linear(32, 32))
        scripted = torch.jit.script(nn.Linear(32, 32))
        return nn.Sequential(normed, scripted, nn.Linear(32, 64))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's: both are old ways
        model, dense = make(), make()
        data = tqcodec.torch.encode(model, tqcodec.Settings(snr=30))
        dense.load_state_dict(tqcodec.torch.decode(data))
        network: Any = tqcodec.torch.network(model, data, mode)
        x = torch.randn(2, 32)
        with torch.no_grad():
            assert close(network(x), dense(x), 20 * FLOAT32)
        with pytest.raises(EvaluationError, match=r"'0\.weight' is lazy"):
            tqcodec.torch.network(nn.Sequential(nn.LazyLinear(3)), data, mode)


def test_coefficients_stay_integers() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Conv2d(64, 128, 3), nn.Linear(512, 512))
    data = tqcodec.torch.encode(model, tqcodec.Settings(bits=2, effort=1))
    network: Any = tqcodec.torch.network(model, data, "transform").half()
    for index in range(3):
        buffers = list(holder_of(network[index], "weight").buffers())
        assert not any(b.is_floating_point() for b in buffers if b.numel())
        size = sum(b.numel() * b.element_size() for b in buffers)
        assert size <= 0.3 * 4 * model[index].weight.numel()


@pytest.mark.parametrize("bias", [True, False])
def test_lazy_attention_is_that_of_dense_weights_to_the_bit(bias: bool) -> None:
    """Whether a weight requires gradients decides which kernels torch takes."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 96, 0.0, "gelu", batch_first=True, norm_first=True)
    network = nn.Sequential(layer, nn.MultiheadAttention(64, 4, bias=bias, kdim=32)).eval()
    data = tqcodec.torch.encode(network, tqcodec.Settings(snr=15, effort=1))
    dense = tqcodec.torch.network(network, data)
    lazy = tqcodec.torch.network(network, data, mode="lazy")
    batch, outputs = torch.randn(2, 5, 64), []
    for mode in (torch.no_grad, torch.inference_mode):
        for made in (dense, lazy, lazy):  # the second time weights are decoded ahead
            with mode():
                x = made.get_submodule("0")(batch)
                outputs.append((x, made.get_submodule("1")(x, x[..., :32], x)[0]))
                assert not any(t.requires_grad for t in lazy.state_dict().values())
        for found in outputs[-2:]:
            assert all(map(torch.equal, found, outputs[-3]))


def test_lazy_weights_are_let_go(model: Network, data: bytes, x: Tensor) -> None:
    """The last one and the one ahead are all that is held."""
    network: Any = tqcodec.torch.network(model, data, "lazy")
    lazy = holder_of(network.own, "weight")._tensors
    for _ in range(2):
        network(x)
    assert len(lazy._alive) == 1
    assert lazy._last[0] == "words.weight" or lazy._last[0] == "head.weight"
    lazy._ahead[1].result(timeout=30)
    assert lazy._after[lazy._last[0]] == lazy._ahead[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
@held_modes
def test_after_a_fork(mode: Any, model: Network, data: bytes, tmp_path: Path) -> None:
    """A child finds the file, but not the thread that decodes ahead."""
    (tmp_path / "m.tqc").write_bytes(data)
    network: Any = tqcodec.torch.network(model, tmp_path / "m.tqc", mode)
    held = [network.conv[0], network.grouped, network.own]
    expected = [module.weight for _ in range(2) for module in held]
    child = os.fork()
    if not child:
        found = [module.weight for _ in range(2) for module in held]
        os._exit(not all(map(torch.equal, found, expected)))
    assert os.waitpid(child, 0)[1] == 0


def test_lazy_finds_damage_when_it_runs(model: Network, x: Tensor) -> None:
    data = tqcodec.torch.encode(model, tqcodec.Settings(snr=30))
    with tqcodec.open(data) as file:
        entries = file.container.directory.entries
        (segment, *_) = next(e for e in entries if e.name == "own.weight").segments
    bad = bytearray(data)
    bad[segment.offset + 5] ^= 1
    network: Any = tqcodec.torch.network(model, bytes(bad), "lazy")
    for _ in range(2):
        with pytest.raises(DecodeError, match=r"own\.weight"):
            network(x)


def test_an_open_file(model: Network, x: Tensor) -> None:
    data = tqcodec.torch.encode(model, tqcodec.Settings(snr=30))
    with tqcodec.open(data) as file:
        network: Any = tqcodec.torch.network(model, file, "lazy")
        network(x)
        assert file["own.weight"].shape == (32, 32)
    with pytest.raises(ValueError, match="closed"):
        network(x)


def test_the_name_of_a_holder_is_no_parameter(model: Network, data: bytes) -> None:
    network: Any = tqcodec.torch.network(model, data, "transform")
    assert HOLDER.format("weight") in dict(network.own.named_children())
    assert "int8" in repr(network.own)


def test_streams_of_tensors(data: bytes) -> None:
    expected = tqcodec.torch.decode(data)
    found = dict(tqcodec.torch.stream(io.BytesIO(data)))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    with tqcodec.torch.open(data) as file:
        weights = file.transform("own.weight").weights()
        assert torch.equal(torch.from_numpy(weights), file["own.weight"])
