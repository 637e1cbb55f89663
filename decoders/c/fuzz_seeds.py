"""Seeds for fuzz.c from the golden files of tests/damage.py:  python fuzz_seeds.py FOLDER"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import msgpack
from damage import Parsed, golden_files

from tqcodec.format.registry import HEADER_SIZE

TYPES = [
    "BOOL",
    "U8",
    "I8",
    "U16",
    "I16",
    "U32",
    "I32",
    "U64",
    "I64",
    "F16",
    "F8_E4M3",
    "F8_E5M2",
    "BF16",
    "F32",
    "F64",
]


def plain(data: bytes) -> bytes:
    """The file with its directory not deflated; its checksums do not count."""
    directory = msgpack.packb(Parsed(data).tree)
    size = len(directory)
    stored = struct.unpack_from("<I", data, 12)[0]
    header = struct.pack("<8sBBHIIII", data[:8], data[8], data[9], 0, size, size, 0, 0)
    return header + directory + data[HEADER_SIZE + stored :]


def main() -> None:
    """Write one seed for each file, and one for each tensor with segments of its own."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in golden_files().items():
        (folder / f"{name}.file").write_bytes(b"\0" + plain(data))
        parsed = Parsed(data)
        tables = bytes(parsed.tables or b"")
        bodies = iter(parsed.bodies[len(parsed.tree.get("bundles", [])) :])
        for number, entry in enumerate(parsed.tree.get("tensors", [])):
            segments = [next(bodies) for _ in entry.get("segments", [])]
            if not segments:
                continue
            shape = entry["shape"]
            head = bytes(
                [1, TYPES.index(entry["dtype"]), entry["coding"], len(shape), *shape, len(segments)]
            )
            sizes = struct.pack(f"<{1 + len(segments)}H", len(tables), *map(len, segments))
            (folder / f"{name}{number}.parts").write_bytes(
                head + sizes + tables + b"".join(segments)
            )


if __name__ == "__main__":
    main()
