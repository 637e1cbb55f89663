"""Whether a file decodes, by all decoders alike, to what its network allows: for the long run.

Compares with the network itself. Bounds are those of the documentation; the signal-to-noise ratio
of a matrix is the one that the file states.
"""

from __future__ import annotations

import hashlib
import math
import shlex
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from batch import CrashError, Decoder
from numpy.typing import NDArray
from run import VERDICTS, Answer, BadAnswerError, Tensor, difference, read_safetensors

import tqcodec
from benchmarks import ROOT
from tqcodec import Settings
from tqcodec.encoder import kinds
from tqcodec.errors import DecodeError
from tqcodec.format.entries import Entry
from tqcodec.format.native_decoder import NativeFile, available
from tqcodec.format.registry import Coding

Array = NDArray[Any]
Tensors = Mapping[str, Array]
Decoders = Mapping[str, Decoder]  # by name

SECONDS = 1800.0  # for one file and one decoder
BLOCK = 1 << 22  # elements compared at a time
HUNDREDTHS = 1.0  # of a decibel by which a ratio may miss the one stated, which is rounded


class FaultError(Exception):
    """A file that is not what it should be.

    Attributes:
        rule: of the specification, or what was compared.
        message: what is wrong.
    """

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(rule, message)
        self.rule, self.message = rule, message


# ---- decoders ----


@contextmanager
def running() -> Iterator[dict[str, Decoder]]:
    """Decoders in processes of their own, by name: those that this machine can run.

    ``Python`` is the package without any C.
    """
    package = [sys.executable, str(ROOT / "conformance" / "package.py")]
    commands = {
        "Python": ["env", "TQCODEC_NATIVE=0", *package],
        "reference": [sys.executable, str(ROOT / "spec" / "decoder.py")],
    }
    if shutil.which("node"):
        commands["JavaScript"] = ["node", str(ROOT / "decoders" / "js" / "tqcdec.mjs")]
    decoders = {n: Decoder(shlex.join([*c, "--batch"]), SECONDS) for n, c in commands.items()}
    try:
        yield decoders
    finally:
        for decoder in decoders.values():
            decoder.close()


def decoded(data: bytes) -> tuple[dict[str, Array], list[Entry], dict[str, str]]:
    """Arrays of a file, what its directory says of them, and its metadata.

    Raises:
        FaultError: the package's decoders, in C where that is built, do not take the file.
    """
    try:
        with tqcodec.open(data) as file:
            entries, metadata = list(file.container.directory.entries), file.metadata()
        arrays = tqcodec.decode(data)
    except DecodeError as error:
        raise FaultError(error.rule, str(error)) from None
    decoder = NativeFile.of(data, len(data))
    if available() and (decoder is None or decoder.decode_all(1, None) is None):
        raise FaultError("decoders", "the decoder in C refuses what Python decodes")
    return arrays, entries, metadata


def check_agreement(data: bytes, expected: Answer, name: str, decoder: Decoder) -> None:
    """Raise FaultError unless a decoder gives the same tensors and metadata."""
    try:
        reply = decoder.ask(data)
        if reply.verdict:
            verdict = VERDICTS.get(reply.verdict, f"verdict {reply.verdict}")
            raise FaultError(reply.rule, f"{name} ends in {verdict} [{reply.rule}]")
        message = difference(read_safetensors(reply.data), expected)
    except CrashError as error:
        raise FaultError("crash", f"{name}: {error}") from None
    except BadAnswerError as error:
        message = str(error)
    if message:
        raise FaultError("decoders", f"{name}: {message}")


def answer_of(arrays: Tensors, entries: Collection[Entry], metadata: dict[str, str]) -> Answer:
    """What other decoders must give, from the outcome of `decoded`."""
    digests = {
        name: hashlib.sha256(_bytes(array).data).hexdigest() for name, array in arrays.items()
    }
    tensors = [Tensor(e.name, e.dtype.name, list(e.shape), digests[e.name]) for e in entries]
    return Answer(tensors, metadata)


# ---- comparison with the network ----


def check_source(
    arrays: Tensors,
    entries: list[Entry],
    source: Tensors,
    settings: Settings,
    corrected: Collection[str],
) -> None:
    """Raise FaultError unless decoded arrays are as near to their network as was promised.

    Args:
        arrays: decoded.
        entries: what the file says of them.
        source: the network, in the order in which it was encoded.
        settings: without rules, by which it was encoded.
        corrected: names of side tensors that make up for the coding of others; they may take any
            finite values.
    """
    if list(arrays) != list(source):
        raise FaultError("names", f"{len(arrays)} tensors, not {len(source)}, or in another order")
    for (name, old), entry in zip(source.items(), entries, strict=True):
        new = arrays[name]
        if new.shape != old.shape or new.dtype != old.dtype.newbyteorder("="):
            raise FaultError("types", f"{name!r}: {new.dtype} {new.shape}")
        fault = _fault(old, new, entries, entry, settings, name in corrected)
        if fault is not None:
            raise FaultError(fault[0], f"{name!r}: {fault[1]}")


def _fault(
    old: Array, new: Array, entries: list[Entry], entry: Entry, settings: Settings, corrected: bool
) -> tuple[str, str] | None:
    """Rule and message of what is wrong with one tensor."""
    if entry.same_as is not None:
        entry = entries[entry.same_as]
    found = kinds.class_of(entry.kind)
    bits = settings.side_bits
    if not settings.lossless and entry.dtype.is_float and _is_finite(old):
        # Small matrices may lie in a bundle with short mantissas.
        is_lossy = entry.coding == Coding.TRANSFORM or entry.snr is not None
        if found is kinds.Class.WEIGHT and is_lossy:
            return _ratio_fault(old, new, entry.snr)
        if found is kinds.Class.VECTOR and corrected:
            return None if _is_finite(new) else ("finite", "a corrected value is not finite")
        if found is kinds.Class.VECTOR and bits is not None:
            return _bound_fault(old, new, bits)
    same = np.array_equal(_bytes(old), _bytes(new))
    return None if same else ("exact", "other bytes in what must be exact")


def _ratio_fault(old: Array, new: Array, stated: int | None) -> tuple[str, str] | None:
    """Compare the signal-to-noise ratio with the one stated, in hundredths of a decibel."""
    energy = error = 0.0
    flat, found = old.reshape(-1), new.reshape(-1)
    for i in range(0, flat.size, BLOCK):
        truth = flat[i : i + BLOCK].astype(np.float64)
        difference = truth - found[i : i + BLOCK]
        energy += float(np.dot(truth, truth))
        error += float(np.dot(difference, difference))
    measured = 1000 * math.log10(energy / error) if energy > 0 and error > 0 else None
    if measured is None:
        return None if stated is None and error == 0 else ("snr", f"stated {stated}, error {error}")
    if stated is None or not abs(measured - stated) <= HUNDREDTHS:
        return "snr", f"stated {stated}, measured {measured:.1f} hundredths of a decibel"
    return None


def _bound_fault(old: Array, new: Array, bits: int) -> tuple[str, str] | None:
    """Compare with the bound of the relative error."""
    truth, found = old.astype(np.float64), new.astype(np.float64)
    error, allowed = np.abs(truth - found), np.abs(truth) * 2.0 ** -(bits + 1)
    count = int((error > allowed).sum())
    return None if count == 0 else ("bound", f"{count} values beyond their bound")


def _is_finite(array: Array) -> bool:
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return bool(np.isfinite(array).all())


def _bytes(array: Array) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
