"""What others make of it: odd networks and tensors, wrong arguments, streams that are closed."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tqcodec
import tqcodec.__main__
import tqcodec.torch
from tqcodec.cli import commands
from tqcodec.cli.process import Ended, tidy_ending
from tqcodec.common import foreign
from tqcodec.errors import EncodeError, EvaluationError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*nested tensors.*:UserWarning"),
]


def seeded(make: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return make()


def data(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 16, generator=generator) for _ in range(count)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.b(self.a(x).relu())
        return found


class Checkpointed(Net):
    reentrant = False

    def forward(self, x: Tensor) -> Any:
        inner = lambda t: self.a(t).relu()  # noqa: E731
        return self.b(checkpoint(inner, x, use_reentrant=self.reentrant))


class Reentrant(Checkpointed):
    reentrant = True


class PartlyInference(Net):
    def forward(self, x: Tensor) -> Any:
        with torch.inference_mode():
            hidden = self.a(x).relu()
        return self.b(hidden)


class Masked(Net):
    def forward(self, x: Tensor) -> Any:
        with torch.inference_mode():
            mask = x.sum(1, keepdim=True).sigmoid()
        return self.b((self.a(x) * mask).relu())


class WithoutGradients(Net):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Inference(Net):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Mapped(Net):
    def forward(self, x: Tensor) -> Any:
        return self.b(torch.func.vmap(lambda t: self.a(t).relu())(x))


class MappedBehind(Net):
    def forward(self, x: Tensor) -> Any:
        return torch.func.vmap(lambda t: self.b(t))(self.a(x).relu())


class Jacobian(Net):
    def forward(self, x: Tensor) -> Any:
        inner = torch.func.jacrev(lambda t: self.b(self.a(t)))
        return super().forward(x) + torch.func.vmap(inner)(x).sum(-1)


class Forces(Net):
    def forward(self, x: Tensor) -> Any:
        x = x.detach().requires_grad_()
        energy = self.b(self.a(x).tanh()).sum()
        return torch.autograd.grad(energy, x, create_graph=True)[0]


class Adapting(Net):
    """Takes a step of its own weights before it answers."""

    def forward(self, x: Tensor) -> Any:
        weight = self.a.weight
        loss = nn.functional.linear(x, weight).square().mean()
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        return self.b(nn.functional.linear(x, weight - gradient).relu())


class Caching(Net):
    def __init__(self) -> None:
        super().__init__()
        self.cache: list[Tensor] = []

    def forward(self, x: Tensor) -> Any:
        self.cache = [self.a(x)]
        return self.b(self.cache[0].relu())


class PartlyScripted(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a: Any = torch.jit.script(nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32)))


class PartlyTraced(Net):
    def __init__(self) -> None:
        super().__init__()
        self.b = torch.jit.trace(self.b, torch.randn(8, 32))


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


def normed() -> nn.Module:
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(16, 32)), nn.ReLU(), nn.Linear(32, 10))
    model(data()[0])
    return model


def spectral() -> nn.Module:
    first = nn.utils.spectral_norm(nn.Linear(16, 32))
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(32, 10))
    model(data()[0])
    return model


def parametrized() -> nn.Module:
    first = nn.utils.parametrizations.weight_norm(nn.Linear(16, 32))
    return nn.Sequential(first, nn.ReLU(), nn.Linear(32, 10))


def made_for_inference() -> nn.Module:
    with torch.inference_mode():
        return Net()


def scripted() -> Any:
    return torch.jit.script(plain())


def frozen() -> Any:
    return torch.jit.freeze(scripted().eval())


def compiled() -> Any:
    return torch.compile(Net(), backend="eager")


# Networks that run, and the layers that are calibrated; the others are listed.
NETWORKS: list[tuple[Callable[[], Any], list[str]]] = [
    (Checkpointed, ["a.weight", "b.weight"]),
    (Reentrant, ["a.weight", "b.weight"]),
    (PartlyInference, ["b.weight"]),
    (Masked, ["a.weight", "b.weight"]),
    (WithoutGradients, []),
    (Inference, []),
    (Mapped, ["b.weight"]),
    (MappedBehind, ["a.weight"]),
    (Jacobian, ["a.weight", "b.weight"]),
    (Forces, ["a.weight"]),  # the other one acts where gradients are taken only
    (Caching, ["a.weight", "b.weight"]),
    (PartlyScripted, ["b.weight"]),
    (PartlyTraced, ["a.weight"]),
    (normed, ["2.weight"]),
    (spectral, ["2.weight"]),
    (parametrized, ["2.weight"]),
    (made_for_inference, ["a.weight"]),
    (scripted, []),
    (frozen, []),
    (compiled, ["_orig_mod.a.weight", "_orig_mod.b.weight"]),
]
networks = pytest.mark.parametrize(("make", "calibrated"), NETWORKS)


def facts(model: Any) -> Any:
    """What must not change in a network."""
    modes = [module.training for module in model.modules() if hasattr(module, "training")]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    return modes, wanted, [tensor.clone() for tensor in model.state_dict().values()]


def same(one: Any, other: Any) -> bool:
    return one[:2] == other[:2] and all(map(torch.equal, one[2], other[2]))


@networks
def test_networks_are_calibrated(make: Callable[[], Any], calibrated: list[str]) -> None:
    model = seeded(make)
    before = facts(model)
    found = tqcodec.torch.calibrate(model, data())
    assert sorted(found) == calibrated
    matrices = {n for n, p in model.named_parameters() if p.ndim > 1 and p.numel() >= 64}
    assert set(found.without) == matrices - set(calibrated)
    assert same(facts(model), before)


def test_checkpointing_changes_no_statistics() -> None:
    wanted = tqcodec.torch.calibrate(seeded(Net), data(), probes=2)
    for make in (Checkpointed, Reentrant):
        found = tqcodec.torch.calibrate(seeded(make), data(), probes=2)
        for name, one in wanted.items():
            assert np.array_equal(one.inputs, found[name].inputs)
            assert np.allclose(one.gradients, found[name].gradients, rtol=1e-9)


@networks
def test_networks_are_tuned(make: Callable[[], Any], calibrated: list[str]) -> None:
    model = seeded(make)
    before = facts(model)
    data_of = tqcodec.torch.encode(model, tqcodec.Settings(quality=70), tune=data())
    assert set(tqcodec.torch.decode(data_of)) == set(model.state_dict())
    assert same(facts(model), before)


@networks
def test_networks_are_compared(make: Callable[[], Any], calibrated: list[str]) -> None:
    model = seeded(make)
    before = facts(model)
    state = tqcodec.torch.decode(tqcodec.torch.encode(model, tqcodec.Settings(lossless=True)))
    found = tqcodec.torch.compare(model, state, [(x, None) for x in data()])
    assert (found.images, found.agreement.value) == (32, 100.0)
    assert found.kl.value < 1e-6
    assert same(facts(model), before)


@networks
def test_networks_are_searched_for(make: Callable[[], Any], calibrated: list[str]) -> None:
    model = seeded(make)
    fast = tqcodec.Settings(effort=1)
    assert tqcodec.torch.encode(
        model, fast, target_drop=1, evaluate=lambda m: len(list(m.children()))
    )


def test_a_network_that_differentiates_by_its_own_weights() -> None:
    model = seeded(Adapting)
    before = facts(model)
    images = [(x, None) for x in data()]
    state = tqcodec.torch.decode(tqcodec.torch.encode(model, tune=data()))
    assert tqcodec.torch.compare(model, state, images).images == 32
    with pytest.raises(EncodeError, match=r"by its own parameters.*without statistics"):
        tqcodec.torch.calibrate(model, data())
    assert same(facts(model), before)


class Locked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def test_networks_that_cannot_be_copied_are_named() -> None:
    model = Locked()
    assert len(tqcodec.torch.calibrate(model, data())) == 2
    with pytest.raises(EncodeError, match="cannot be copied: TypeError: cannot pickle"):
        tqcodec.torch.encode(model, tune=data())
    with pytest.raises(EvaluationError, match="cannot be copied"):
        tqcodec.torch.compare(model, model.state_dict(), [(x, None) for x in data()])


def test_lazy_networks_are_named() -> None:
    model = nn.Sequential(nn.LazyLinear(32), nn.Linear(32, 4))
    with pytest.raises(EncodeError, match=r"0\.weight.*run the network"):
        tqcodec.torch.calibrate(model, data())
    with pytest.raises(EncodeError, match=r"0\.weight.*run the network"):
        tqcodec.torch.encode(model, tune=data())
    with pytest.raises(EvaluationError, match=r"0\.weight.*run the network"):
        tqcodec.torch.Reference(model, [(x, None) for x in data()])
    model(data()[0])
    assert len(tqcodec.torch.calibrate(model, data())) == 2


class Wrapped(Tensor):
    @staticmethod
    def __new__(cls, held: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs or {})

    @classmethod  # torch declares it without the function
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.detach.default:
            return Wrapped(args[0].held)
        raise NotImplementedError(str(func))


def released() -> Tensor:
    tensor = torch.ones(8, 8)
    tensor.untyped_storage().resize_(0)
    return tensor


class Distributed(Tensor):
    def full_tensor(self) -> Tensor:
        return torch.ones(2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Wrapped(torch.randn(8, 8)), "a Wrapped has no array"),
        (lambda: torch.nested.nested_tensor([torch.ones(3, 4), torch.ones(2, 4)]), "nested"),
        (lambda: nn.LazyLinear(4).weight, "lazy"),
        (lambda: torch.ones(2, device="meta"), "meta"),
        (lambda: nn.Parameter(torch.ones(2, device="meta")), "meta"),
        (lambda: torch.ones(2, 2).to_sparse(), "sparse"),
        (lambda: torch.ones(2, 2).to_sparse_csr(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantized"),
        (lambda: torch.ones(2, 2).as_subclass(Distributed), "full_tensor"),
        (released, "released"),
        (lambda: torch._subclasses.FakeTensorMode().from_tensor(torch.ones(2)), "FakeTensor"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_plain_values_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(EncodeError, match=f"tensor 'layer.weight': .*{message}"):
        tqcodec.torch.encode({"layer.weight": make()})


def test_tensors_inside_of_vmap_are_named() -> None:
    def encode(x: Tensor) -> Tensor:
        tqcodec.torch.encode({"layer.weight": x})
        return x

    with pytest.raises(EncodeError, match=r"layer\.weight"):
        torch.func.vmap(encode)(torch.ones(3, 4))


def test_odd_tensors_with_values_are_encoded() -> None:
    whole = torch.randn(8, 8)
    state = {
        "complex part": torch.randn(8, dtype=torch.complex64).conj().imag,  # lazily negated
        "expanded": whole[0].expand(5, 8),
        "strided": whole[1:, ::2].T,
        "parameter": nn.Parameter(whole),
        "buffer": nn.Buffer(whole) if hasattr(nn, "Buffer") else whole,
        "empty": torch.ones(0, 3),
        "subclass": whole.as_subclass(type("Mine", (Tensor,), {})),
    }
    found = tqcodec.torch.decode(tqcodec.torch.encode(state, tqcodec.Settings(lossless=True)))
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor.detach().as_subclass(Tensor)), name


# Wrong types of arguments.


def wrongly(function: Callable[..., Any], *arguments: Any, **named: Any) -> Callable[[], Any]:
    """The call, of whose arguments types are not checked."""
    return partial(function, *arguments, **named)


GOOD = tqcodec.encode({"w": np.ones((3, 3), np.float32)})
CALLS: list[tuple[Callable[[], Any], str]] = [
    (wrongly(tqcodec.encode, 3), "tensors is an int, not a mapping"),
    (wrongly(tqcodec.encode, [np.ones(3)]), "tensors is a list"),
    (wrongly(tqcodec.encode, None), "tensors is None"),
    (wrongly(tqcodec.encode, {}, {"bits": 4}), "settings is a dict"),
    (wrongly(tqcodec.encode, {}, statistics=4), "statistics is an int"),
    (wrongly(tqcodec.encode, {}, statistics={"w": 1}), "statistics of 'w'"),
    (wrongly(tqcodec.encode, {}, refine=1), "refine is an int"),
    (wrongly(tqcodec.encode, {}, progress=True), "progress is a bool"),
    (wrongly(tqcodec.save, {}, 3), "path is an int"),
    (wrongly(tqcodec.save, {}, b"x"), "path is a bytes"),
    (wrongly(tqcodec.save, {}, None), "path is None"),
    (wrongly(tqcodec.decode, "m.tqc"), "data is a str.*load takes"),
    (wrongly(tqcodec.decode, None), "data is None"),
    (wrongly(tqcodec.decode, GOOD, limit="1k"), "limit is a str"),
    (wrongly(tqcodec.decode, GOOD, limit=1.5), "limit is a float"),
    (wrongly(tqcodec.decode, GOOD, limit=np.ones(3)), "limit is a ndarray"),
    (wrongly(tqcodec.encode, {}, verify=1), "verify is an int"),
    (wrongly(tqcodec.decode, GOOD, workers=True), "workers is a bool"),
    (wrongly(tqcodec.decode, GOOD, workers=None), "workers is None"),
    (wrongly(tqcodec.decode, GOOD, progress=1), "progress is an int"),
    (wrongly(tqcodec.load, 3), "path is an int"),
    (wrongly(tqcodec.load, GOOD), "path is a bytes"),
    (wrongly(tqcodec.open, 3), "path is an int"),
    (wrongly(tqcodec.open, GOOD, limit="1"), "limit is a str"),
    (wrongly(tqcodec.verify, 0), "path is an int"),
    (wrongly(tqcodec.verify, GOOD, workers="2"), "workers is a str"),
    (wrongly(tqcodec.Statistics.load, 0), "path is an int"),
    (wrongly(tqcodec.torch.encode, "m.pth"), "model is a str"),
    (wrongly(tqcodec.torch.encode, []), "model is a list"),
    (wrongly(tqcodec.torch.encode, {}, 4), "settings is an int"),
    (wrongly(tqcodec.torch.encode, Net(), tune=3), "tune is an int"),
    (wrongly(tqcodec.torch.encode, Net(), target_drop="1", evaluate=len), "target_drop is a str"),
    (wrongly(tqcodec.torch.encode, Net(), target_drop=1, evaluate=3), "evaluate is an int"),
    (wrongly(tqcodec.torch.decode, "m.tqc"), "data is a str"),
    (wrongly(tqcodec.torch.load, 0), "path is an int"),
    (wrongly(tqcodec.torch.save, {}, 0), "path is an int"),
    (wrongly(tqcodec.torch.calibrate, {}, data()), "network is a dict"),
    (wrongly(tqcodec.torch.calibrate, Net(), 3), "data is an int"),
    (wrongly(tqcodec.torch.calibrate, Net(), data(), probes="1"), "probes"),
    (wrongly(tqcodec.torch.calibrate, Net(), data(), outputs=1), "outputs"),
    (wrongly(tqcodec.torch.compare, {}, {}, []), "network is a dict"),
    (wrongly(tqcodec.torch.compare, Net(), {}, 3), "batches is an int"),
    (wrongly(tqcodec.torch.compare, Net(), 3, []), "decoded is an int"),
    (wrongly(tqcodec.torch.Reference, Net(), [], outputs=3), "outputs is an int"),
]


@pytest.mark.parametrize("call", range(len(CALLS)))
def test_wrong_types_of_arguments(call: int) -> None:
    act, message = CALLS[call]
    with pytest.raises(TypeError, match=f"^tqcodec: .*{message}"):
        act()


def whole(number: int) -> Any:
    """An integer as numpy's functions give it."""
    return np.int64(number)


