"""Retraining: any network, its file at the size asked for, and what was trained is what decodes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forks import Forks
from kinds import Counts
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import tqcodec
import tqcodec.torch as codec
from tqcodec.encoder.kinds import Kind
from tqcodec.encoder.matrix.levels import level_bits
from tqcodec.errors import EncodeError
from tqcodec.format.container import Container
from tqcodec.format.dtypes import DTYPES
from tqcodec.format.registry import Coding
from tqcodec.torch.retraining import start as starting
from tqcodec.torch.retraining.controller import RateController
from tqcodec.torch.retraining.latent import Latent
from tqcodec.torch.retraining.loop import TrainingMoment
from tqcodec.torch.retraining.objective import distillation, labels_of
from tqcodec.torch.retraining.rate import Rate
from tqcodec.torch.retraining.recipe import TrainingRecipe
from tqcodec.torch.retraining.trimming import lowered

Batches = list[tuple[Any, Tensor]]


class Pictures(nn.Module):
    """Convolutions of several kinds, a normalisation of each kind, a shared matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.up = nn.ConvTranspose2d(16, 96, 2, stride=2)
        self.group = nn.GroupNorm(4, 96)
        self.inner = nn.Linear(96, 96)
        self.again = self.inner
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(96, 6)
        self.register_buffer("mask", torch.full((4, 4), -1e4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = self.group(self.up(self.deep(x).relu())).relu().mean((2, 3))
        x = self.inner(x).relu()
        return self.last(self.drop(self.again(x)))


class Tokens(nn.Module):
    """An embedding tied to the output, attention, keyword arguments, a mapping as output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 64)
        self.block = nn.TransformerEncoderLayer(64, 4, 64, batch_first=True)
        self.head = nn.Linear(64, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        x = self.block(self.embed(ids))
        return {"logits": scale * self.head(x).mean(1)}


class Signal(nn.Module):
    """One dimension, weight normalisation, a recurrent layer, one number as output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 64, 5, padding=2))
        self.norm = nn.BatchNorm1d(64)
        self.rnn = nn.GRU(64, 48, batch_first=True)
        self.out = nn.Linear(48, 1)
        self.unused = nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().transpose(1, 2)
        return self.out(self.rnn(x)[0][:, -1])


def pictures(count: int = 6) -> Batches:
    made = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 3, 8, 8, generator=made), torch.randint(0, 6, (16,), generator=made))
        for _ in range(count)
    ]


def tokens(count: int = 6) -> Batches:
    made = torch.Generator().manual_seed(1)
    return [
        (
            {"scale": 2.0, "ids": torch.randint(0, 50, (8, 12), generator=made)},
            torch.randint(0, 50, (8,), generator=made),
        )
        for _ in range(count)
    ]


def signals(count: int = 6) -> Batches:
    made = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 2, 20, generator=made), torch.zeros(8)) for _ in range(count)]


NETWORKS: list[tuple[type[nn.Module], Callable[[], Batches]]] = [
    (Pictures, pictures),
    (Tokens, tokens),
    (Signal, signals),
]


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def settings(bits: float = 3.0, **more: Any) -> tqcodec.Settings:
    return tqcodec.Settings(bits=bits, **more)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(("kind", "data"), NETWORKS, ids=lambda x: getattr(x, "__name__", ""))
