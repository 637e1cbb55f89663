"""A network that is run by us and left as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tqcodec.torch.batches import modes_of
from tqcodec.torch.calibration.layers import version_of
from tqcodec.torch.checkpoint import PLAIN


class Buffers:
    """The buffers of a network as they are now, and perhaps parameters.

    Networks that count, or gather statistics of their own, change them when they run; others bring
    weights to a length. What a run adds or puts in their place is taken away.

    Args:
        model: the network.
        parameters: of it, whose values are kept as well; those of embeddings that shorten what they
            look up (`max_norm`) are anyway.
    """

    def __init__(self, model: nn.Module, parameters: Iterable[Tensor] = ()) -> None:
        self._held = [
            (module, dict(module._buffers.items()), dict(module._parameters.items()))
            for module in model.modules()
        ]
        shortened = (m.weight for m in model.modules() if getattr(m, "max_norm", None) is not None)
        buffers = list(model.buffers())
        tensors = (*buffers, *parameters, *(t for t in shortened if isinstance(t, Tensor)))
        self._values = [(tensor, tensor.detach().clone()) for tensor in tensors]
        self._marks = [_mark(tensor) for tensor in tensors]
        self._looked_at = len(buffers)  # the first of these

    def restore(self, last: bool = False) -> None:
        """Bring back those that a run has changed or replaced.

        Kernels of fake quantization write without telling autograd. What lies on another device is
        looked through for that only the `last` time, since it waits for the device.
        """
        for module, buffers, parameters in self._held:
            if isinstance(module, torch.jit.ScriptModule):
                for name, buffer in buffers.items():
                    setattr(module, name, buffer)
                continue
            module._buffers.clear()
            module._buffers.update(buffers)
            module._parameters.clear()
            module._parameters.update(parameters)
        for i, (tensor, value) in enumerate(self._values):
            look = i < self._looked_at and (last or tensor.device.type == "cpu")
            look = look and _has_plain_memory(tensor)
            told = _mark(tensor) != self._marks[i] or tensor.is_inference()
            if told or (look and not torch.equal(_bytes(tensor), _bytes(value))):
                with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                    tensor.copy_(value)
                self._marks[i] = _mark(tensor)


def _mark(tensor: Tensor) -> tuple[int, int]:
    """Changes when a tensor is overwritten, or gets other memory by `tensor.data`."""
    return version_of(tensor), tensor.data_ptr() if _has_memory(tensor) else 0


def _has_memory(tensor: Tensor) -> bool:
    return type(tensor) in PLAIN and tensor.layout == torch.strided and not tensor.is_meta


def _has_plain_memory(tensor: Tensor) -> bool:
    """Whether the numbers are what is in memory."""
    return _has_memory(tensor) and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())


def _bytes(tensor: Tensor) -> Tensor:
    """What is in memory, so that not-a-number equals itself."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Torch draws by a seed, on the CPU and the device, and goes on afterwards as if it had not."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def unchanged(model: nn.Module, device: torch.device, seed: int) -> Iterator[Buffers]:
    """Evaluation mode, activations with gradient and weights without, as long as it lasts.

    Gives the buffers of before, which whoever runs it several times restores in between.
    """
    modes = modes_of(model)
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buffers = Buffers(model)
    # The seed is for networks and loaders that draw.
    with seeded(device, seed), torch.inference_mode(False), torch.enable_grad():
        try:
            for module, _ in modes:
                module.training = False
            for parameter in wanted:
                parameter.requires_grad_(False)
            yield buffers
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter in wanted:
                with torch.inference_mode(parameter.is_inference()):  # else torch refuses
                    parameter.requires_grad_()
            buffers.restore(last=True)
