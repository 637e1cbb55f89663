"""Inference form: normalisations say the same in fewer numbers, and nothing else changes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tqcodec
import tqcodec.torch
from tqcodec import EncodeError, EncodeReport, EncodeWarning, Settings
from tqcodec.cli import commands
from tqcodec.torch.checkpoint import from_arrays, to_arrays
from tqcodec.torch.folding import Folded, fold, folded, variance_of

CHANNELS = 6
FORM = Settings(inference=True, effort=1, quality=80)
STATISTICS = {
    1: (8, CHANNELS),
    2: (4, CHANNELS, 5),
    3: (2, CHANNELS, 4, 3),
    4: (2, CHANNELS, 2, 3, 3),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with numbers in all of its normalisations as training leaves them."""
    draw = generator(seed)
    with torch.no_grad():
        for one in module.modules():
            mean, var = (getattr(one, name, None) for name in ("running_mean", "running_var"))
            if isinstance(mean, Tensor) and isinstance(var, Tensor):
                mean.copy_(torch.randn(mean.shape, generator=draw))
                var.copy_(torch.rand(var.shape, generator=draw) * 4 + 0.05)
            for name in ("weight", "bias"):
                vector = getattr(one, name, None)
                if isinstance(vector, Tensor) and vector.ndim == 1:
                    vector.copy_(torch.randn(vector.shape, generator=draw) + 0.5)
    return module.eval()


class Own(nn.BatchNorm2d):
    """With an activation, as other libraries have them."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Reader(nn.BatchNorm2d):
    """Looks at its own statistics."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(max=float(self.running_mean.max()))  # type: ignore[union-attr]


class Other(nn.BatchNorm2d):
    """With another eps than it says."""

    def forward(self, x: Tensor) -> Tensor:
        numbers = self.running_mean, self.running_var, self.weight, self.bias
        return nn.functional.batch_norm(x, *numbers, eps=0.1)


class Conditional(nn.BatchNorm2d):
    """Takes more than its input."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * y


class Named(nn.BatchNorm2d):
    """Another name, the same forward."""


class Frozen(nn.Module):
    """Vectors that are buffers, and an arithmetic of its own."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(CHANNELS) + 0.5)
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


def lazy() -> nn.Module:
    layer = nn.LazyBatchNorm2d()
    layer(torch.randn(STATISTICS[3]))
    return layer


FOLDED: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "2 axes": (lambda: nn.BatchNorm1d(CHANNELS), 1),
    "1d": (lambda: nn.BatchNorm1d(CHANNELS, momentum=None), 2),
    "2d": (lambda: nn.BatchNorm2d(CHANNELS), 3),
    "3d": (lambda: nn.BatchNorm3d(CHANNELS, eps=1e-3), 4),
    "no eps": (lambda: nn.BatchNorm2d(CHANNELS, eps=0.0), 3),
    "eps above 1": (lambda: nn.BatchNorm2d(CHANNELS, eps=1.5), 3),
    "sync": (lambda: nn.SyncBatchNorm(CHANNELS), 3),
    "lazy": (lazy, 3),
    "subclass": (lambda: Named(CHANNELS), 3),
    "with an activation": (lambda: Own(CHANNELS), 3),
    "instance": (
        lambda: nn.InstanceNorm2d(CHANNELS, affine=True, track_running_stats=True),
        3,
    ),
    "double": (lambda: nn.BatchNorm2d(CHANNELS).double(), 3),
    "half": (lambda: nn.BatchNorm2d(CHANNELS).half(), 3),
    "bfloat16": (lambda: nn.BatchNorm2d(CHANNELS).bfloat16(), 3),
}
LEFT: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "no weight and bias": (lambda: nn.BatchNorm2d(CHANNELS, affine=False), 3),
    "a forward of its own": (Frozen, 3),
    "a forward of its own ": (lambda: Reader(CHANNELS), 3),
    "a forward of its own  ": (lambda: Other(CHANNELS), 3),
    "a forward of its own   ": (lambda: Conditional(CHANNELS), 3),
}
NONE: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "without statistics": (lambda: nn.BatchNorm2d(CHANNELS, track_running_stats=False), 3),
    "instance": (lambda: nn.InstanceNorm2d(CHANNELS, affine=True), 3),
    "group": (lambda: nn.GroupNorm(2, CHANNELS), 3),
    "layer": (lambda: nn.LayerNorm(3), 3),
}