@pytest.mark.parametrize("inference", [True, False])
def test_any_network_is_retrained(
    kind: type[nn.Module], data: Callable[[], Batches], inference: bool
) -> None:
    """The file fits, the evaluated network is the decoded one, and the original is as it was."""
    model, bits, seen = made(kind), 3.5, []
    before = state_of(model)

    def evaluate(network: nn.Module) -> float:
        inputs = data()[0][0]
        with torch.no_grad():
            given = network(**inputs) if isinstance(inputs, dict) else network(inputs)
        given = given["logits"] if isinstance(given, dict) else given
        seen.append(given)
        return float(given.sum())

    moments: list[TrainingMoment] = []
    file = codec.retrain(
        model,
        data(),
        settings(),
        epochs=3,
        inference=inference,
        evaluate=evaluate,
        watch=moments.append,
    )
    weights = Container.of(file).directory.entries
    count = sum(math.prod(e.shape) for e in weights if e.kind == Kind.WEIGHT)
    assert len(file) <= bits * count / 8
    assert all(torch.equal(one, model.state_dict()[name]) for name, one in before.items())
    assert [one.step for one in moments[:-1]] == list(range(1, 19))
    # What was evaluated at the end of training, and what the file decodes to.
    assert torch.allclose(seen[-1], seen[-2], rtol=1e-4, atol=1e-5)
    fresh = copy.deepcopy(model)
    fresh.load_state_dict(codec.decode(file))
    evaluate(fresh.eval())
    assert torch.allclose(seen[-1], seen[-2], rtol=1e-5, atol=1e-6)  # kernels in another order
    assert moments[-1].quality == float(seen[-2].sum())
    decoded = codec.decode(file)
    for name, buffer in model.named_buffers():
        if "running" not in name:
            assert torch.equal(decoded[name], buffer)


def test_training_helps() -> None:
    """Beside the file of the same size that is not trained, the outputs are nearer."""
    model, batches = made(Pictures), pictures(16)
    plain = codec.encode(model, settings(2.0, inference=True), codec.calibrate(model, batches))
    trained = codec.retrain(model, [x for x, _ in batches], settings(2.0), epochs=12)
    assert len(trained) <= 1.02 * len(plain)
    held = [(x, None) for x, _ in pictures(20)[16:]]
    errors = [codec.compare(model, codec.decode(file), held).kl.value for file in (plain, trained)]
    assert errors[1] < 0.8 * errors[0]


def test_labels_and_loss_are_used() -> None:
    """A loss of the user is what falls, and it gets the batch as it came."""
    model, batches = made(Pictures), pictures(8)

    def loss(given: Tensor, batch: Any) -> Tensor:
        assert any(batch is one for one in batches)
        return functional.cross_entropy(given, torch.full_like(batch[1], 2))

    moments: list[TrainingMoment] = []
    codec.retrain(
        model,
        batches,
        settings(4.0),
        epochs=20,
        loss=loss,
        watch=moments.append,
        recipe=TrainingRecipe(rate=0.05, vector_rate=0.02),
    )
    assert moments[-1].loss < 0.9 * moments[0].loss


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_stay(dtype: torch.dtype) -> None:
    model = made(Pictures).to(dtype)
    batches = [(x.to(dtype), y) for x, y in pictures()]
    file = codec.retrain(model, batches, settings(), epochs=1)
    decoded = codec.decode(file)
    assert {n: t.dtype for n, t in decoded.items()} == {
        n: t.dtype for n, t in model.state_dict().items()
    }