def test_numbers_out_of_range() -> None:
    with pytest.raises(ValueError, match="limit is -1, not at least"):
        tqcodec.decode(GOOD, limit=-1)
    with pytest.raises(ValueError, match="workers is 0, not at least"):
        tqcodec.decode(GOOD, workers=0)
    with pytest.raises(ValueError, match="tqcodec: seed is 1180591620717411303424, not at most"):
        tqcodec.torch.calibrate(Net(), data(), seed=1 << 70)
    with pytest.raises(EncodeError, match="probes at most 65536"):
        tqcodec.torch.calibrate(Net(), data(), probes=1 << 70)
    assert tqcodec.decode(GOOD, limit=whole(1000), workers=whole(1))["w"].shape == (3, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"metadata": {"ab": "c"}}, {"metadata": ("ab",)}, {"metadata": 3}, {"metadata": "ab"},
        {"rules": 3}, {"rules": [("a",)]}, {"rules": "ab"}, {"rules": [("*", 3)]},
        {"rules": {"ab": "lossless"}}, {"lossless": "no"}, {"lossless": None},
        {"provenance": 1},
    ],
)  # fmt: skip
def test_settings_of_wrong_types(wrong: Any) -> None:
    with pytest.raises(EncodeError, match=next(iter(wrong))):
        tqcodec.Settings(**wrong)


