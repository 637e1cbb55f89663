"""Lossless coding of the float32 weights and of their bfloat16 cast."""

from __future__ import annotations

import time
from math import nan
from pathlib import Path
from typing import Any

import zstandard
from safetensors.numpy import save

from benchmarks.compare.network import Network
from benchmarks.compare.results import Row
from benchmarks.workers.process import Process, Program

_DTYPES = {"float32": 4, "bfloat16": 2}


def lossless_rows(network: Network, python: Path, peers_python: Path) -> list[Row]:
    """Put tqcodec, ZipNN and zstd side by side on each dtype."""
    tqcodec = Program(python, "tqcodec")
    zipnn = Program(peers_python, "zipnn")
    rows = []
    for dtype, width in _DTYPES.items():
        rows.append(_row(network, f"{dtype}, uncompressed", width * network.parameters))
        rows.append(_codec_row(network, "tqcodec", tqcodec, dtype, {"lossless": True}))
        rows.append(_codec_row(network, "ZipNN", zipnn, dtype, {"bytearray_dtype": dtype}))
        rows.append(_zstd_row(network, dtype))
    return rows


def _codec_row(
    network: Network, name: str, program: Program, dtype: str, settings: dict[str, Any]
) -> Row:
    with Process(program) as process:
        process.order("warm_up", settings=settings)
        process.order("load", path=str(network.path), dtype=dtype)
        encoded = process.order("encode", settings=settings, path=network.scratch)
        decoded = process.order("decode", path=network.scratch)
    if not decoded["exact"]:
        raise RuntimeError(f"{name} is not lossless on {network.name} as {dtype}")
    times = encoded["seconds"], decoded["seconds"]
    return _row(network, f"{dtype}, {name}", encoded["bytes"], *times)


def _zstd_row(network: Network, dtype: str) -> Row:
    image = save({name: array.astype(dtype) for name, array in network.tensors.items()})
    start = time.process_time()
    data = zstandard.ZstdCompressor(level=19).compress(image)
    middle = time.process_time()
    zstandard.ZstdDecompressor().decompress(data)
    times = middle - start, time.process_time() - middle
    return _row(network, f"{dtype}, zstd -19", len(data), *times)


def _row(network: Network, codec: str, size: int, encode: float = nan, decode: float = nan) -> Row:
    """Return the row of `size` bytes that took so many seconds to encode and to decode."""
    return Row(
        section="lossless",
        network=network.name,
        codec=codec,
        bytes=size,
        bits_per_parameter=8 * size / network.parameters,
        encode_speed=network.parameters / encode / 1e6,
        decode_speed=network.parameters / decode / 1e6,
    )
