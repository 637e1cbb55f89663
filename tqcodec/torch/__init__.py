"""The verbs of `tqcodec` on PyTorch state dicts. The only package that imports torch.

    data = tqcodec.torch.encode(model, tqcodec.Settings(bits=3))
    model.load_state_dict(tqcodec.torch.decode(data))
    print(tqcodec.torch.compare(model, tqcodec.torch.decode(data), batches))

Better, with inputs that are made from the network where there is no data:

    batches = tqcodec.torch.synthetic_inputs(model, size=224, mean=127, std=128)
    data = tqcodec.torch.encode(model, tqcodec.Settings(bits=3), synthetic=batches)

Tied, non-contiguous and parameter tensors on any device just work; inputs are never changed.
Decoded tensors are on the CPU.
"""

from __future__ import annotations

from tqcodec.encoder.statistics import Statistics
from tqcodec.torch.calibration.calibrate import calibrate
from tqcodec.torch.decoding import StateFile, decode, load, open, stream
from tqcodec.torch.encoding import encode, save
from tqcodec.torch.evaluation import Comparison, Reference, compare
from tqcodec.torch.inference.network import network
from tqcodec.torch.retraining.loop import TrainingMoment
from tqcodec.torch.retraining.recipe import TrainingRecipe
from tqcodec.torch.retraining.retrain import retrain
from tqcodec.torch.synthetic.make import synthetic_inputs
from tqcodec.torch.synthetic.steps import SyntheticRecipe

__all__ = [
    "Comparison",
    "Reference",
    "StateFile",
    "Statistics",
    "SyntheticRecipe",
    "TrainingMoment",
    "TrainingRecipe",
    "calibrate",
    "compare",
    "decode",
    "encode",
    "load",
    "network",
    "open",
    "retrain",
    "save",
    "stream",
    "synthetic_inputs",
]