@pytest.mark.parametrize("tensor", [[[1, 2], [3]], {"a": 1}, "text", None, object(), 3 + 4j])
def test_what_is_no_array_is_named(tensor: Any) -> None:
    with pytest.raises(EncodeError, match=r"'layer\.weight'"):
        tqcodec.encode({"layer.weight": tensor})


def test_names_that_are_no_text() -> None:
    for name in ("\ud800", 3, None, b"x", ("a",)):
        with pytest.raises(EncodeError, match=r"not a( UTF-8)? string"):
            tqcodec.encode({name: np.ones(3)})  # type: ignore[dict-item]


def test_messages_of_others() -> None:
    error = ValueError("\x1b[1mbold\x1b[0m\nsecond \x1b]0;title\x07line\x00\x9b31m")
    assert foreign.message(error) == "bold second line 31m"
    assert foreign.described(error) == "ValueError: bold second line 31m"
    assert foreign.message(KeyError()) == foreign.described(KeyError()) == "KeyError"


# Streams and signals.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    tensors = {"w": np.random.default_rng(0).normal(size=(64, 64)).astype("f4")}
    tqcodec.save(tensors, folder / "m.tqc", tqcodec.Settings(bits=4))
    from safetensors.numpy import save_file

    save_file(tensors, folder / "m.safetensors")
    return folder


