"""Student: the network that is trained, and the file that it makes at any moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tqcodec.arrays import dtype_of, patterns_of
from tqcodec.common.progress import Progress
from tqcodec.encoder import given
from tqcodec.encoder.kinds import is_matrix
from tqcodec.encoder.matrix.coding import MOST_SHORTENED
from tqcodec.encoder.matrix.record import as_uniform
from tqcodec.encoder.plan import make_plan
from tqcodec.encoder.settings import Settings
from tqcodec.encoder.side import kept_bits, make_part
from tqcodec.encoder.tensor import Item, Source, Treatment
from tqcodec.errors import EncodeError
from tqcodec.format.dtypes import round_to, to_float
from tqcodec.format.records import CodedTensor
from tqcodec.format.registry import Coding
from tqcodec.torch import folding
from tqcodec.torch.batches import copied, to_evaluation
from tqcodec.torch.checkpoint import Array, origins, to_tensor
from tqcodec.torch.retraining.latent import Latent
from tqcodec.torch.retraining.start import Start
from tqcodec.torch.versions import versions_of


class Student:
    """A network whose weights follow from latents, and what else of it is trained.

    The network holds the numbers that the file will have, but for rounding in float32: weights are
    set from the latents and vectors from master copies (`assign`), and gradients by them are those
    of the modules. So modules of any kind run as they are. All of them are in evaluation mode: what
    is trained is what is shipped.

    Args:
        model: the original; it is not changed.
        start: the file at which the training starts.
        folded: the model's tensors in the form of the file that is to come.
        settings: of the file that is to come.

    Attributes:
        network: float32 copy of the model.
        latents: of the matrices that are trained, by name in the state dict.
        vectors: master copies of the vectors that are trained, by name.
        parameters: of the network, by the name of the latent or vector that all of a list follow.
        weights: elements of all weight matrices.
    """

    def __init__(
        self, model: nn.Module, start: Start, folded: folding.Folded, settings: Settings
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
        self.parameters: dict[str, list[Tensor]] = {}
        self._kept: dict[str, CodedTensor] = {}  # matrices that are no parameters, by a rule
        self._firsts: dict[str, str] = {}  # whose values a parameter has, by all its names
        self._adopt(start)
        self.assign()

    @torch.no_grad()
    def _adopt(self, start: Start) -> None:
        """Take what is trained, and what all else is, from a file.

        Raises:
            EncodeError: it keeps a tensor in a way that does not go with the settings.
        """
        originals, self._arrays = self._arrays, dict(start.arrays)
        # Parameters by their own names, since state dicts of TorchScript, say, hold others.
        parameters = dict(self.network.named_parameters(remove_duplicate=False))
        state = {**self.network.state_dict(keep_vars=True)}
        state.update((name, one) for name, one in parameters.items() if name in state)
        known = {id(one) for one in (*parameters.values(), *self.network.parameters())}
        sources = self._sources(originals)
        items = {item.name: item for item in make_plan(sources, self._settings, {})}
        self._items = items
        self.weights = sum(s.patterns.size for s in sources if items[s.name].is_weight)
        entries = start.container.directory.entries
        by_name = {entry.name: entry for entry in entries}
        firsts: dict[int, str] = {}
        trained: dict[str, str] = {}  # latents by the name of what holds them in the file
        kept: set[str] = set()
        for name, array in self._arrays.items():
            entry, tensor = by_name[name], state[name]
            if tensor.is_floating_point():
                tensor.copy_(to_tensor(array))
            source = entry if entry.same_as is None else entries[entry.same_as]
            item = items[items[name].same_as or name]
            coded = source.coding == Coding.TRANSFORM
            if start.given:
                _check_kept(item, name, coded, array, originals[name])
            if id(tensor) not in known or not tensor.is_floating_point():
                if coded and source.name not in kept:
                    self._kept[name] = as_uniform(start.container.record(source))
                    kept.add(source.name)
                continue
            first = firsts.setdefault(id(tensor), name)
            if first != name:  # all names of a parameter follow the same
                self._firsts[name] = self._firsts[first]
                continue
            # Equal matrices are one in the file: they stay so.
            leader = trained.get(source.name, name) if coded else name
            self._firsts[name] = leader
            if leader == name:
                if coded:
                    record = start.container.record(source)
                    aim = None if start.given else to_tensor(originals[name])
                    self.latents[name] = Latent(record, entry.shape, tensor.device, aim)
                    trained[source.name] = name
                elif item.is_adjustable and not is_matrix(entry.shape):
                    self.vectors[name] = tensor.detach().clone()
                else:  # kept exactly, or a matrix of few values, such as zeros
                    continue
            self.parameters.setdefault(leader, []).append(tensor.requires_grad_())

    @torch.no_grad()
    def assign(self) -> None:
        """Give the network the weights of the latents and the vectors, as a decoder has them."""
        vectors = self._shortened()
        for name, parameters in self.parameters.items():
            if name in vectors:
                values = to_tensor(vectors[name].view(self._arrays[name].dtype))
            else:
                values = self.latents[name].weights().to(self._types[name])
            for parameter in parameters:
                parameter.copy_(values)

    def _shortened(self) -> dict[str, NDArray[np.unsignedinteger]]:
        """Bit patterns of the vectors, with as much of their mantissas as the file keeps."""
        if not self.vectors:
            return {}
        vectors = list(self.vectors.values())
        lengths, device = [vector.numel() for vector in vectors], vectors[0].device
        # At once, since each transfer from another device would wait for it.
        flat = torch.cat([vector.flatten().to(device) for vector in vectors]).cpu()
        found = {}
        for (name, vector), part in zip(self.vectors.items(), flat.split(lengths), strict=True):
            dtype = dtype_of(name, self._arrays[name])
            patterns = round_to(part.double().numpy(), dtype)
            kept = make_part(patterns, dtype, kept_bits(self._items[name], self._settings))
            found[name] = kept.patterns.reshape(vector.shape)
        return found

    def _sources(self, arrays: Mapping[str, Array] | None = None) -> list[Source]:
        """The tensors as a decoder will make them, or others."""
        found: dict[str, Source] = {}
        vectors = self._shortened()
        for name, array in (arrays or self._arrays).items():
            dtype, patterns = patterns_of(name, array)
            first = self._firsts.get(name, name)
            if first in found:
                patterns = found[first].patterns
            elif name in self.latents:
                patterns = self.latents[name].patterns(dtype)
            elif name in vectors:
                patterns = vectors[name]
            found[name] = Source(name, dtype, patterns, self._origins.get(name))
        return list(found.values())

    def _records(self) -> dict[str, CodedTensor]:
        return {**self._kept, **{name: latent.record() for name, latent in self.latents.items()}}

    def size(self) -> int:
        """Bytes of the file as it would be now."""
        return given.lay_out(self._sources(), self._records(), self._settings).size

    @torch.no_grad()
    def least(self) -> int:
        """Bytes of the file if all integers were 0."""
        values = {name: latent.values for name, latent in self.latents.items()}
        for latent in self.latents.values():
            latent.values = torch.zeros_like(latent.values)
        try:
            return self.size()
        finally:
            for name, latent in self.latents.items():
                latent.values = values[name]

    def file(self, progress: Progress | None = None) -> bytes:
        """The file as it is now, verified.

        Raises:
            EncodeError: the last steps left numbers that are not finite, as too large ones do.
        """
        sources = self._sources()
        for source in sources:
            first = self._firsts.get(source.name)
            if (
                first in self.parameters
                and not np.isfinite(to_float(source.patterns, source.dtype)).all()
            ):
                raise EncodeError(f"retrain: {source.name!r} is not finite at the end: lower rates")
        return given.encode(sources, self._records(), self._settings, progress)

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


def _check_kept(item: Item, name: str, coded: bool, array: Array, original: Array) -> None:
    """Refuse a tensor that the user's start keeps in another way than the file is to."""
    if item.treatment == Treatment.TRANSFORM:
        if not coded and array.size > MOST_SHORTENED:
            raise EncodeError(
                f"start: {name!r} is kept as numbers there, and cannot be trained: a rule 'exact' "
                "leaves it so, or start at another file"
            )
    elif not item.is_adjustable:
        _, (one, other) = zip(*(patterns_of(name, a) for a in (array, original)), strict=True)
        if not np.array_equal(one, other):
            raise EncodeError(
                f"start: {name!r} is to be exact, and is not that of the network there: start at a "
                "file of this network and with the same rules"
            )
