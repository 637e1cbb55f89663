"""What tqcodec is to reach against NNCodec in the same run, and whether it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.common.verdicts import Verdict
from benchmarks.compare.network import Network
from benchmarks.compare.results import Row

DEFAULT = "tqcodec"
FAST = "tqcodec effort 1"

SMALLER_ON_3X3 = 0.92
DECODE_SPEEDUP = 3.0
ENCODE_SPEEDUPS = {FAST: 8.0, DEFAULT: 2.0}
ENCODE_MEMORY = 3.0
DECODE_MEMORY = 2.0


def judge(network: Network, rows: Sequence[Row]) -> list[Verdict]:
    """Hold the rows of one network against every target."""
    sizes = [row for row in rows if row.section == "size" and row.codec == DEFAULT]
    speeds = {row.codec: row for row in rows if row.section == "speed"}
    verdicts = [*_sizes(network, sizes), *_speeds(speeds), *_memory(speeds)]
    return [Verdict(network.name, *verdict) for verdict in verdicts]


_Judged = Iterator[tuple[str, float, bool]]


def _sizes(network: Network, rows: Sequence[Row]) -> _Judged:
    limit = SMALLER_ON_3X3 if network.is_3x3 else 1.0
    for row in rows:
        target = f"bytes at {row.mse:g} <= {limit:g} NNCodec"
        yield target, row.to_nncodec, row.to_nncodec <= limit


def _speeds(rows: dict[str, Row]) -> _Judged:
    for peer in (row for row in rows.values() if row.codec.startswith("NNCodec")):
        for codec, factor in ENCODE_SPEEDUPS.items():
            speedup = rows[codec].encode_speed / peer.encode_speed
            yield f"{codec}: encode >= {factor:g} {peer.codec}", speedup, speedup >= factor
            speedup = rows[codec].decode_speed / peer.decode_speed
            target = f"{codec}: decode >= {DECODE_SPEEDUP:g} {peer.codec}"
            yield target, speedup, speedup >= DECODE_SPEEDUP


def _memory(rows: dict[str, Row]) -> _Judged:
    for row in (rows[codec] for codec in (FAST, DEFAULT) if codec in rows):
        codec = row.codec
        target = f"{codec}: encode memory < {ENCODE_MEMORY:g} float32"
        yield target, row.encode_memory, row.encode_memory < ENCODE_MEMORY
        target = f"{codec}: decode memory < {DECODE_MEMORY:g} float32"
        yield target, row.decode_memory, row.decode_memory < DECODE_MEMORY
