"""Pupil: the network that is trained, and the file that it makes at any moment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray
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
from tqcodec.torch.checkpoint import origins, to_arrays, to_tensor
from tqcodec.torch.retraining.latent import Latent
from tqcodec.torch.versions import versions_of

FLOAT32_BITS = 23  # of a mantissa
STATISTICS = ("running_mean", "running_var")


class Pupil:
    """A network whose weights follow from latents, and what else of it is trained.

    The network holds the numbers that the file will have: weights are set from the latents and
    vectors from their master copies (`assign`); gradients by them are the modules' own. So modules
    of any kind run as they are.

    Args:
        model: the original; it is not changed.
        start: a file of it by the uniform quantizer, from which the training starts.
        settings: of the file that is to come.

    Attributes:
        network: float32 copy of the model, in evaluation mode.
        latents: of the matrices that are trained, by name in the state dict.
        vectors: master copies of the vectors that are trained, by name.
        parameters: of the network, those of latents and vectors, by name.
        weights: elements of all weight matrices.
    """

    def __init__(self, model: nn.Module, start: bytes, settings: Settings) -> None:
        self.network = to_evaluation(copied(model)).float()
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
        metadata = {**versions_of(model.state_dict()), **dict(settings.metadata)}
        self._settings = replace(settings, metadata=tuple(metadata.items()))
        self._arrays = to_arrays(model.state_dict())
        self._origins = origins(model)
        self._types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        self._rounds = False
        self.latents: dict[str, Latent] = {}
        self.vectors: dict[str, Tensor] = {}
        self.parameters: dict[str, Tensor] = {}
        self._aliases: dict[str, str] = {}  # names of one parameter that the state dict has twice
        self._adopt(start)
        self.assign()

    def _adopt(self, start: bytes) -> None:
        """Take latents, vectors and the values of all that is not trained from a file."""
        state = self.network.state_dict(keep_vars=True)
        container = Container.of(start, EVERYTHING)
        sources = self._sources()
        planned = {one.name: one for one in make_plan(sources, self._settings, {})}
        self.weights = sum(s.patterns.size for s in sources if planned[s.name].is_weight)
        first: dict[int, str] = {}
        for entry in container.directory.entries:
            name, tensor = entry.name, state[entry.name]
            if not isinstance(tensor, nn.Parameter) or not tensor.is_floating_point():
                continue
            self._aliases[name] = first.setdefault(id(tensor), name)
            if self._aliases[name] != name:
                continue
            if entry.coding == Coding.TRANSFORM and entry.same_as is None:
                record, weights = container.record(entry), tensor.detach()
                self.latents[name] = Latent(record, entry.shape, tensor.device, weights)
            elif planned[name].is_adjustable or (planned[name].same_as and tensor.ndim == 1):
                self.vectors[name] = tensor.detach().clone()
            elif planned[name].is_weight and entry.same_as is None:
                # A small matrix with short mantissas: these stay.
                patterns = container.decode(entry)
                self._arrays[name] = patterns.view(self._arrays[name].dtype)
                tensor.data.copy_(to_tensor(self._arrays[name]))
                continue
            else:
                continue
            self.parameters[name] = tensor.requires_grad_()

    @torch.no_grad()
    def assign(self) -> None:
        """Give the network the weights of the latents, and the vectors as the file has them."""
        for name, latent in self.latents.items():
            weights = latent.weights().to(self._types[name])
            self.parameters[name].copy_(weights)
        for name, vector in self.vectors.items():
            self.parameters[name].copy_(self._rounded(vector) if self._rounds else vector)

    def _rounded(self, vector: Tensor) -> Tensor:
        """A vector with as much of its mantissas as the file keeps."""
        kept = self._settings.side_bits
        if kept is None or kept >= FLOAT32_BITS:
            return vector
        mantissa, exponent = torch.frexp(vector)
        return torch.ldexp(torch.round(mantissa * 2.0 ** (kept + 1)), exponent - (kept + 1))

    @torch.no_grad()
    def freeze(self) -> None:
        """Settle the statistics of normalisations in the form of the file; round vectors from now.

        From here on the network is what a decoder will make, but for rounding in float32.
        """
        state = self.network.state_dict()
        for name in state:
            if name.rpartition(".")[2] in STATISTICS and name in self._arrays:
                self._arrays[name] = _like(state[name], self._arrays[name])
        for name, vector in self.vectors.items():
            self._arrays[name] = _like(vector, self._arrays[name])
        for name, first in self._aliases.items():
            self._arrays[name] = self._arrays[first]
        if self._settings.inference:
            folded = folding.fold(self.network, self._arrays, self._settings)
            self._arrays, self._origins = folded.arrays, folded.origins(self._origins)
            if not folded.constants:
                self._settings = replace(self._settings, inference=False)
        for name in state:
            if name.rpartition(".")[2] in STATISTICS or name in self.vectors:
                state[name].copy_(to_tensor(self._arrays[name]))
        for name in self.vectors:
            self.vectors[name] = self.parameters[name].detach().clone()
        self._rounds = True
        self.assign()

    def _sources(self) -> list[Source]:
        """The tensors as a decoder will make them."""
        found: dict[str, Source] = {}
        for name, array in self._arrays.items():
            first = self._aliases.get(name, name)
            dtype, patterns = patterns_of(name, array)
            if first in found:
                patterns = found[first].patterns
            elif name in self.latents:
                patterns = self.latents[name].patterns(dtype)
            elif name in self.vectors:
                vector = self.vectors[name]
                values = (self._rounded(vector) if self._rounds else vector).double()
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
            "latents": {n: (one.values, one.log_scale) for n, one in self.latents.items()},
            "levels": {n: [torch.from_numpy(v) for v in o.levels] for n, o in self.latents.items()},
            "vectors": self.vectors,
            "network": self.network.state_dict(),
            "rounds": self._rounds,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        for name, (values, log_scale) in state["latents"].items():
            self.latents[name].values.copy_(values)
            self.latents[name].log_scale.copy_(log_scale)
            levels = [level.numpy() for level in state["levels"][name]]
            self.latents[name].levels = levels[0], levels[1], levels[2]
        self.network.load_state_dict(state["network"])
        for name, vector in state["vectors"].items():
            self.vectors[name].copy_(vector)
        if state["rounds"]:
            self.freeze()
            for name, vector in state["vectors"].items():
                self.vectors[name].copy_(vector)
        self.assign()


def _like(tensor: Tensor, array: NDArray[Any]) -> NDArray[Any]:
    """The numbers of a tensor in the type of an array."""
    return tensor.detach().cpu().numpy().astype(array.dtype)
