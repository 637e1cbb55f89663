"""Integer bases of the discrete cosine transform (chapter 10).

Imports numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

# round(2^10 cos(pi j / 2N)) for j = 0 .. N - 1: the integers of the DCT of length N.
DCT_COSINES: Final = {
    1: (1024,),
    2: (1024, 724),
    3: (1024, 887, 512),
    4: (1024, 946, 724, 392),
    5: (1024, 974, 828, 602, 316),
    6: (1024, 989, 887, 724, 512, 265),
    7: (1024, 998, 923, 801, 638, 444, 228),
    8: (1024, 1004, 946, 851, 724, 569, 392, 200),
    9: (1024, 1008, 962, 887, 784, 658, 512, 350, 178),
    10: (1024, 1011, 974, 912, 828, 724, 602, 465, 316, 160),
    11: (1024, 1014, 983, 931, 861, 774, 671, 554, 425, 288, 146),
    12: (1024, 1015, 989, 946, 887, 812, 724, 623, 512, 392, 265, 134),
    13: (1024, 1017, 994, 957, 907, 843, 766, 679, 582, 476, 363, 245, 123),
    14: (1024, 1018, 998, 967, 923, 867, 801, 724, 638, 545, 444, 338, 228, 115),
    15: (1024, 1018, 1002, 974, 935, 887, 828, 761, 685, 602, 512, 416, 316, 213, 107),
    16: (1024, 1019, 1004, 980, 946, 903, 851, 792, 724, 650, 569, 483, 392, 297, 200, 100),
}


@cache
def dct(length: int) -> NDArray[np.int64]:
    """Synthesis rows of the DCT-II of one length: row k is proportional to cos(pi k (2n+1) / 2N).

    Row 0 is scaled by sqrt(1/2) to the norm of the others: 724 for 1024.
    """
    cosines = DCT_COSINES[length]
    quarter = {**dict(enumerate(cosines)), length: 0}
    rows = np.full((length, length), 724, np.int64)
    for k in range(1, length):
        for n in range(length):
            angle = k * (2 * n + 1) % (4 * length)
            angle = min(angle, 4 * length - angle)
            mirrored = 2 * length - angle
            rows[k, n] = quarter[angle] if angle <= length else -quarter[mirrored]
    return rows


def dct_rows(lengths: Sequence[int]) -> NDArray[np.int64]:
    """Synthesis rows of the DCT over several dimensions: products of those of each."""
    rows = np.ones((1, 1), np.int64)
    for length in lengths:
        rows = np.kron(rows, dct(length))
    return rows