def case(made: tuple[Callable[[], nn.Module], int]) -> tuple[nn.Module, Tensor]:
    module, shape = trained(made[0]()), STATISTICS[made[1]]
    inputs = torch.randn(shape, generator=generator(3)) * 2
    # Only a module without parameters in the type of its own is given float32.
    dtype = next((t.dtype for t in module.parameters()), torch.float32)
    return module, inputs.to(dtype)


def form(model: nn.Module, settings: Settings | None = None) -> Folded:
    return fold(model, to_arrays(model.state_dict()), settings)


def outputs(model: nn.Module, state: dict[str, Any], x: Tensor) -> Tensor:
    other = copy.deepcopy(model)
    other.load_state_dict(state)
    with torch.no_grad():
        return other(x).double()


def same(model: nn.Module, state: dict[str, Any], x: Tensor) -> bool:
    """Equal outputs, to a few roundings of the type of the inputs."""
    with torch.no_grad():
        wanted = model(x).double()
    near = 8 * torch.finfo(x.dtype).eps * float(wanted.abs().max() + 1)
    return bool((outputs(model, state, x) - wanted).abs().max() <= near)


@pytest.mark.parametrize("name", FOLDED)
def test_every_kind_gives_the_same(name: str) -> None:
    model, x = case(FOLDED[name])
    before = copy.deepcopy(model.state_dict())
    found = form(model)
    assert found.left == {}
    assert found.constants == {"running_mean", "running_var"}
    assert found.arrays.keys() == before.keys()
    state = from_arrays(found.arrays)
    assert not state["running_mean"].any()
    assert len(state["running_var"].unique()) == 1
    assert {n: t.dtype for n, t in state.items()} == {n: t.dtype for n, t in before.items()}
    assert same(model, state, x)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    counter = before.get("num_batches_tracked")
    assert counter is None or torch.equal(state["num_batches_tracked"], counter)


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_known_is_left(name: str) -> None:
    model, _ = case(LEFT[name])
    arrays = to_arrays(model.state_dict())
    found = fold(model, arrays)
    assert found.left == {"": name.strip()}
    assert found.arrays == arrays
    assert not found.constants


@pytest.mark.parametrize("name", NONE)
def test_what_has_no_running_statistics_is_no_case(name: str) -> None:
    model, _ = case(NONE[name])
    found = form(model)
    assert (found.left, found.constants) == ({}, set())


TYPES = {np.dtype(np.float32): torch.float32, np.dtype(np.float64): torch.float64}
EPSILONS = [0.0, 1e-12, 1e-7, 1e-6, 1e-5, 1.001e-5, 1e-4, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("eps", EPSILONS)
def test_scale_and_shift_are_weight_and_bias_to_the_bit(dtype: np.dtype[Any], eps: float) -> None:
    layer = trained(nn.BatchNorm2d(CHANNELS, eps=eps)).to(TYPES[dtype])
    assert isinstance(layer, nn.BatchNorm2d)
    layer.load_state_dict(from_arrays(form(layer).arrays))
    wanted = layer.weight.detach().clone(), layer.bias.detach().clone()
    for size in (1, 4, 33):
        x = torch.zeros(2, CHANNELS, size, size, dtype=TYPES[dtype])
        for inputs in (x, x.to(memory_format=torch.channels_last)):
            with torch.no_grad():
                assert torch.equal(layer(inputs)[0, :, 0, -1], wanted[1])
                layer.bias.zero_()
                assert torch.equal(layer(inputs + 1)[1, :, -1, 0], wanted[0])
                layer.bias.copy_(wanted[1])


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64)], ids=str)
def test_variance_and_eps_are_one_as_torch_adds(dtype: np.dtype[Any]) -> None:
    draw = np.random.default_rng(0)
    for eps in 10.0 ** draw.uniform(-14, 0, 3000):
        constant = torch.tensor(variance_of(eps, dtype))
        assert float(constant + eps) == 1, eps
        assert float(constant + torch.tensor(eps, dtype=constant.dtype)) == 1, eps


def test_halves_have_the_nearest_variance() -> None:
    for dtype in (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)):
        for eps in EPSILONS:
            off = abs(float(variance_of(eps, dtype)) + eps - 1)
            assert off <= float(ml_dtypes.finfo(dtype).eps) / 4
    assert float(variance_of(3.0, np.dtype(np.float16))) == 0


def test_folding_again_changes_nothing() -> None:
    layer = trained(nn.BatchNorm2d(64))
    once = form(layer).arrays
    layer.load_state_dict(from_arrays(once))
    again = form(layer).arrays
    assert all(np.array_equal(again[name], once[name]) for name in once)


