"""What the directory says: segments, tensors, and all of a file together (chapter 4).

Imports the layers below and the standard library only.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tqcodec.format.dtypes import DType
from tqcodec.format.registry import Coding


def crc(patterns: NDArray[np.unsignedinteger]) -> int:
    """CRC-32 of the little-endian bytes of bit patterns."""
    flat = np.ascontiguousarray(patterns).reshape(-1)
    little = flat.astype(flat.dtype.newbyteorder("<"), copy=False)
    return zlib.crc32(little.view(np.uint8).data)


@dataclass(frozen=True)
class Segment:
    """A run of bytes of the file.

    Attributes:
        length: in bytes.
        crc: CRC-32 of the bytes.
        offset: from the start of the file; a prefix sum, not stored.
    """

    length: int
    crc: int
    offset: int = 0


@dataclass(frozen=True)
class Need:
    """What a decoder of another version has to know.

    Attributes:
        rule: tag of the rule that says so.
        message: what it is.
    """

    rule: str
    message: str


@dataclass(frozen=True)
class Entry:
    """One tensor.

    Attributes:
        name: unique in the file.
        dtype: element type.
        shape: dimensions.
        coding: how its bytes are coded.
        check: CRC-32 of the decoded little-endian bytes.
        segments: where its bytes are; empty for a tensor in a bundle and for a tied one.
        bundle: index of the bundle that holds it, or None.
        same_as: index of the earlier tensor whose bytes it shares, or None.
        snr: signal-to-noise ratio in hundredths of a decibel as the encoder saw it (ancillary).
        kind: why it is coded as it is, a number of 11.5 (ancillary), None where it is not said.
        needs: why this decoder cannot decode the tensor, or None. An unknown type has size 0.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    coding: Coding | int
    check: int
    segments: tuple[Segment, ...] = ()
    bundle: int | None = None
    same_as: int | None = None
    snr: int | None = None
    kind: int | None = None
    needs: Need | None = None

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Decoded bytes."""
        return self.elements * self.dtype.size


@dataclass(frozen=True)
class Directory:
    """All tensors, bundles and tables of a file.

    Attributes:
        entries: tensors in their order.
        bundles: segments that hold several tensors each.
        tables: segment of the tables, or None.
        tables_size: its inflated size; 0 if it is not deflated.
        metadata: free strings.
        provenance: who made the file and how, for people (ancillary); empty where it is not said.
    """

    entries: tuple[Entry, ...]
    bundles: tuple[Segment, ...] = ()
    tables: Segment | None = None
    tables_size: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    provenance: str = ""

    def segments(self) -> Iterable[Segment]:
        """All segments in file order: tables, bundles, then those of each tensor."""
        if self.tables is not None:
            yield self.tables
        yield from self.bundles
        for entry in self.entries:
            yield from entry.segments
