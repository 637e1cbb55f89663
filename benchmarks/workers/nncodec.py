"""NNCodec (ISO/IEC 15938-17) as a codec process; runs in the environment of the peers.

Must not import tqcodec: the two need different versions of numpy.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.common.tensors import Tensors
from benchmarks.workers.worker import serve

try:
    import torchvision  # noqa: F401  (NNCodec imports it)
except RuntimeError:
    # torchvision's wheel does not load beside the CPU torch: it misses two operators of its own,
    # which nothing here calls. Their schemas are enough.
    _library = torch.library.Library("torchvision", "DEF")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from nncodec import nnc


def encode(tensors: Tensors, settings: dict[str, Any]) -> bytes:
    """Encode without data; `settings` are keyword arguments of NNCodec's `compress`."""
    return bytes(nnc.compress(tensors, bitstream_path=None, return_bitstream=True, **settings))


def decode(data: bytes) -> Tensors:
    """Decode the whole file."""
    return dict(nnc.decompress(bytearray(data)))


if __name__ == "__main__":
    serve(encode, decode)
