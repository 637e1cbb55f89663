"""Pupil: the network that is trained, and the file that it makes at any moment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tqcodec.arrays import patterns_of
from tqcodec.common.progress import Progress
from tqcodec.encoder import given
from tqcodec.encoder.plan import make_plan
from tqcodec.encoder.settings import Settings
from tqcodec.encoder.tensor import Source
from tqcodec.format.container import EVERYTHING, Container
from tqcodec.format.dtypes import round_to
from tqcodec.format.records import CodedTensor
from tqcodec.format.registry import Coding
from tqcodec.torch import folding
from tqcodec.torch.batches import copied, to_evaluation
from tqcodec.torch.checkpoint import Array, origins, to_tensor
from tqcodec.torch.retraining.latent import Latent
from tqcodec.torch.versions import versions_of

FLOAT32_BITS = 23  # of a mantissa


class Pupil:
    """A network whose weights follow from latents, and what else of it is trained.

    The network holds the numbers that the file will have, but for rounding in float32: weights are
    set from the latents and vectors from master copies (`assign`), and gradients by them are those
    of the modules. So modules of any kind run as they are. All of them are in evaluation mode: what
    is trained is what is shipped.

    Args:
        model: the original; it is not changed.
        start: a file of it by the uniform quantizer, with the names and types of `folded`.
        folded: its tensors in the form of the file.
        settings: of the file that is to come.

    Attributes:
        network: float32 copy of the model.
        latents: of the matrices that are trained, by name in the state dict.
        vectors: master copies of the vectors that are trained, by name.
        parameters: of the network, those of latents and vectors, by name.
        weights: elements of all weight matrices.
    """

    def __init__(
        self, model: nn.Module, start: bytes, folded: folding.Folded, settings: Settings
    ) -> None:
        self.network = to_evaluation(copied(model)).float()
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
        state = model.state_dict()
        metadata = {**versions_of(state), **dict(settings.metadata)}
        self._settings = replace(settings, metadata=tuple(metadata.items()))
        self._types = {name: tensor.dtype for name, tensor in state.items()}
        self._arrays: dict[str, Array] = dict(folded.arrays)
        self._origins = folded.origins(origins(model))
        self.latents: dict[str, Latent] = {}
        self.vectors: dict[str, Tensor] = {}
        self.parameters: dict[str, Tensor] = {}
        self._firsts: dict[str, str] = {}  # the first name of each parameter, by all its names
        self._adopt(Container.of(start, EVERYTHING))
        self.assign()

    @torch.no_grad()
    def _adopt(self, start: Container) -> None:
        """Take what is trained, and what all else is, from a file."""
        originals, state = self._arrays.copy(), self.network.state_dict(keep_vars=True)
        sources = self._sources()
        items = {item.name: item for item in make_plan(sources, self._settings, {})}
        self.weights = sum(s.patterns.size for s in sources if items[s.name].is_weight)
        firsts: dict[int, str] = {}
        for entry, patterns in start.decode_all():
            name, tensor = entry.name, state[entry.name]
            self._arrays[name] = patterns.view(originals[name].dtype)
            if tensor.is_floating_point():
                tensor.copy_(to_tensor(self._arrays[name]))
            if not isinstance(tensor, nn.Parameter) or not tensor.is_floating_point():
                continue
            self._firsts[name] = firsts.setdefault(id(tensor), name)
            if self._firsts[name] != name:
                continue
            if entry.coding == Coding.TRANSFORM and entry.same_as is None:
                weights = to_tensor(originals[name])
                self.latents[name] = Latent(
                    start.record(entry), entry.shape, tensor.device, weights
                )
            elif items[name].is_adjustable or items[name].same_as is not None:
                self.vectors[name] = tensor.detach().clone()
            else:  # kept exactly, or a small matrix with short mantissas
                continue
            self.parameters[name] = tensor.requires_grad_()

    @torch.no_grad()
    def assign(self) -> None:
        """Give the network the weights of the latents and the vectors, as a decoder has them."""
        for name, latent in self.latents.items():
            self.parameters[name].copy_(latent.weights().to(self._types[name]))
        for name, vector in self.vectors.items():
            self.parameters[name].copy_(self._rounded(vector).to(self._types[name]))

    def _rounded(self, vector: Tensor) -> Tensor:
        """A vector with as much of its mantissas as the file keeps."""
        kept = self._settings.side_bits
        if kept is None or kept >= FLOAT32_BITS:
            return vector
        mantissa, exponent = torch.frexp(vector)
        return torch.ldexp(torch.round(mantissa * 2.0 ** (kept + 1)), exponent - (kept + 1))

    def _sources(self) -> list[Source]:
        """The tensors as a decoder will make them."""
        found: dict[str, Source] = {}
        for name, array in self._arrays.items():
            dtype, patterns = patterns_of(name, array)
            first = self._firsts.get(name, name)
            if first in found:
                patterns = found[first].patterns
            elif name in self.latents:
                patterns = self.latents[name].patterns(dtype)
            elif name in self.vectors:
                values = self._rounded(self.vectors[name]).double()
                patterns = round_to(values.cpu().numpy(), dtype)
            found[name] = Source(name, dtype, patterns, self._origins.get(name))
        return list(found.values())

    def _records(self) -> dict[str, CodedTensor]:
        return {name: latent.record() for name, latent in self.latents.items()}

    def size(self) -> int:
        """Bytes of the file as it would be now."""
        return given.lay_out(self._sources(), self._records(), self._settings).size

    def file(self, progress: Progress | None = None) -> bytes:
        """The file as it is now, verified."""
        return given.encode(self._sources(), self._records(), self._settings, progress)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "values": {name: one.values for name, one in self.latents.items()},
            "scales": {name: one.log_scale for name, one in self.latents.items()},
            "levels": {n: [torch.from_numpy(v) for v in o.levels] for n, o in self.latents.items()},
            "vectors": self.vectors,
        }

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        for name, latent in self.latents.items():
            latent.values.copy_(state["values"][name])
            latent.log_scale.copy_(state["scales"][name])
            out, inn, taps = (level.numpy() for level in state["levels"][name])
            latent.levels = out, inn, taps
        for name, vector in self.vectors.items():
            vector.copy_(state["vectors"][name])
        self.assign()