@pytest.mark.parametrize("every", [2, 5])  # steps; an epoch has 7
def test_it_goes_on_after_any_cut(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that is cut again and again makes the very file of one that was not."""
    monkeypatch.setattr("tqcodec.torch.retraining.checkpointing.EVERY", 0.0)
    model, recipe = made(Pictures), TrainingRecipe(fit_every=every)
    dataset = TensorDataset(*(torch.cat(parts) for parts in zip(*pictures(7), strict=True)))
    loader = DataLoader(dataset, 16, shuffle=True)
    whole = codec.retrain(model, loader, settings(), epochs=4, recipe=recipe)
    path = tmp_path / "run.ckpt"

    class CutError(Exception):
        pass

    for at in (3, 9, 17, 27):  # batches, of 28

        def watch(moment: TrainingMoment, at: int = at) -> None:
            if moment.step == at:
                raise CutError

        with pytest.raises(CutError):
            codec.retrain(
                model,
                loader,
                settings(),
                epochs=4,
                recipe=recipe,
                checkpoint=path,
                resume=True,
                watch=watch,
            )
    again = codec.retrain(
        model, loader, settings(), epochs=4, recipe=recipe, checkpoint=path, resume=True
    )
    assert again == whole
    same: dict[str, Any] = {"settings": settings(), "epochs": 4, "recipe": recipe, "resume": True}
    for other, named in (
        ({"settings": settings(3.5)}, "settings"),
        ({"settings": settings(side_bits=6)}, "settings"),
        ({"loss": lambda given, batch: given.square().mean()}, "kind of loss"),
        ({"bfloat16": True, "seed": 3}, "seed, bfloat16"),
        ({"compiled": True}, "compile"),
        ({"epochs": 5}, "epochs"),
        ({"start": whole}, "start"),
    ):
        with pytest.raises(EncodeError, match=f"differs in {named}: go on with the same"):
            codec.retrain(model, loader, **{**same, **other}, checkpoint=path)
    path.write_bytes(b"nothing")
    with pytest.raises(EncodeError, match="not a checkpoint"):
        codec.retrain(model, loader, settings(), epochs=4, checkpoint=path, resume=True)


def test_checkpoints_and_workers_and_full_disks(
    tmp_path: Path, small_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    """It goes on with any number of workers; a disk that is full is an error of its name."""
    model, path = made(Pictures), tmp_path / "run.ckpt"
    kept: dict[str, Any] = {"epochs": 1, "checkpoint": path, "resume": True}
    first, again = (codec.retrain(model, pictures(), settings(workers=n), **kept) for n in (1, 2))
    assert first == again
    before = path.read_bytes()
    with small_disk(1000), pytest.raises(OSError, match="File too large") as caught:
        codec.retrain(model, pictures(), settings(), epochs=1, checkpoint=path)
    assert caught.value.filename == str(path) and path.read_bytes() == before


def test_a_seed_is_a_file() -> None:
    """The same file each time, and the global random state is left alone."""
    model = made(Pictures)
    before = torch.random.get_rng_state()
    files = [codec.retrain(model, pictures(), settings(), epochs=2, seed=s) for s in (0, 0, 1)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert files[0] == files[1] != files[2]


TOGETHER = """
import os, sys
child = os.fork()
rank = int(child == 0)
from torch import distributed
from test_retraining import Pictures, codec, made, pictures, settings
distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
file = codec.retrain(made(Pictures), pictures()[rank::2], settings(), epochs=3)
open(sys.argv[2 + rank], "wb").write(file)
distributed.destroy_process_group()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_processes_train_together(tmp_path: Path, forks: Forks) -> None:
    """Each on batches of its own; all have the same file, which is not that of one alone."""
    files = [tmp_path / f"{rank}.tqc" for rank in range(2)]
    words, here = map(str, [tmp_path / "meet", *files]), Path(__file__).parent
    done = forks.run(TOGETHER, *words, folder=tmp_path, path=(here, here.parent))
    assert done.code == 0, done.err
    assert files[0].read_bytes() == files[1].read_bytes()
    alone = codec.retrain(made(Pictures), pictures()[::2], settings(), epochs=3)
    assert files[0].read_bytes() != alone


def test_rules_hold() -> None:
    """What a rule keeps exactly is not trained."""
    model = made(Pictures)
    file = codec.retrain(
        model,
        pictures(),
        settings(8.0, rules=[("last.*", "exact")]),
        epochs=2,
        recipe=TrainingRecipe(rate=0.05),
    )
    decoded = codec.decode(file)
    assert torch.equal(decoded["last.weight"], model.state_dict()["last.weight"])
    assert torch.equal(decoded["last.bias"], model.state_dict()["last.bias"])
    assert not torch.equal(decoded["inner.bias"], model.state_dict()["inner.bias"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_vectors_are_trained_as_the_file_has_them(dtype: torch.dtype) -> None:
    """Shortened as the encoder does it, by rules too: those of the network are the decoded ones."""
    model, seen = made(Pictures).to(dtype), []
    with torch.no_grad():  # subnormal in float16, zero, large
        model.get_parameter("last.bias").copy_(torch.tensor([3e-7, -6e-8, 0, 0.7, -5e4, 9e-6]))

    def evaluate(network: nn.Module) -> float:
        seen.append(state_of(network))
        return 0.0

    rules = [("last.bias", "side:2"), ("norm.*", "side:20")]
    file = codec.retrain(
        model,
        [x for x, _ in pictures(2)],
        tqcodec.Settings(bits=12, rules=rules, side_bits=5),
        epochs=1,
        statistics=tqcodec.Statistics({}),
        evaluate=evaluate,
        recipe=TrainingRecipe(vector_rate=1e-7),
    )
    for name, tensor in codec.decode(file).items():
        if tensor.ndim == 1:
            assert torch.equal(tensor.float(), seen[-1][name]), name


class Alike(nn.Module):
    """Matrices that are equal, that lie over each other, that are zero, that are no parameters."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(64, 64)
        self.layers = nn.ModuleList([layer, *(copy.deepcopy(layer) for _ in range(3))])
        self.turned = nn.Linear(64, 64)
        self.turned.weight = nn.Parameter(layer.weight.data.T)
        zeros = [nn.Linear(64, 64, bias=False) for _ in range(3)]
        for one in zeros:
            nn.init.zeros_(one.weight)
        self.zeros = nn.ModuleList(zeros)
        self.first: Tensor
        self.other: Tensor
        self.register_buffer("first", layer.weight.detach().clone())
        self.register_buffer("other", torch.randn(64, 64))
        self.last = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        for one in (*self.layers, self.turned):
            x = one(x).relu()
        for one in self.zeros:
            x = x + one(x)
        return self.last(x @ self.first @ self.other)


def test_matrices_that_are_alike() -> None:
    """They take the room that they take in any file, and what was trained is what decodes."""
    model, batches = made(Alike), [torch.randn(16, 64) for _ in range(4)]
    for rules in ((), (("first", "weight"), ("other", "weight"))):
        wish = tqcodec.Settings(max_size=9000 if rules else 40_000, rules=rules, effort=2)
        seen: list[dict[str, Tensor]] = []

        def evaluate(network: nn.Module, seen: list[dict[str, Tensor]] = seen) -> float:
            seen.append(state_of(network))
            return 0.0

        file = codec.retrain(
            model,
            batches,
            wish,
            epochs=3,
            evaluate=evaluate,
            watch=lambda _: None,
            recipe=TrainingRecipe(rate=0.1),
        )
        assert wish.max_size is not None and len(file) <= wish.max_size
        for name, tensor in seen[-1].items():
            assert torch.allclose(tensor, seen[-2][name], rtol=1e-4, atol=1e-6), name
        decoded = codec.decode(file)
        assert not torch.equal(decoded["layers.0.weight"], decoded["first"])
        for name in ("first", "other"):
            assert torch.equal(decoded[name], model.state_dict()[name]) == (not rules)


class Draws(nn.Module):
    """Random numbers in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 64), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.dropout(self.first(x).relu(), 0.3, training=True))


def test_networks_that_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both networks draw the same, and a training that is cut goes on to the same file."""
    monkeypatch.setattr("tqcodec.torch.retraining.checkpointing.EVERY", 0.0)
    model, data = made(Draws), TensorDataset(torch.randn(40, 16))
    loader = DataLoader(data, 8, shuffle=True)
    options: dict[str, Any] = {"epochs": 2, "recipe": TrainingRecipe(fit_every=1)}
    losses: list[float] = []
    whole = codec.retrain(
        model, loader, settings(30.0), watch=lambda m: losses.append(m.loss), **options
    )
    assert losses[0] < 1e-3  # other numbers make other outputs

    def cut(moment: TrainingMoment) -> None:
        if moment.step == 7:
            raise KeyboardInterrupt

    path = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        codec.retrain(model, loader, settings(30.0), checkpoint=path, watch=cut, **options)
    again = codec.retrain(model, loader, settings(30.0), checkpoint=path, resume=True, **options)
    assert again == whole


def test_a_training_that_is_done_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tqcodec.torch.retraining.checkpointing.EVERY", 0.0)
    seen: list[list[TrainingMoment]] = [[], []]
    files = [
        codec.retrain(
            made(Pictures),
            pictures(2),
            settings(),
            epochs=2,
            checkpoint=tmp_path / "run.ckpt",
            resume=True,
            recipe=TrainingRecipe(fit_every=2),
            evaluate=lambda network: float(network.state_dict()["last.bias"].sum()),
            watch=moments.append,
        )
        for moments in seen
    ]
    assert files[0] == files[1]
    assert seen[0][-1].quality == seen[1][-1].quality and seen[1][-1].step == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_checkpoint_on_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tqcodec.torch.retraining.checkpointing.EVERY", 0.0)
    with pytest.raises(OSError, match=r"No space left.*/dev/full"):
        codec.retrain(
            made(Pictures),
            pictures(2),
            settings(),
            epochs=1,
            checkpoint="/dev/full",
            recipe=TrainingRecipe(fit_every=1),
        )


def test_networks_that_change_their_buffers() -> None:
    torch.manual_seed(0)
    model = Counts().eval()
    batches = [torch.randn(8, 64) for _ in range(4)]
    seen: list[dict[str, Tensor]] = []

    def evaluate(network: nn.Module) -> float:
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        network(batches[0])
        return 0.0

    data = codec.retrain(model, batches, settings(6.0), epochs=2, evaluate=evaluate)
    decoded = codec.decode(data)
    assert len(seen) == 3  # the last time, the network of the file
    assert all(torch.equal(seen[-1][name], tensor) for name, tensor in decoded.items())
    for state in (*seen, decoded, model.state_dict()):
        assert not state["runs"].any() and not state["mean"].any()


def test_whatever_evaluate_leaves_and_any_seed() -> None:
    """A network that is left in train mode is trained in evaluation mode all the same."""
    files = [
        codec.retrain(
            made(Pictures), pictures(2), settings(), epochs=2, evaluate=evaluate, seed=(1 << 64) - 1
        )
        for evaluate in (lambda network: 0.0, lambda network: float(len(vars(network.train()))))
    ]
    assert files[0] == files[1]


def test_samples_without_a_label() -> None:
    """The number that torch ignores is no class."""
    given, wanted = torch.randn(2, 4, 5)
    labels = torch.tensor([1, -100, -100, 3])
    alone = distillation(given, wanted, 4, None)
    known = functional.cross_entropy(given[[0, 3]], labels[[0, 3]])
    assert torch.allclose(distillation(given, wanted, 4, labels), alone + 0.3 * known)
    assert torch.equal(distillation(given, wanted, 4, torch.full((4,), -100)), alone)


def test_all_outputs_count() -> None:
    """Each of several by its variance, whatever its scale; those of another shape do not."""
    wanted = {"scores": torch.randn(8, 5), "boxes": 1000 * torch.randn(8, 3, 4)}
    given = {name: y + 0.1 * y.std() for name, y in wanted.items()}
    both = distillation(given, wanted, 8, None)
    assert 0.005 < both < 0.02
    one = distillation({**given, "boxes": wanted["boxes"]}, wanted, 8, None)
    other = distillation({**given, "scores": wanted["scores"]}, wanted, 8, None)
    assert torch.allclose(both, one + other)
    assert 0.25 < one / other < 4
    fewer = distillation({**given, "boxes": given["boxes"][:, :2]}, wanted, 8, None)
    assert torch.allclose(fewer, 2 * one)
    labelled = distillation(given, wanted, 8, torch.arange(8) % 5)
    known = functional.cross_entropy(given["scores"], torch.arange(8) % 5)
    assert torch.allclose(labelled, both + 0.3 * known)


def test_scores_by_place() -> None:
    """A shift of all classes does not count where the network calls them `logits`."""
    scores = torch.randn(2, 5, 6)
    shifted = scores + torch.randn(2, 5, 1)
    assert distillation({"logits": shifted}, {"logits": scores}, 2, None).abs() < 1e-5
    assert distillation(shifted, scores, 2, None) > 0.1


@pytest.mark.parametrize(
    "given",
    [(), torch.zeros(2, 3).long(), torch.zeros(2, 4), [{"boxes": torch.zeros(3)}] * 2],
    ids=str,
)
def test_outputs_that_cannot_be_compared(given: Any) -> None:
    """What detectors find neither, else a training would end where they find more."""
    wanted = given if isinstance(given, list) else torch.zeros(2, 3)
    with pytest.raises(EncodeError, match=r"retrain: .*: give a loss"):
        distillation(given, wanted, 2, None)


def test_matrices_that_are_kept_as_numbers() -> None:
    """Small ones cost less so; they are matrices all the same."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 3), nn.Linear(3, 16))
    with pytest.raises(EncodeError, match="all weight matrices as numbers"):
        codec.retrain(network, [torch.randn(4, 8)], tqcodec.Settings(max_size=680), epochs=1)


@pytest.mark.parametrize(
    "wrong", [{"fit_every": 0}, {"rate": math.nan}, {"trim": (2.0,)}, {"size_every": 1.5}], ids=str
)
def test_recipes_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(EncodeError, match=f"recipe: {next(iter(wrong))} is "):
        TrainingRecipe(**wrong)


class Batchless:
    def __iter__(self) -> Iterator[Any]:
        return iter(())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": tqcodec.Settings()}, "need a target"),
        ({"settings": tqcodec.Settings(lossless=True)}, "need a target"),
        ({"settings": tqcodec.Settings(bits=3, payload="fixed")}, "range-coded"),
        ({"settings": tqcodec.Settings(max_size=10)}, "max_size: .* is the smallest file"),
        ({"settings": settings(8.0, rules=[("no", "exact")])}, "matches no tensor"),
        ({"batches": []}, "there is no batch"),
        ({"batches": Batchless()}, "there is no batch"),
        ({"batches": ["text"]}, "not a tensor"),
        ({"batches": [torch.full((4, 3, 8, 8), math.nan)]}, "not finite"),
        ({"resume": True}, "needs a checkpoint"),
        ({"epochs": 0}, "epochs=0 must be at least 1"),
        ({"model": nn.Sequential(nn.ReLU()), "batches": [torch.zeros(2, 3)]}, "no gradient|matrix"),
        ({"loss": lambda given, batch: given.sum() * math.nan}, "loss of batch 1 is nan"),
        (
            {"loss": lambda given, batch: (given - given.detach()).square().sum().sqrt()},
            "the gradient of the loss of batch 1 is not finite",
        ),
        ({"loss": lambda given, batch: 1.0}, "loss is a float"),
        ({"loss": lambda given, batch: given}, r"loss is of shape \(16, 6\)"),
        ({"loss": lambda given, batch: given.detach().sum()}, "does not depend"),
        ({"evaluate": lambda network: None}, "gave None, not a number"),
        ({"batches": iter(pictures(2))}, "again and again"),
        ({"batches": [(x, y + 1) for x, y in pictures(2)]}, "6 classes, from 0"),
    ],
)
def test_what_cannot_be_trained(change: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"model": made(Pictures), "batches": pictures(2), "epochs": 1}
    options = {"settings": settings(), **options, **change}
    with pytest.raises(EncodeError, match=message):
        codec.retrain(**options)


