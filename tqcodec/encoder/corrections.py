"""Corrections: side tensors that make up for what quantization does to the mean of an output.

With W^ decoded, g the gains of the rows, mu the mean input and d = (W - g W^) mu, W x is nearest to
g W^ x + d. A bias takes up d. A batch normalisation behind the layer takes up both, its weight g
and its running mean m, which becomes (m - d) / g: the bias correction of Young, *Foundations of LLM
Compression* (arXiv 2409.02026), and the gain that mends shrinkage, at no cost in the file. In
inference form, whose mean stays 0, its bias b becomes b + w d, with its weight w before the gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.matrix.draft import Draft
from tqcodec.encoder.statistics import WeightStatistics
from tqcodec.encoder.tensor import Item, Source
from tqcodec.format.dtypes import round_to, to_float


def adjustable(items: Sequence[Item]) -> set[str]:
    """Names of the vectors that may be changed: not what must be exact, nor what is tied."""
    tied = {item.same_as for item in items}
    return {item.name for item in items if item.is_adjustable and item.name not in tied}


def corrected(
    sources: Mapping[str, Source],
    statistics: Mapping[str, WeightStatistics],
    drafts: Mapping[str, Draft],
    names: set[str],
) -> dict[str, NDArray[np.unsignedinteger]]:
    """Bit patterns of the side tensors that change.

    Args:
        sources: all tensors.
        statistics: of the matrices.
        drafts: of the matrices.
        names: of the side tensors that may be changed.
    """
    values: dict[str, NDArray[np.float64]] = {}

    def value(name: str | None, rows: int) -> NDArray[np.float64] | None:
        if name is None or name not in names or name not in sources:
            return None
        source = sources[name]
        if not source.dtype.is_float or source.patterns.shape != (rows,):
            return None
        return values.setdefault(name, to_float(source.patterns, source.dtype).astype(np.float64))

    for name, draft in drafts.items():
        effect = draft.effect
        if effect is None:
            continue
        one, rows = statistics[name], len(effect.gains)
        shifted, scaled = value(one.shift, rows), value(one.gain, rows)
        if shifted is None:
            continue
        if one.behind:
            if scaled is not None:
                shifted += scaled * (effect.wanted - effect.gains * effect.found)
                scaled *= effect.gains
        elif one.shift_sign < 0 and scaled is not None:
            shifted -= effect.wanted - effect.gains * effect.found
            shifted /= effect.gains
            scaled *= effect.gains
        else:
            shifted += one.shift_sign * (effect.wanted - effect.found)
    found = {}
    for name, new in values.items():
        dtype = sources[name].dtype
        found[name] = round_to(np.clip(new, -dtype.largest, dtype.largest), dtype)
    return found
