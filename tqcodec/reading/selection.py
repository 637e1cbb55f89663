"""Files of some of the tensors of another file, put together from its segments."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from tqcodec.errors import DecodeError, EncodeError
from tqcodec.format import writer
from tqcodec.format.container import EVERYTHING, Container, Fetch
from tqcodec.format.directory import MOST_PROVENANCE
from tqcodec.format.entries import Directory, Entry, Segment
from tqcodec.format.planes import write_block
from tqcodec.reading.remote.file import RemoteFile


@dataclass
class Copy:
    """The file that is to be on disk.

    Attributes:
        head: header and directory.
        segments: what follows, each with its offset in the source, or its bytes where the source
            does not have them so.
    """

    head: bytes
    segments: list[tuple[Segment, int | bytes]]


def _chosen(directory: Directory, patterns: Sequence[str]) -> list[Entry]:
    """Entries whose name matches a pattern.

    Raises:
        EncodeError: there is none.
    """
    found = [e for e in directory.entries if any(fnmatchcase(e.name, p) for p in patterns)]
    if not found:
        raise EncodeError(f"no tensor matches {' or '.join(map(repr, patterns))}")
    return found


def copy_of(
    container: Container, source: RemoteFile, patterns: Sequence[str], begun: Fetch
) -> Copy:
    """A file of some tensors of another one: their segments as they are, bundles made anew.

    Args:
        container: of the other file.
        source: its bytes.
        patterns: of names, as in `fnmatch`: of tensors that match one.
        begun: offset and length to bytes of what is there of the copy, perhaps fewer; bundles that
            are right there are taken from it.

    Raises:
        EncodeError: no tensor matches.
        DecodeError: a bundle cannot be decoded.
        OSError: it cannot be read.
    """
    old, chosen = container.directory, _chosen(container.directory, patterns)
    entries: list[Entry] = []
    origins: list[Entry] = []  # where their bytes are
    owners: dict[int, int] = {}  # of those that are not tied, the place in the source and here
    for entry in chosen:
        place = entry.same_as if entry.same_as is not None else container.index[entry.name]
        origins.append(old.entries[place])
        if place in owners:
            entries.append(replace(entry, same_as=owners[place]))
        else:  # the first of those that are tied takes the bytes over
            owners[place] = len(entries)
            entries.append(replace(old.entries[place], name=entry.name))
    used = sorted({entry.bundle for entry in entries if entry.bundle is not None})
    numbers = {bundle: i for i, bundle in enumerate(used)}
    numbered = [
        entry if entry.bundle is None else replace(entry, bundle=numbers[entry.bundle])
        for entry in entries
    ]
    blocks = _kept(begun, numbered)
    if blocks is None:
        named = list(zip(entries, origins, strict=True))
        blocks = [_block(container, source, bundle, named) for bundle in used]
    directory = Directory(
        tuple(numbered),
        tuple(Segment(len(block), zlib.crc32(block)) for block in blocks),
        old.tables,
        old.tables_size,
        old.metadata,
        _provenance(old.provenance, f"part={len(entries)}/{len(old.entries)}"),
    )
    head = writer.front(directory)
    placed = Container(lambda offset, n: head[offset : offset + n], None, EVERYTHING).directory
    segments: list[tuple[Segment, int | bytes]] = list(zip(placed.bundles, blocks, strict=True))
    if placed.tables is not None and old.tables is not None:
        segments.insert(0, (placed.tables, old.tables.offset))
    for entry, origin in zip(placed.entries, origins, strict=True):
        pairs = zip(entry.segments, origin.segments, strict=False)  # none of one that is tied
        segments += ((ours, theirs.offset) for ours, theirs in pairs)
    return Copy(head, segments)


def _kept(begun: Fetch, entries: Sequence[Entry]) -> list[bytes] | None:
    """Bundles of these tensors that are in the copy already; None unless all are."""
    try:
        known = Container(begun, None, EVERYTHING).directory
    except DecodeError:
        return None
    if [_content(entry) for entry in known.entries] != [_content(entry) for entry in entries]:
        return None
    blocks = [begun(bundle.offset, bundle.length) for bundle in known.bundles]
    wrong = any(zlib.crc32(b) != s.crc for b, s in zip(blocks, known.bundles, strict=True))
    return None if wrong else blocks


def _content(entry: Entry) -> tuple[Any, ...]:
    return entry.name, entry.dtype, entry.shape, entry.check, entry.same_as, entry.bundle


def _block(
    container: Container, source: RemoteFile, bundle: int, named: Sequence[tuple[Entry, Entry]]
) -> bytes:
    """A bundle with some of its tensors, given with the entries of the source that have them.

    Raises:
        DecodeError: it cannot be decoded.
    """
    directory = container.directory
    wanted = [s for s in (directory.tables, directory.bundles[bundle]) if s is not None]
    members = container.members[bundle]
    container.check_supported(members[0])
    with source.holding([(segment.offset, segment.length) for segment in wanted]):
        parts = dict(zip((m.name for m in members), container.bundle_parts(bundle), strict=True))
        own = [parts[origin.name] for entry, origin in named if entry.bundle == bundle]
        return write_block(own, container.tables)


def _provenance(line: str, word: str) -> str:
    """A line of provenance with a word more, those before it going where it would be too long."""
    words = line.split()
    while words and len(" ".join([*words, word])) > MOST_PROVENANCE:
        words.pop()
    return " ".join([*words, word])