def test_a_start_is_calibrated_on_enough_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def calibrate(model: nn.Module, batches: list[Tensor], **_: Any) -> None:
        seen.extend(batches)
        raise KeyboardInterrupt

    monkeypatch.setattr(starting, "calibrate", calibrate)
    monkeypatch.setattr(starting, "CALIBRATION", 40)
    with pytest.raises(KeyboardInterrupt):
        codec.retrain(made(Pictures), pictures(), settings(), epochs=1)
    assert [len(batch) for batch in seen] == [16, 16, 16]


SCORES = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("batch", "outputs", "are_labels"),
    [
        ((X := torch.zeros(4, 2), Y := torch.tensor([0, 1, 2, 1])), SCORES, True),
        ([X, Y.to(torch.uint8)], {"logits": SCORES}, True),
        (X, SCORES, False),
        ((X,), SCORES, False),
        ((X, Y), "text", False),
        ((X, Y), SCORES[:, :1], False),
        ((X, Y), SCORES[:, :, None], False),
        ((X, Y), SCORES.long(), False),
        ((X, Y.float()), SCORES, False),
        ((X, Y[:3]), SCORES, False),
        ((X, Y > 0), SCORES, False),
        ((X, [0, 1, 2, 1]), SCORES, False),
    ],
)
def test_what_are_labels(batch: Any, outputs: Any, are_labels: bool) -> None:
    found = labels_of(batch, outputs)
    assert found is None or (found.equal(Y) and found.dtype == torch.int64)
    assert (found is not None) == are_labels