TOOL = f"{shlex.quote(sys.executable)} -m tqcodec"
shell = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")


@shell
@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("info m.tqc >&-", 2, "standard output: Bad file descriptor"),
        ("info m.tqc > /dev/full", 2, "standard output: No space left on device"),
        ("info m.tqc --json > /dev/full", 2, "standard output: No space left on device"),
        ("decode m.tqc -o - >&-", 2, "standard output: Bad file descriptor"),
        ("decode m.tqc -o - > /dev/full", 2, "standard output: No space left on device"),
        ("encode m.safetensors -o - > /dev/full", 2, "standard output: No space left on device"),
        ("verify m.tqc > /dev/full", 2, "standard output: No space left on device"),
        ("--version >&-", 2, "standard output: Bad file descriptor"),
        ("info - <&-", 2, "standard input: Bad file descriptor"),
        ("encode - -o new.tqc <&-", 2, "standard input: Bad file descriptor"),
        ("info nothing 2>&-", 2, ""),
        ("info nothing 2>/dev/full", 2, ""),
        ("info m.tqc 2>&- >/dev/null", 0, ""),
        ("info m.tqc <&- >/dev/null", 0, ""),
        ("encode m.safetensors -o new.tqc -f <&- >&- 2>&-", 0, ""),
        (
            "decode m.tqc -o /dev/full",
            2,
            "/dev/full: not a format that can be written (.safetensors .npz .pt .pth)",
        ),
        ("encode m.safetensors -o /dev/full", 2, "/dev/full: No space left on device"),
        ("encode m.safetensors --quiet -o /dev/stdout | cat | wc -c >/dev/null", 0, ""),
    ],
)
def test_closed_and_full_streams(line: str, code: int, message: str, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    done = subprocess.run(
        f"{TOOL} {line}", shell=True, cwd=folder, capture_output=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.decode() == (f"tqcodec: {message}\n" if message else "")
    (folder / "new.tqc").unlink(missing_ok=True)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@shell
def test_pipes_of_the_shell(folder: Path) -> None:
    for verb, output in (("verify", ""), ("info", ""), ("dump", ""),
                         ("decode", "-o x.safetensors"), ("report", "-o x.png")):  # fmt: skip
        line = f"{verb} <(cat m.tqc) {output}"
        done = subprocess.run(
            ["bash", "-c", f"{TOOL} {line}"], cwd=folder, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, b""), line
    for made in folder.glob("x.*"):
        made.unlink()


SLOW = """
import os, sys, time
from tqcodec.cli import checkpoints, commands
def write(name, data):
    from tqcodec.common.atomic import replacing
    from pathlib import Path
    with replacing(Path(name)) as temporary:
        temporary.write_bytes(data)
        print("half", flush=True)
        time.sleep(600)
checkpoints.write_bytes = write
sys.exit(commands.main())
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("nameless", [True, False])
def test_signals_leave_no_temporary_file(
    number: signal.Signals, nameless: bool, folder: Path
) -> None:
    if not nameless and number == signal.SIGKILL:
        pytest.skip("nobody could remove it")
    before = sorted(folder.iterdir())
    if nameless and not hasattr(os, "O_TMPFILE"):
        pytest.skip("no files without names")
    program = SLOW if nameless else SLOW.replace("time\n", "time; del os.O_TMPFILE\n", 1)
    process = subprocess.Popen(
        [sys.executable, "-c", program, "encode", "m.safetensors", "-o", "new.tqc"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        assert len(sorted(folder.iterdir())) == len(before) + (not nameless)
        process.send_signal(number)
        _, said = process.communicate()
    interrupt = number == signal.SIGINT
    assert process.returncode == (130 if interrupt else -number)
    assert said == (b"tqcodec: interrupted\n" if interrupt else b"")
    assert sorted(folder.iterdir()) == before


def test_ignored_signals_stay_ignored_and_handlers_go(folder: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert commands.main(["--version"]) == 0
    assert signal.getsignal(signal.SIGTERM) == before
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(commands.main(["--version"])))
    thread.start()  # where handlers cannot be set
    thread.join()
    assert codes == [0]


def test_warnings_of_libraries_are_messages(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def verify(*_: Any, **__: Any) -> None:
        warnings.warn("two\nlines \x1b[1mbold", stacklevel=1)

    monkeypatch.setattr(tqcodec.api, "verify", verify)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert commands.main(["verify", str(folder / "m.tqc")]) == 0
    assert capsys.readouterr().err == "tqcodec: warning: two lines bold\n"


def test_what_libraries_log_is_a_message(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def verify(*_: Any, **__: Any) -> None:
        assert logging.lastResort is not None
        record = {"msg": "two\nlines of %s", "args": ("them",), "levelno": logging.WARNING}
        logging.lastResort.handle(logging.makeLogRecord(record))

    before = logging.lastResort
    monkeypatch.setattr(tqcodec.api, "verify", verify)
    assert commands.main(["verify", str(folder / "m.tqc")]) == 0
    assert capsys.readouterr().err == "tqcodec: warning: two lines of them\n"
    assert logging.lastResort is before


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("raise ImportError('failed to map\\nsegment', name='torch')", "failed to map segment"),
        ("raise SystemError('error return without exception set')", "error return without"),
        ("def load():\n    raise SystemError('deep')\nload()", "deep"),
        ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
        ("def draw(*_): raise SystemError", ""),
        ("def draw(*_): raise ImportError(name='tqcodec.api')", ""),
    ],
)
def test_libraries_that_cannot_be_loaded(
    code: str, line: str, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    ours = tmp_path / "ours" / "cli" / "commands.py"
    for folder_of_one in (ours.parent, tmp_path / "others"):
        folder_of_one.mkdir(parents=True)
    (tmp_path / "others" / "library_of_others.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "others")
    monkeypatch.setattr(commands, "__file__", str(ours))
    text = "def verify(*_, **__):\n    import library_of_others\n    library_of_others.draw()\n"
    namespace: dict[str, Any] = {}
    exec(compile(text, ours, "exec"), namespace)
    monkeypatch.setattr(tqcodec.api, "verify", namespace["verify"])
    monkeypatch.delitem(sys.modules, "library_of_others", raising=False)
    result = commands.main(["verify", str(folder / "m.tqc")])
    said = capsys.readouterr().err
    if line:
        assert (result, said.count("\n")) == (2, 1)
        assert said.startswith(f"tqcodec: a library cannot be loaded: {line}")
    else:
        assert result == 70
        assert "Traceback" in said


def test_signals_that_a_library_makes_another_error_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def verify(*_: Any, **__: Any) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ImportError("could not import it") from error

    monkeypatch.setattr(tqcodec.api, "verify", verify)
    assert commands.main(["verify", str(folder / "m.tqc")]) == 130
    assert capsys.readouterr().err == "tqcodec: interrupted\n"


def test_signals_wait_until_torch_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its C++ parts import modules and end the process with a core dump if those raise anything."""
    loaded = []

    def verify(*_: Any, **__: Any) -> None:
        monkeypatch.setattr(torch.__spec__, "_initializing", True, raising=False)
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.2)
        monkeypatch.setattr(torch.__spec__, "_initializing", False)
        loaded.append(True)
        time.sleep(60)

    monkeypatch.setattr(tqcodec.api, "verify", verify)
    assert commands.main(["verify", str(folder / "m.tqc")]) == 130
    assert capsys.readouterr().err == "tqcodec: interrupted\n"
    assert loaded


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["module", "finalizer"])
def test_signals_that_c_code_clears_away_come_again(
    where: str, number: signal.Signals, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So do modules of Cython's while they load, and Python itself around finalizers."""
    seen: list[str] = []

    class Loader(ExtensionFileLoader):
        def exec_module(self, module: Any) -> None:
            try:
                signal.raise_signal(number)
            except BaseException:
                seen.append("cleared away")

    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(number)

    def verify(*_: Any, **__: Any) -> None:
        if where == "module":
            Loader("in_c", "in_c.so").exec_module(ModuleType("in_c"))
        else:
            Finalized()
        seen.append("went on")
        time.sleep(60)

    monkeypatch.setattr(tqcodec.api, "verify", verify)
    hook = sys.unraisablehook
    if number == signal.SIGINT:
        assert commands.main(["verify", str(folder / "m.tqc")]) == 130
    else:
        with tidy_ending() as came, pytest.raises(Ended):  # `main` would end us
            verify()
        assert came[-1] == number
    assert seen == ["went on"]
    assert sys.unraisablehook is hook


def test_an_interrupt_around_the_command_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "main", interrupted)
    assert tqcodec.__main__.main() == 130