def vectors(dtype: Any = np.float32, **changed: float) -> list[Any]:
    """Tensors of a layer of three channels; of the last one some are changed."""
    values = {"weight": 0.7, "bias": 0.2, "mean": 1.5, "var": 2.0} | changed
    usual = np.array([[0.9, -0.2], [0.1, 0.3], [-2.0, 0.5], [1.0, 3.0]])
    last = np.array([[value] for value in values.values()])
    return list(np.concatenate([usual, last], 1).astype(dtype))


@pytest.mark.parametrize(
    "changed",
    [
        {"var": -1e-6},
        {"var": -1.0},
        {"var": math.nan},
        {"var": math.inf},
        {"mean": math.inf},
        {"mean": math.nan},
        {"weight": math.nan},
        {"bias": -math.inf},
    ],
    ids=str,
)
def test_numbers_that_are_none_are_left(changed: dict[str, float]) -> None:
    assert folded(vectors(**changed), 1e-5) is None


def test_a_dead_channel_is_folded() -> None:
    found = folded(vectors(var=0.0, mean=0.0), 1e-5)
    assert found is not None
    assert folded(vectors(var=0.0, mean=0.5), 1e-5) is None  # a constant: what is rounded is 158
    assert found[0][2] == pytest.approx(0.7 / math.sqrt(1e-5), rel=1e-6)
    assert folded(vectors(var=0.0), 0.0) is None


def test_what_a_type_cannot_hold_is_left() -> None:
    half = np.float16
    assert folded(vectors(half), 1e-5) is not None
    assert folded(vectors(half, var=0.0, weight=300.0), 1e-5) is None  # 95,000
    assert folded(vectors(half, mean=6e4, var=0.01), 1e-5) is None  # a bias of 4e5
    assert folded(vectors(half, var=6e4, weight=1e-3), 1e-5) is None  # a subnormal weight
    assert folded(vectors(half, weight=0.0), 1e-5) is not None


class Trunk(nn.Module):
    """Convolutions and normalisations, small enough for every test."""

    def __init__(self, width: int = 16, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, bias=False)
        self.bn1 = norm(width)
        self.second = nn.Conv2d(width, width, 3, bias=True)
        self.bn2 = norm(width)
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.first(x)).relu()
        return self.fc(self.bn2(self.second(x)).relu().mean((2, 3)))


def trunk(**options: Any) -> Trunk:
    torch.manual_seed(4)
    net = Trunk(**options)
    trained(net)
    assert isinstance(net, Trunk)
    return net


def images(batches: int = 6) -> list[Tensor]:
    return list(torch.randn(batches, 8, 3, 8, 8, generator=generator(9)))


PREFIXES = ("bn1", "bn2")
CONSTANTS = {f"{p}.{role}" for p in PREFIXES for role in ("running_mean", "running_var")}


def test_a_file_holds_it_and_the_network_takes_it(tmp_path: Path) -> None:
    net, report = trunk(), EncodeReport()
    before = copy.deepcopy(net.state_dict())
    tqcodec.torch.save(net, tmp_path / "form.tqc", FORM, report=report)
    plain = tqcodec.torch.encode(net, Settings(effort=1, quality=80))
    data = (tmp_path / "form.tqc").read_bytes()
    assert len(data) < len(plain)
    assert report.findings == []
    with tqcodec.torch.open(data) as file:
        assert file.container.directory.provenance.endswith(" inference")
    state = tqcodec.torch.decode(data)
    folded_arrays = form(net).arrays
    for name in CONSTANTS:
        assert np.array_equal(state[name].numpy(), folded_arrays[name])
    assert state._metadata["bn1"] == {"version": 2}  # type: ignore[attr-defined]
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    batches = [(x, None) for x in images()]
    assert tqcodec.torch.compare(net, state, batches).snr.value > 20
    exact = tqcodec.torch.encode(
        net, Settings(inference=True, side_bits=None, rules=[("*", "step:1")])
    )
    wanted = from_arrays(folded_arrays)
    for name, tensor in tqcodec.torch.decode(exact).items():
        assert tensor.ndim > 1 or torch.equal(tensor, wanted[name]), name


def test_constants_are_exact_however_few() -> None:
    """A rounded variance would no longer give 1 with eps."""
    state = tqcodec.torch.decode(tqcodec.torch.encode(trunk(width=5), FORM))
    for prefix in PREFIXES:
        assert state[f"{prefix}.running_var"].tolist() == 5 * [float(np.float32(1 - 1e-5))]
        assert state[f"{prefix}.running_mean"].tolist() == 5 * [0.0]


