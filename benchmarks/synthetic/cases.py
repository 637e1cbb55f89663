"""Networks with real inputs to calibrate with and others that judge, for `compare.py`."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the modules that benchmarks share

import subjects

from tqcodec.torch.evaluation import Reference

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Loss:
    """What a file does to a network, over real inputs that took no part in its making.

    Attributes:
        divergence: KL(float || decoded) of class probabilities in nats, or 1 - cosine of
            embeddings; the mean.
        error: half of its 95 % confidence interval.
        agreement: per cent of the inputs whose first class, or nearest neighbour, stays.
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


def _classifier(subject: subjects.Subject, test: subjects.Batches, made: Mapping[str, Any]) -> Case:
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
    return _classifier(subject, subject.test, CIFAR10)


def cifar10_held_out(code: str, depth: str, train: str) -> Case:
    """The same, for choices: training images judge, others than those that calibrate."""
    subject = subjects.cifar10_held_out(code, depth, train)
    return _classifier(subject, subject.test, CIFAR10)


PHOTOGRAPHS = 300
"""That calibrate."""


def efficientnet_lite0(photographs: str) -> Case:
    """EfficientNet-Lite0; of even photographs 300 calibrate, the odd ones judge."""
    subject = subjects.efficientnet_lite0(photographs)
    images = torch.cat([inputs for inputs, _ in subject.tuning])[:PHOTOGRAPHS]
    batches = [(inputs, None) for inputs in images.split(20)]
    subject = subjects.Subject(subject.model, batches, batches, subject.test)
    return _classifier(subject, subject.test, LITE)


def efficientnet_lite0_held_out(photographs: str) -> Case:
    """The same, for choices: of even photographs 300 calibrate and the other 200 judge."""
    subject = subjects.efficientnet_lite0(photographs)
    images = torch.cat([inputs for inputs, _ in subject.tuning])
    labels = torch.cat([known for _, known in subject.tuning if known is not None])
    batches = [(inputs, None) for inputs in images[:PHOTOGRAPHS].split(20)]
    test = list(zip(images[PHOTOGRAPHS:].split(20), labels[PHOTOGRAPHS:].split(20), strict=True))
    subject = subjects.Subject(subject.model, batches, batches, test)
    return _classifier(subject, test, LITE)


TEXTS = 800, 400
"""That calibrate, and that judge."""
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
    from transformers import AutoModel, AutoTokenizer

    text = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
    whole = list(dict.fromkeys(s for s in text.split(". ") if 5 <= len(s.split()) <= TOKENS))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = [whole[i] for i in order[: sum(TEXTS)]]
    options = {"padding": True, "truncation": True, "max_length": TOKENS, "return_tensors": "pt"}
    batches = [dict(tokenizer(chosen[i : i + 50], **options)) for i in range(0, len(chosen), 50)]
    cut = TEXTS[0] // 50
    bert = AutoModel.from_pretrained(folder).eval()
    judge = _Neighbours(bert, batches[cut:])
    return Case(bert, {"tokens": 32}, batches[:cut], batches[:cut], judge.loss)


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
