"""Effort: what each of the nine efforts does. No other place asks for the number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from tqcodec.encoder.tables import SIZES


@dataclass(frozen=True)
class Tools:
    """Parts of the encoder that work at every effort.

    They are off only where a benchmark measures what one of them brings (`benchmarks.tools`).

    Attributes:
        feedback: errors of a row are made up for by its later coefficients.
        column_steps: columns have steps of their own.
        gains: steps are mended for what rounding towards zero takes away.
        gradients: metrics know the gradients as they were measured.
        moments: metrics know the moments of inputs and outputs.
        rate_term: the quantizer weighs bits against errors.
        bases: of an axis: ``none``, ``dct``, ``klt``, ``elt``.
    """

    feedback: bool = True
    column_steps: bool = True
    gains: bool = True
    gradients: bool = True
    moments: bool = True
    rate_term: bool = True
    bases: frozenset[str] = frozenset({"none", "dct", "klt", "elt"})


ALL_TOOLS: Final = Tools()


@dataclass(frozen=True)
class Effort:
    """What an encoding does to get a smaller file.

    Attributes:
        trellis: coefficients are quantized along a trellis, not one by one.
        channel_bases: bases are tried for the axes in and out, not for the taps alone.
        lanes: segments of the trellis that a tile has side by side, at least, for decoders that
            advance them together; 1 for the longest segments, which lose the fewest choices.
        table_counts: numbers of frequency tables that are tried.
        slack: how far from the target will do, in tolerances of `target`.
        tools: what else is on.
    """

    trellis: bool
    channel_bases: bool
    lanes: int
    table_counts: tuple[int, ...]
    slack: float
    tools: Tools = ALL_TOOLS


FAST: Final = Effort(trellis=False, channel_bases=False, lanes=1, table_counts=(8, 24), slack=5.0)
USUAL: Final = Effort(trellis=True, channel_bases=True, lanes=256, table_counts=SIZES, slack=1.0)
THOROUGH: Final = replace(USUAL, lanes=1)

EFFORTS: Final[dict[int, Effort]] = {
    1: FAST,
    2: FAST,
    **dict.fromkeys(range(3, 9), USUAL),
    9: THOROUGH,
}