def test_constants_cost_one_entry_each() -> None:
    """All of a shape are stored once."""
    with tqcodec.torch.open(tqcodec.torch.encode(trunk(), FORM)) as file:
        entries = {entry.name: entry for entry in file.container.directory.entries}
    assert entries["bn1.running_mean"].same_as is None
    assert entries["bn2.running_mean"].same_as is not None
    assert entries["bn2.running_var"].same_as is not None
    assert entries["bn2.bias"].same_as is None


def test_a_vector_of_zeros_is_not_tied_to_a_mean() -> None:
    """It may be tuned; a mean must stay."""
    net = trunk(width=64)
    with torch.no_grad():
        net.second.bias.zero_()  # type: ignore[union-attr]
    with tqcodec.torch.open(tqcodec.torch.encode(net, FORM)) as file:
        entries = {entry.name: entry for entry in file.container.directory.entries}
    assert entries["second.bias"].same_as is None


def test_corrections_go_into_weight_and_bias() -> None:
    """A calibrated file has the outputs of one that is folded after coding."""
    net, batches = trunk(), images()
    statistics = tqcodec.torch.calibrate(net, batches)
    assert statistics["first.weight"].shift == "bn1.running_mean"
    options = {"effort": 1, "quality": 40, "side_bits": None}
    data, plain = (
        tqcodec.torch.encode(net, Settings(**options, inference=form), statistics)  # type: ignore[arg-type]
        for form in (True, False)
    )
    state, usual = tqcodec.torch.decode(data), tqcodec.torch.decode(plain)
    assert not state["bn1.running_mean"].any()
    assert not torch.equal(usual["bn1.running_mean"], net.bn1.running_mean)  # type: ignore[arg-type]
    other = copy.deepcopy(net)
    other.load_state_dict(usual)
    refolded = form(other).arrays
    for name in ("bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias"):
        assert np.allclose(state[name].numpy(), refolded[name], rtol=1e-5, atol=1e-6), name
    assert statistics["first.weight"].shift == "bn1.running_mean"


def test_tuning_trains_what_is_folded() -> None:
    net, batches = trunk(), images(8)
    statistics = tqcodec.torch.calibrate(net, batches)
    rough = Settings(inference=True, effort=1, quality=30, side_bits=None)
    data = tqcodec.torch.encode(net, rough, statistics, tune=batches)
    plain = tqcodec.torch.encode(net, rough, statistics)
    with tqcodec.torch.open(data) as file:
        assert file.container.directory.provenance.endswith(" tuned inference")
    state, untuned = tqcodec.torch.decode(data), tqcodec.torch.decode(plain)
    for name, tensor in state.items():
        is_trained = name.endswith(("bias", "bn1.weight", "bn2.weight"))
        assert torch.equal(tensor, untuned[name]) != is_trained, name
    pairs = [(x, None) for x in batches]
    better, worse = (tqcodec.torch.compare(net, s, pairs).kl.value for s in (state, untuned))
    assert better < worse


def test_a_bound_on_what_is_lost_is_met() -> None:
    net, batches = trunk(), [(x, None) for x in images()]
    reference = tqcodec.torch.Reference(net, batches)
    data = tqcodec.torch.encode(
        net,
        Settings(inference=True, effort=1),
        target_drop=10,
        evaluate=lambda m: reference.compare(m).agreement.value,
    )
    state = tqcodec.torch.decode(data)
    assert not state["bn2.running_mean"].any()
    assert reference.compare(state).agreement.value >= 90


def test_network_in_train_mode_is_judged_by_its_evaluation() -> None:
    net = trunk().train()
    assert form(net).takers.keys() == {"bn1.running_mean", "bn2.running_mean"}
    assert net.bn1.training


class Stubborn(nn.BatchNorm2d):
    """Kept in train mode on purpose."""

    def train(self, mode: bool = True) -> Stubborn:
        super().train(True)
        return self


def test_layers_kept_in_train_mode_are_left() -> None:
    net = trunk()
    net.bn2.train()
    assert form(net).left == {"bn2": "kept in train mode"}
    for mode in (True, False):
        stubborn = trunk()
        stubborn.bn1 = Stubborn(16)
        stubborn.train(mode)
        modes = [module.training for module in stubborn.modules()]
        assert form(stubborn).left == {"bn1": "kept in train mode"}
        assert [module.training for module in stubborn.modules()] == modes