def test_a_loader_that_ends_early_is_refused() -> None:
    class Shrinks:
        passes = 0

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            return iter(pictures(4 if self.passes < 4 else 2))

    with pytest.raises(EncodeError, match="2 batches in epoch 1, 4 in the first"):
        codec.retrain(made(Pictures), Shrinks(), settings(), epochs=2)


@pytest.mark.parametrize("transform", ["none", "dct", "klt", "elt"])
def test_latents_are_what_the_file_has(transform: str) -> None:
    """Weights of latents are those that decode; gradients are those of autograd."""
    model = made(Pictures)
    statistics = codec.calibrate(model, pictures())
    file = codec.encode(model, settings(6.0, effort=2, transform=transform), statistics)
    container, state, decoded = Container.of(file), model.state_dict(), codec.decode(file)
    checked = 0
    for entry in container.directory.entries:
        if entry.coding != Coding.TRANSFORM or entry.same_as is not None:
            continue
        record = container.record(entry)
        latent = Latent(record, entry.shape, torch.device("cpu"), state[entry.name])
        found = latent.patterns(DTYPES["F32"]).view(np.float32)
        assert np.array_equal(found, decoded[entry.name].numpy())
        assert torch.allclose(latent.weights(), decoded[entry.name], rtol=1e-5, atol=1e-7)
        gradient = torch.randn(entry.shape)
        values, scale = latent.gradients(gradient)
        step = latent.log_scale.clone()
        for _ in range(3):  # linear in the integers, so differences are exact but for rounding
            place = tuple(int(torch.randint(0, n, ())) for n in latent.values.shape)
            before = (gradient * latent.weights()).double().sum()
            latent.values[place] += 1
            after = (gradient * latent.weights()).double().sum()
            latent.values[place] -= 1
            assert float(after - before) == pytest.approx(float(values[place]), rel=0.02, abs=1e-4)
        latent.log_scale += 1e-2
        after = (gradient * latent.weights()).double().sum()
        latent.log_scale.copy_(step)
        before = (gradient * latent.weights()).double().sum()
        assert float(after - before) == pytest.approx(
            math.expm1(1e-2) * float(scale), rel=0.02, abs=1e-4
        )
        checked += 1
    assert checked >= 3