def test_too_little_memory_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def verify(*_: Any, **__: Any) -> None:
        raise MemoryError("Unable to allocate 3 TiB")

    monkeypatch.setattr(tqcodec.api, "verify", verify)
    assert commands.main(["verify", str(folder / "m.tqc")]) == 2
    assert capsys.readouterr().err == "tqcodec: not enough memory: Unable to allocate 3 TiB\n"


def test_the_whole_message_of_users_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "def network():\n    raise RuntimeError('first\\nsecond \\x1b[1mbold')\n"
        "def stops():\n    raise SystemExit('enough')\n"
        "def fine():\n    import torch\n    return torch.nn.Linear(3, 40)\n"
        "def batches():\n    import torch\n    yield torch.ones(4, 3)\n    raise KeyError('x')\n"
    )
    np.savez("data.npz", images=np.ones((4, 3), np.float32))
    for function, message in (("network", "RuntimeError: first second bold"),
                              ("stops", "SystemExit: enough")):  # fmt: skip
        line = f"calibrate --model net.py:{function} --data data.npz -o s.npz"
        assert commands.main(line.split()) == 2
        assert capsys.readouterr().err == f"tqcodec: net.py:{function}: {message}\n"
    line = "calibrate --model net.py:fine --data net.py:batches -o s.npz"
    assert commands.main(line.split()) == 2
    assert capsys.readouterr().err == "tqcodec: net.py:batches: KeyError: 'x'\n"