def test_a_layer_by_two_names_is_folded_once() -> None:
    net = trunk()
    net.bn2 = net.bn1
    found = form(net)
    assert found.left == {}
    assert found.constants == CONSTANTS
    assert np.array_equal(found.arrays["bn1.weight"], found.arrays["bn2.weight"])
    assert same(net, from_arrays(found.arrays), images()[0])


def test_shared_tensors_are_left() -> None:
    net = trunk()
    net.bn2.weight = net.bn1.weight
    assert form(net).left == dict.fromkeys(PREFIXES, "its tensors are shared")

    other = trunk()
    whole = torch.rand(20) + 0.5
    other.bn1.weight = nn.Parameter(whole[:16])
    other.fc.bias = nn.Parameter(whole[15:])  # one element of both
    assert form(other).left == {"bn1": "its tensors are shared"}
    other.fc.bias = nn.Parameter(whole[:4].clone())
    other.second.bias = nn.Parameter(whole[16:])  # beside it
    assert form(other).left == {}


def test_odd_layers_are_left() -> None:
    net: Any = trunk()
    net.bn1.eps = complex(1e-5, 1)
    net.bn2.eps = -1e-5
    assert form(net).left == dict.fromkeys(PREFIXES, "odd tensors or eps")
    net = trunk()
    net.bn1.forward = lambda x: x
    nn.utils.parametrize.register_parametrization(net.bn2, "weight", nn.Softplus())
    assert form(net).left == {"bn1": "a forward of its own", "bn2": "no weight and bias"}
    net = trunk()
    net.bn1.register_buffer("running_mean", net.bn1.running_mean, persistent=False)
    with torch.no_grad():
        net.bn2.running_var[3] = math.nan
    assert form(net).left == {"bn1": "not in the state dict", "bn2": "its numbers"}


def test_rules_are_kept() -> None:
    net = trunk()
    settings = Settings(inference=True, rules=[("bn1.bias", "exact")])
    assert form(net, settings).left == {"bn1": "a rule"}
    state = tqcodec.torch.decode(warned(net, settings))
    assert torch.equal(state["bn1.bias"], net.bn1.bias)  # type: ignore[arg-type]
    with pytest.raises(EncodeError, match="matches no tensor"):
        form(net, Settings(rules=[("bn3.*", "exact")]))


def warned(net: nn.Module, settings: Settings) -> bytes:
    with pytest.warns(EncodeWarning, match="inference: 1 normalisation is left as before: 'bn1'"):
        return tqcodec.torch.encode(net, settings)


def test_nothing_to_fold_is_said() -> None:
    net = trunk(norm=lambda width: nn.GroupNorm(2, width))
    report = EncodeReport()
    with pytest.warns(EncodeWarning, match="inference: no normalisation with running statistics"):
        data = tqcodec.torch.encode(net, FORM, report=report)
    assert [finding.kind for finding in report.findings] == ["inference"]
    with tqcodec.torch.open(data) as file:
        assert "inference" not in file.container.directory.provenance


def test_arrays_alone_are_refused() -> None:
    net = trunk()
    with pytest.raises(EncodeError, match="a module says which tensors"):
        tqcodec.torch.encode(net.state_dict(), FORM)
    with pytest.raises(EncodeError, match="a module says which tensors"):
        tqcodec.encode(to_arrays(net.state_dict()), FORM)
    with pytest.raises(EncodeError, match="lossless"):
        Settings(lossless=True, inference=True)
    with pytest.raises(EncodeError, match="inference is 1, not True or False"):
        Settings(inference=1)  # type: ignore[arg-type]


CODE = """
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 5)]
    return nn.Sequential(*layers).eval()
"""


def test_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(CODE)
    np.savez("data.npz", x=torch.randn(64, 3, 8, 8, generator=generator(1)).numpy())
    network = "--model net.py:network --data data.npz"
    line = f"encode {network} --inference --bits 5 -e 1 -o form.tqc"
    assert commands.main(line.split()) == 0, capsys.readouterr().err
    assert commands.main(f"eval form.tqc {network} --json".split()) == 0
    assert not tqcodec.torch.load("form.tqc")["1.running_mean"].any()
    tqcodec.save(tqcodec.load("form.tqc"), "again.tqc", Settings(lossless=True))
    capsys.readouterr()
    assert commands.main(["encode", "form.npz", "--inference"]) == 2
    assert "--inference needs --model" in capsys.readouterr().err
