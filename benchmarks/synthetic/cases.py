"""Networks with real inputs to calibrate with and others that judge, for this folder's command."""

from __future__ import annotations

import io
import runpy
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.common import subjects
from benchmarks.synthetic.networks import Detector, FaceNet
from tqcodec.torch.evaluation import Reference

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Loss:
    """What a file does to a network, over real inputs that took no part in its making.

    Attributes:
        divergence: KL(float || decoded) of class probabilities in nats, 1 - cosine of embeddings,
            or the squared error of other outputs over their variance; the mean.
        error: half of its 95 % confidence interval.
        agreement: per cent of the inputs whose first class, nearest neighbour, or largest of the
            last output, stays.
    """

    divergence: float
    error: float
    agreement: float


@dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
        model: in evaluation mode.
        made: arguments of `synthetic_inputs` that say what it takes.
        real: real batches to calibrate with.
        tuning: real batches to tune with.
        judge: from a decoded state dict to what was lost.
    """

    model: nn.Module
    made: Mapping[str, Any]
    real: Sequence[Any]
    tuning: Sequence[Any]
    judge: Callable[[State], Loss]


def build(builder: str, arguments: Sequence[str]) -> Case:
    """Call a builder: the name of a function here, or FILE.py:FUNCTION that returns a `Case`."""
    path, _, function = builder.rpartition(":")
    module = runpy.run_path(path) if path else globals()
    found: Case = module[function](*arguments)
    return found


def classifier(subject: subjects.Subject, test: subjects.Batches, made: Mapping[str, Any]) -> Case:
    """A case of a network whose outputs are classes; `test` judges, `made` is as in `Case`."""
    reference = Reference(subject.model, test)

    def judge(state: State) -> Loss:
        found = reference.compare(state)
        return Loss(found.kl.value, found.kl.high - found.kl.value, found.agreement.value)

    real, tuning = ([inputs for inputs, _ in b] for b in (subject.calibration, subject.tuning))
    return Case(subject.model, made, real, tuning, judge)


CIFAR10 = {"size": 32, "mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)}
LITE = {"size": 224, "mean": 127.0, "std": 128.0}


def cifar10(code: str, depth: str, train: str, test: str) -> Case:
    """A residual network on CIFAR-10, as in `subjects.cifar10`; test images judge."""
    subject = subjects.cifar10(code, depth, train, test)
    return classifier(subject, subject.test, CIFAR10)


def cifar10_held_out(code: str, depth: str, train: str) -> Case:
    """The same, for choices: training images judge, others than those that calibrate."""
    subject = subjects.cifar10_held_out(code, depth, train)
    return classifier(subject, subject.test, CIFAR10)


PHOTOGRAPHS = 300
"""That calibrate."""


def efficientnet_lite0(photographs: str) -> Case:
    """EfficientNet-Lite0; of even photographs 300 calibrate, the odd ones judge."""
    subject = subjects.efficientnet_lite0(photographs)
    images = torch.cat([inputs for inputs, _ in subject.tuning])[:PHOTOGRAPHS]
    batches = [(inputs, None) for inputs in images.split(20)]
    subject = subjects.Subject(subject.model, batches, batches, subject.test)
    return classifier(subject, subject.test, LITE)


def efficientnet_lite0_held_out(photographs: str) -> Case:
    """The same, for choices: of even photographs 300 calibrate and the other 200 judge."""
    subject = subjects.efficientnet_lite0(photographs)
    images = torch.cat([inputs for inputs, _ in subject.tuning])
    labels = torch.cat([known for _, known in subject.tuning if known is not None])
    batches = [(inputs, None) for inputs in images[:PHOTOGRAPHS].split(20)]
    test = list(zip(images[PHOTOGRAPHS:].split(20), labels[PHOTOGRAPHS:].split(20), strict=True))
    subject = subjects.Subject(subject.model, batches, batches, test)
    return classifier(subject, test, LITE)


TEXTS = 800, 400
"""That calibrate, and that judge."""
SOME = 600
"""That calibrate where others of the first judge."""
TOKENS = 48
"""In a text at most; longer ones are cut."""


def sentences(folder: str) -> Case:
    """all-MiniLM-L6-v2, which embeds sentences; transformers tokenizes and builds it.

    Sentences are those of Python's language reference, which comes with Python. 1 - cosine is
    between the embeddings of the decoded network and of the original; the nearest neighbour is
    among the other sentences that judge.

    Args:
        folder: with `model.safetensors`, `config.json` and `tokenizer.json`.
    """
    return _sentences(folder, slice(0, TEXTS[0]), slice(TEXTS[0], sum(TEXTS)))


def sentences_held_out(folder: str) -> Case:
    """The same, for choices: of the sentences that calibrate 600 do, and the other 200 judge."""
    return _sentences(folder, slice(0, SOME), slice(SOME, TEXTS[0]))


def _sentences(folder: str, calibrating: slice, judging: slice) -> Case:
    from transformers import AutoModel, AutoTokenizer

    text = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
    whole = list(dict.fromkeys(s for s in text.split(". ") if 5 <= len(s.split()) <= TOKENS))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0)).tolist()
    options = {"padding": True, "truncation": True, "max_length": TOKENS, "return_tensors": "pt"}
    real, test = (
        [
            dict(tokenizer([whole[i] for i in chosen[start : start + 50]], **options))
            for start in range(0, len(chosen), 50)
        ]
        for chosen in (order[calibrating], order[judging])
    )
    bert = AutoModel.from_pretrained(folder).eval()
    return Case(bert, {"tokens": 32}, real, real, _Neighbours(bert, test).loss)


class _Neighbours:
    """Judges embeddings of sentences."""

    def __init__(self, bert: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> None:
        self._bert = bert
        self._batches = batches
        self._own = {name: tensor.clone() for name, tensor in bert.state_dict().items()}
        self._original = self._embeddings()

    def loss(self, state: State) -> Loss:
        """What a state dict does to the embeddings."""
        self._bert.load_state_dict(state)
        embeddings = self._embeddings()
        self._bert.load_state_dict(self._own)
        apart = 1 - (embeddings * self._original).sum(1)
        stays = self._nearest(embeddings) == self._nearest(self._original)
        error = 1.96 * float(apart.std()) / len(apart) ** 0.5
        return Loss(float(apart.mean()), error, 100 * float(stays.float().mean()))

    @torch.no_grad()
    def _embeddings(self) -> Tensor:
        """Of length 1, float32 (sentences, 384)."""
        means = []
        for batch in self._batches:
            there = batch["attention_mask"][..., None]
            states = self._bert(**batch).last_hidden_state
            means.append((states * there).sum(1) / there.sum(1))
        return nn.functional.normalize(torch.cat(means), dim=1)

    @staticmethod
    def _nearest(embeddings: Tensor) -> Tensor:
        return (embeddings @ embeddings.T).fill_diagonal_(-2).argmax(1)


CROPS = 4
"""Of a photograph."""
FACE = {"size": 48, "mean": 127.5, "std": 128.0}


def faces(weights: str, photographs: str) -> Case:
    """The last network of MTCNN, which finds faces and their landmarks; of `facenet-pytorch`.

    Squares of random place and side are cut out of the photographs: of even ones they calibrate,
    of odd ones they judge.

    Args:
        weights: `onet.pt`.
        photographs: as of `subjects.efficientnet_lite0`.
    """
    rng = np.random.default_rng(0)
    halves: tuple[list[Any], list[Any]] = ([], [])
    for number, image in _photographs(photographs):
        for _ in range(CROPS):
            side = int(rng.integers(int(FACE["size"]), min(image.size) + 1))
            left, top = (int(rng.integers(n - side + 1)) for n in image.size)
            box = (left, top, left + side, top + side)
            cut = image.resize((48, 48), Image.Resampling.BOX, box)
            halves[number % 2].append(np.asarray(cut, np.float32))
    real, test = (_batches(half, FACE, 50) for half in halves)
    return _case(FaceNet(weights), FACE, real, test)


PEOPLE = {"size": 320, "mean": 0.0, "std": 255.0}
DETECTED = 150
"""Photographs that calibrate the detector, and as many that judge it."""


def detector(graph: str, photographs: str) -> Case:
    """NudeNet's detector of parts of people; 150 even photographs calibrate, 150 odd ones judge.

    Args:
        graph: `320n.onnx`.
        photographs: as of `subjects.efficientnet_lite0`.
    """
    halves: tuple[list[Any], list[Any]] = ([], [])
    for number, image in _photographs(photographs):
        scaled = image.resize((320, 320), Image.Resampling.BICUBIC)
        halves[number % 2].append(np.asarray(scaled, np.float32))
    real, test = (_batches(half[:DETECTED], PEOPLE, 10) for half in halves)
    return _case(Detector(graph), PEOPLE, real, test)


def _photographs(archive: str) -> Iterator[tuple[int, Image.Image]]:
    """Numbers and pictures in the order of their names."""
    with zipfile.ZipFile(archive) as file:
        for name in sorted(n for n in file.namelist() if Path(n).stem.isdigit()):
            image = Image.open(io.BytesIO(file.read(name))).convert("RGB")
            yield int(Path(name).stem), image


def _batches(images: Sequence[Any], made: Mapping[str, Any], size: int) -> Sequence[Tensor]:
    """Batches (size, 3, height, width) of pictures that are normalised as a network takes them."""
    values = (np.stack(images) - made["mean"]) / np.float32(made["std"])
    return torch.from_numpy(values).float().permute(0, 3, 1, 2).contiguous().split(size)


def _case(
    model: nn.Module, made: Mapping[str, Any], real: Sequence[Tensor], test: Sequence[Tensor]
) -> Case:
    return Case(model.eval(), made, real, real, _Outputs(model, test).loss)


class _Outputs:
    """Judges by the squared error of all outputs, each over its variance."""

    def __init__(self, model: nn.Module, batches: Sequence[Tensor]) -> None:
        self._model = model
        self._batches = batches
        self._own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self._original = self._outputs()

    def loss(self, state: State) -> Loss:
        """What a state dict does to the outputs."""
        self._model.load_state_dict(state)
        outputs = self._outputs()
        self._model.load_state_dict(self._own)
        parts = [
            (z - y).square().sum(1) / (y - y.mean(0)).square().sum(1).mean()
            for y, z in zip(self._original, outputs, strict=True)
        ]
        apart = torch.stack(parts).mean(0)
        stays = outputs[-1].argmax(1) == self._original[-1].argmax(1)
        error = 1.96 * float(apart.std()) / len(apart) ** 0.5
        return Loss(float(apart.mean()), error, 100 * float(stays.float().mean()))

    @torch.no_grad()
    def _outputs(self) -> list[Tensor]:
        """Each (samples, values)."""
        given = [self._model(batch) for batch in self._batches]
        several = [one if isinstance(one, tuple) else (one,) for one in given]
        return [torch.cat(each).flatten(1) for each in zip(*several, strict=True)]