def spread_latents(seed: int = 0) -> list[Latent]:
    """Of two matrices whose rows and columns are of many sizes."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in (("a", (64, 48)), ("b", (32, 16, 3, 3))):
        array = rng.laplace(size=shape)
        for axis, length in enumerate(shape[:2]):
            scale = np.exp(rng.normal(size=length))
            array *= scale.reshape([length if i == axis else 1 for i in range(len(shape))])
        arrays[name] = array.astype(np.float32)
    container = Container.of(tqcodec.encode(arrays, settings(3.0, effort=1, transform="none")))
    entries = [e for e in container.directory.entries if e.coding == Coding.TRANSFORM]
    assert len(entries) == 2
    return [Latent(container.record(e), e.shape, torch.device("cpu"), None) for e in entries]


@pytest.mark.parametrize("number", [1, 6])
def test_classes_are_fitted_to_the_integers(number: int) -> None:
    """From one class alone, or from levels that say nothing, which cost as well."""
    latents, rng = spread_latents(), np.random.default_rng(1)
    for latent in latents:
        out, inn, taps = (
            rng.integers(0, number, len(level)).astype(np.uint8) for level in latent.levels
        )
        latent.levels = out, inn, taps
    weights = [latent.weights() for latent in latents]
    rate = Rate(latents)
    before = rate.bits + sum(level_bits(latent.levels) for latent in latents)
    rate.classify()
    assert rate.bits + sum(level_bits(latent.levels) for latent in latents) < 0.97 * before
    assert Rate(latents).bits == rate.bits
    assert all(map(torch.equal, weights, (latent.weights() for latent in latents)))
    again = rate.bits + sum(level_bits(latent.levels) for latent in latents)
    rate.classify()
    assert rate.bits + sum(level_bits(latent.levels) for latent in latents) <= again


def test_a_training_ends_with_classes_of_its_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = nn.Linear(96, 96), nn.Linear(96, 64)
    for layer in layers:
        for size in ((layer.out_features, 1), (1, layer.in_features)):
            layer.weight.data *= torch.randn(size).exp()
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    start = codec.encode(model, settings(4.0, effort=1))
    moments: list[TrainingMoment] = []
    more: dict[str, Any] = {"epochs": 1, "start": start, "watch": moments.append}
    more["recipe"] = TrainingRecipe(0, 0, 0, classify=())

    def trained() -> bytes:
        return codec.retrain(model, [torch.randn(8, 96)], settings(8.0), **more)

    file = trained()
    assert moments[-1].size == pytest.approx(len(file), rel=0.01)
    monkeypatch.setattr(Rate, "classify", lambda self: None)
    usual = trained()
    assert len(file) < len(usual)
    one, other = codec.decode(file), codec.decode(usual)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_slopes_are_differences_of_bits() -> None:
    """The slope of a latent is what its integer costs more than the next smaller one."""
    model = made(Pictures)
    file = codec.encode(model, settings(3.0, effort=2), codec.calibrate(model, pictures()))
    container = Container.of(file)
    latents = [
        Latent(container.record(e), e.shape, torch.device("cpu"), model.state_dict()[e.name])
        for e in container.directory.entries
        if e.coding == Coding.TRANSFORM and e.same_as is None
    ]
    rate = Rate(latents)
    payload = sum(one.length for e in container.directory.entries for one in e.segments)
    assert 0.7 * 8 * payload < rate.bits < 1.1 * 8 * payload
    for latent, slope in zip(latents, rate.gradients(), strict=True):
        assert slope.shape == latent.values.shape
        large = latent.values.abs() > 0.5
        # Larger integers are rarer: nearly all slopes away from zero cost bits.
        assert float((slope * latent.values.sign())[large].mean()) > 0


def test_lowered_moves_those_that_are_near() -> None:
    values = torch.tensor([0.2, 0.55, -0.55, 1.4, -1.45, 1.52, 2.3, 0.0])
    assert torch.equal(lowered(values, 0.0).round(), values.round())
    near = lowered(values, 0.1).round()
    assert near.tolist() == [0, 0, 0, 1, -1, 1, 2, 0]
    assert (lowered(values, 1.0).round().abs() == (values.round().abs() - 1).clamp(min=0)).all()


def test_the_controller_comes_to_its_target() -> None:
    """On a size that answers late, and less to larger weights, as the real one does."""
    controller, size, weight = RateController(2.0, 6.0, 2000.0), 1.3, 1.0
    for step in range(20_000):
        goal = 0.9 * weight**-0.5
        size += (goal - size) / 700
        weight = controller.update(0.5, math.log(size))
        if step > 10_000:
            assert abs(math.log(size)) < 0.03
    assert weight == pytest.approx(0.81, rel=0.1)
