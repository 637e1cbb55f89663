"""File bytes at equal error: the lossy codecs and plain rounding on one network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks.common.tensors import matrices, relative_mse
from benchmarks.compare.contenders import Contender
from benchmarks.compare.network import Network
from benchmarks.compare.rates import Curve, Point
from benchmarks.compare.results import Row
from benchmarks.compare.rounding import COMPRESSORS, absmax_rounding, step_reaching, uniform_image
from benchmarks.workers.process import Process

Points = dict[tuple[str, float], Point]
"""What a contender, by its name, reaches at an error."""


def lossy_points(
    network: Network, contenders: Sequence[Contender], errors: Sequence[float]
) -> Points:
    """Measure every contender at every error."""
    points: Points = {}
    for contender in contenders:
        with Process(contender.program) as process:
            curve = Curve(contender, network, process)
            points |= {(contender.name, mse): curve.at(mse) for mse in errors}
    return points


def size_rows(
    network: Network, contenders: Sequence[Contender], points: Points, errors: Sequence[float]
) -> list[Row]:
    """Put the contenders and uniform rounding side by side at each error."""
    rows = []
    for mse in errors:
        best = min(points[c.name, mse].bytes for c in contenders if c.is_nncodec)
        group = [_lossy_row("size", network, c.name, mse, points[c.name, mse]) for c in contenders]
        group += _uniform_rows(network, mse)
        rows += [replace(row, to_nncodec=row.bytes / best) for row in group]
    return rows


def rounding_rows(network: Network, contender: Contender) -> list[Row]:
    """Put rounding to 8 and 4 bits by channel beside `contender` at the errors they have."""
    rows, errors = [], []
    for bits in (8, 4):
        image, rounded = absmax_rounding(network.tensors, bits)
        mse = relative_mse(matrices(network.tensors), rounded)
        rows += list(_compressed("rounding", network, f"int{bits}", mse, image))
        errors.append(mse)
    points = lossy_points(network, [contender], errors)
    rows += [_lossy_row("rounding", network, *key, point) for key, point in points.items()]
    return sorted(rows, key=lambda row: row.mse)


def _uniform_rows(network: Network, mse: float) -> Iterator[Row]:
    image = uniform_image(network.tensors, step_reaching(network.tensors, mse))
    return _compressed("size", network, "uniform", mse, image)


def _compressed(
    section: str, network: Network, rounding: str, mse: float, image: bytes
) -> Iterator[Row]:
    for name, compress in COMPRESSORS.items():
        yield _row(section, network, f"{rounding}, {name}", mse, len(compress(image)), 0.0)


def _lossy_row(section: str, network: Network, codec: str, mse: float, point: Point) -> Row:
    return _row(section, network, codec, mse, point.bytes, point.nearest.vector_mse)


def _row(
    section: str, network: Network, codec: str, mse: float, size: int, vector_mse: float
) -> Row:
    return Row(
        section=section,
        network=network.name,
        codec=codec,
        mse=mse,
        bytes=size,
        bits_per_parameter=8 * size / network.parameters,
        vector_mse=vector_mse,
    )
