"""Writes the vectors, their expected tensors and the manifest; `--check` compares them instead.

    python conformance/generate.py
    python conformance/generate.py --check

The bytes are laid down by `layout/` from what `vectors/` says. The expected tensors are computed
from the formulas of the specification; as a second opinion, each file is also decoded with tqcodec.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from layout.file import Tensor
from vectors import (
    beyond,
    container,
    directory,
    entries,
    heads,
    inflating,
    packing,
    payloads,
    planes,
    reconstruction,
    streams,
    tables,
)
from vectors.case import Case

import tqcodec
from tqcodec.errors import DecodeError, LimitError, MalformedError, UnsupportedError

HERE = Path(__file__).resolve().parent
FOLDERS = ("accept", "reject", "unsupported", "limit")
REAL = HERE / "real"
LARGE = 4096  # bytes of elements beyond which only their digest is kept
CHAPTERS = (
    inflating,
    container,
    directory,
    entries,
    tables,
    streams,
    packing,
    heads,
    payloads,
    planes,
    reconstruction,
    beyond,
)


def cases() -> Iterator[Case]:
    """All vectors; their names differ."""
    seen: set[str] = set()
    for chapter in CHAPTERS:
        for case in chapter.cases():
            if case.path in seen:
                raise ValueError(f"two vectors {case.path}")
            seen.add(case.path)
            yield case


def safetensors(case: Case) -> bytes:
    """The expected tensors as a safetensors file."""
    header: dict[str, Any] = {}
    if case.metadata:
        header["__metadata__"] = case.metadata
    position = 0
    for tensor in case.tensors or ():
        end = position + len(tensor.elements)
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(tensor.elements for tensor in case.tensors or ())
    return len(text).to_bytes(8, "little") + text + body


def digests(case: Case) -> bytes:
    """The expected tensors by the digests of their elements."""
    return document(
        {"metadata": case.metadata or {}, "tensors": list(map(_digest, case.tensors or ()))}
    )


def _digest(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "sha256": hashlib.sha256(tensor.elements).hexdigest(),
    }


def document(value: Any) -> bytes:
    """JSON as it is committed."""
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


def second_opinion(case: Case) -> str | None:
    """What tqcodec says otherwise about a vector."""
    verdict, found = "accept", {}
    try:
        found = tqcodec.decode(case.data)
    except MalformedError as error:
        verdict, rule = "reject", error.rule
    except UnsupportedError as error:
        verdict, rule = "unsupported", error.rule
    except LimitError as error:
        verdict, rule = "limit", error.rule
    except DecodeError as error:
        verdict, rule = "nothing", error.rule
    if verdict != ("limit" if case.limit else case.verdict):
        return f"tqcodec says {verdict}" + (f" [{rule}]" if verdict != "accept" else "")
    if verdict != "accept":
        return None
    expected = {tensor.name: tensor for tensor in case.tensors or ()}
    if list(found) != list(expected):
        return "tqcodec finds other names"
    for name, array in found.items():
        if array.shape != tuple(expected[name].shape):
            return f"tqcodec finds another shape for {name!r}"
        if array.tobytes() != expected[name].elements:
            return f"tqcodec finds other elements for {name!r}"
    return None


def build() -> tuple[dict[str, bytes], list[str]]:
    """All files by their path, and where tqcodec disagrees."""
    files: dict[str, bytes] = {}
    entries: list[dict[str, Any]] = []
    doubts: list[str] = []
    for case in sorted(cases(), key=lambda case: case.path):
        path = f"{case.path}.tqc"
        files[path] = case.data
        entry: dict[str, Any] = {"file": path, "verdict": case.verdict}
        if case.rule is not None:
            entry["rule"] = case.rule
        if case.limit:
            entry["limit"] = True
        entry |= {"section": case.section, "description": case.description}
        entry |= {"size": len(case.data), "sha256": hashlib.sha256(case.data).hexdigest()}
        if case.tensors is not None:
            large = sum(len(tensor.elements) for tensor in case.tensors) > LARGE
            entry["expected"] = case.path + (".json" if large else ".safetensors")
            files[entry["expected"]] = digests(case) if large else safetensors(case)
        entries.append(entry)
        doubt = second_opinion(case)
        if doubt is not None:
            doubts.append(f"{path}: {doubt}")
    for entry in real():
        entries.append(entry)
    files["manifest.json"] = document({"format": tqcodec.FORMAT_VERSION, "vectors": entries})
    return files, doubts


def real() -> Iterator[dict[str, Any]]:
    """Entries of the real files, which real/make.py makes."""
    for path in sorted(REAL.glob("*.tqc")):
        data = path.read_bytes()
        expected = next(p for p in path.parent.glob(f"{path.stem}.*") if p.suffix != ".tqc")
        about = json.loads((REAL / "descriptions.json").read_text("utf-8"))
        yield {
            "file": f"real/{path.name}",
            "verdict": "accept",
            "section": "12.1",
            "description": about[path.stem],
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "expected": f"real/{expected.name}",
        }


def committed() -> dict[str, Path]:
    """Files of the folders that are written here, by their path."""
    paths = [path for folder in FOLDERS for path in (HERE / folder).glob("*") if path.is_file()]
    return {path.relative_to(HERE).as_posix(): path for path in paths}


def differences(files: dict[str, bytes]) -> list[str]:
    """One line for each file that is not as committed."""
    out = [f"{path}: not made by any vector" for path in sorted(committed().keys() - files.keys())]
    for path, data in files.items():
        there = HERE / path
        if not there.is_file():
            out.append(f"{path}: missing")
        elif there.read_bytes() != data:
            out.append(f"{path}: differs")
    return out


def main() -> int:
    """Write or check; the exit code is 1 if anything differs."""
    parser = argparse.ArgumentParser(description="write or check the conformance vectors")
    parser.add_argument("--check", action="store_true", help="compare with what is committed")
    options = parser.parse_args()
    files, doubts = build()
    lines = list(doubts)
    if options.check:
        lines += differences(files)
    else:
        for path in committed().keys() - files.keys():
            (HERE / path).unlink()
        for path, data in files.items():
            (HERE / path).parent.mkdir(exist_ok=True)
            (HERE / path).write_bytes(data)
    for line in lines:
        sys.stdout.write(line + "\n")
    count = sum(path.endswith(".tqc") for path in files)
    sys.stdout.write(f"{count} vectors, {len(lines)} differences\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
