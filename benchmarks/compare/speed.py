"""Encode and decode speed with one worker, and peak memory, of the lossy codecs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.compare.contenders import Contender
from benchmarks.compare.network import Network
from benchmarks.compare.results import Row
from benchmarks.compare.sizes import Points
from benchmarks.workers.process import Process

Run = tuple[Contender, dict[str, Any]]
"""A contender with the settings to be timed."""


def speed_rows(
    network: Network, contenders: Sequence[Contender], points: Points, mse: float, repeats: int
) -> list[Row]:
    """Time the contenders at the knobs nearest to `mse`, then weigh each in fresh processes."""
    runs = [(c, c.settings(points[c.name, mse].nearest.knob)) for c in contenders]
    seconds = _best_seconds(network, runs, repeats)
    rows = []
    for contender, settings in runs:
        nearest = points[contender.name, mse].nearest
        encode_seconds, decode_seconds = seconds[contender.name]
        encode_growth, decode_growth = _growths(network, contender, settings)
        row = Row(
            section="speed",
            network=network.name,
            codec=contender.name,
            mse=nearest.mse,
            bytes=nearest.bytes,
            bits_per_parameter=8 * nearest.bytes / network.parameters,
            encode_speed=network.parameters / encode_seconds / 1e6,
            decode_speed=network.parameters / decode_seconds / 1e6,
            encode_memory=encode_growth / network.float_bytes,
            decode_memory=decode_growth / network.float_bytes,
        )
        rows.append(row)
    return rows


def _best_seconds(
    network: Network, runs: Sequence[Run], repeats: int
) -> dict[str, tuple[float, float]]:
    """Return the fewest CPU seconds to encode and decode; the codecs take turns."""
    encodes, decodes = defaultdict(list), defaultdict(list)
    with ExitStack() as stack:
        started = [(run, stack.enter_context(Process(run[0].program))) for run in runs]
        for (_, settings), process in started:
            process.order("warm_up", settings=settings)
            process.order("load", path=str(network.path))
        for _ in range(repeats):
            for (contender, settings), process in started:
                encoded = process.order("encode", settings=settings, path=network.scratch)
                decoded = process.order("decode", path=network.scratch)
                encodes[contender.name].append(encoded["seconds"])
                decodes[contender.name].append(decoded["seconds"])
    return {name: (min(encodes[name]), min(decodes[name])) for name in encodes}


def _growths(network: Network, contender: Contender, settings: dict[str, Any]) -> tuple[int, int]:
    """Return how much memory grows to encode, the network included, and to decode."""
    with Process(contender.program) as process:
        process.order("warm_up", settings=settings)
        process.order("load", path=str(network.path))
        encoded = process.order("encode", settings=settings, path=network.scratch)
    with Process(contender.program) as process:
        process.order("warm_up", settings=settings)
        decoded = process.order("decode", path=network.scratch)
    return encoded["growth"], decoded["growth"]
