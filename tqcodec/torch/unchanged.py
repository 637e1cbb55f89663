"""A network that is run by us and left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from tqcodec.torch.batches import modes_of
from tqcodec.torch.calibration.layers import version_of


class Buffers:
    """The buffers of a network as they are now.

    Networks that count, or gather statistics of their own, change them when they run.
    """

    def __init__(self, model: nn.Module) -> None:
        self._held = [(module, dict(module._buffers.items())) for module in model.modules()]
        self._values = [(buffer, buffer.clone()) for buffer in model.buffers()]
        self._versions = [version_of(buffer) for buffer, _ in self._values]

    def restore(self) -> None:
        """Bring back those that a run has changed or replaced."""
        for module, buffers in self._held:
            if isinstance(module, torch.jit.ScriptModule):
                for name, buffer in buffers.items():
                    setattr(module, name, buffer)
            else:
                module._buffers.update(buffers)
        for i, (buffer, value) in enumerate(self._values):
            if version_of(buffer) != self._versions[i] or buffer.is_inference():
                with torch.no_grad(), torch.inference_mode(buffer.is_inference()):
                    buffer.copy_(value)
                self._versions[i] = version_of(buffer)


@contextmanager
def unchanged(model: nn.Module, device: torch.device, seed: int) -> Iterator[Buffers]:
    """Evaluation mode, activations with gradient and weights without, as long as it lasts.

    Gives the buffers of before, which whoever runs it several times restores in between.
    """
    modes = modes_of(model)
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buffers = Buffers(model)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)  # for networks and loaders that draw
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
            buffers.restore()
