"""What the user wishes: settings and rules, checked when they are made."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tqcodec.errors import EncodeError

TRANSFORMS = ("auto", "none", "dct", "klt", "elt")
PAYLOADS = ("range", "fixed")
MOST_WORKERS = 1024
DECIBELS_PER_QUALITY = 0.4
DEFAULT_QUALITY = 70.0


@dataclass(frozen=True)
class Settings:
    """How to encode. At most one of `bits`, `max_size`, `quality`, `snr`, `lossless` is given.

    Attributes:
        bits: bits per weight of the whole file, over the elements of all weight matrices.
        max_size: largest size of the file in bytes.
        quality: 0 to 100; quality q asks for a signal-to-noise ratio of 0.4 q dB in which errors
            count by what they do to the output, as far as the statistics tell; without them by
            relative errors, each matrix by its number of weights. Default 70.
        snr: 10 log10 of weight energy over error energy, over all weight matrices, in dB.
        lossless: code every tensor exactly.
        transform: ``auto`` chooses for each tensor; ``none``, ``dct``, ``klt``, ``elt`` force it.
        payload: ``range`` for the smallest file, ``fixed`` for coefficients of fixed length.
        side_bits: mantissa bits kept of vectors (biases, batch normalisation); their relative
            error is at most 2^-(side_bits + 1), that of the smallest numbers too. None keeps all
            bits, of what statistics or tuning have made of them.
        effort: 1 (fast) to 9 (thorough).
        rules: pairs of a name pattern (as in `fnmatch`) and options such as ``exact``, ``weight``,
            ``transform:none``, ``step:0.5``; later rules win.
        workers: processes; the bytes do not depend on it.
        metadata: free strings for the file.
        provenance: write which encoder made the file, and with which target and effort.
        inference: write normalisations in the form that evaluation mode needs, with mean 0 and
            variance 1 - eps (docs/encoder.md); only a module says which they are.

    Raises:
        EncodeError: settings that contradict each other or are out of range.
    """

    bits: float | None = None
    max_size: int | None = None
    quality: float | None = None
    snr: float | None = None
    lossless: bool = False
    transform: str = "auto"
    payload: str = "range"
    side_bits: int | None = 7
    effort: int = 5
    rules: Sequence[tuple[str, str]] = ()
    workers: int = 1
    metadata: tuple[tuple[str, str], ...] = ()
    provenance: bool = True
    inference: bool = False

    def __post_init__(self) -> None:
        targets = [self.bits, self.max_size, self.quality, self.snr, self.lossless or None]
        if sum(t is not None for t in targets) > 1:
            raise EncodeError("settings: give one of bits, max_size, quality, snr, lossless")
        _check("bits", self.bits, 0.01, 32)
        _check("max_size", self.max_size, 1, 1 << 62, whole=True)
        _check("quality", self.quality, 0, 100)
        _check("snr", self.snr, 0, 100)
        _check("side_bits", self.side_bits, 0, 52, whole=True)
        _check("effort", self.effort, 1, 9, whole=True)
        _check("workers", self.workers, 1, MOST_WORKERS, whole=True)
        for name in ("lossless", "provenance", "inference"):
            flag = getattr(self, name)
            if not isinstance(flag, bool):
                raise EncodeError(f"settings: {name} is {flag!r}, not True or False")
        if self.lossless and self.inference:
            raise EncodeError("settings: inference changes tensors, which lossless forbids")
        for name, pairs in (("metadata", self.metadata), ("rules", self.rules)):
            if not isinstance(pairs, Sequence) or isinstance(pairs, str):
                raise EncodeError(f"settings: {name} are {pairs!r}, not a sequence of pairs")
            for pair in pairs:
                if not _is_pair(pair):
                    raise EncodeError(f"settings: {name} {pair!r} is not a pair of strings")
        keys = [key for key, _ in self.metadata]
        if len(set(keys)) < len(keys):
            raise EncodeError("settings: a key of the metadata is given twice")
        for name, value, known in (
            ("transform", self.transform, TRANSFORMS),
            ("payload", self.payload, PAYLOADS),
        ):
            if value not in known:
                raise EncodeError(f"settings: {name} {value!r} is not one of {', '.join(known)}")
        for pattern, options in self.rules:
            parse_options(pattern, options)

    @property
    def target_snr(self) -> float | None:
        """The signal-to-noise ratio asked for, by `snr`, by `quality` or by default."""
        if self.snr is not None:
            return self.snr
        if self.bits is not None or self.max_size is not None:
            return None
        quality = DEFAULT_QUALITY if self.quality is None else self.quality
        return quality * DECIBELS_PER_QUALITY


def _is_text(value: object) -> bool:
    """True for strings that UTF-8 can hold."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _is_pair(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_text, value))


def _check(name: str, value: float | None, least: float, most: float, whole: bool = False) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        kind = "whole number" if whole else "number"
        raise EncodeError(f"settings: {name} is {value!r}, not a {kind}")
    if not least <= value <= most:
        raise EncodeError(f"settings: {name} is {value}, not within {least} to {most}")


@dataclass(frozen=True)
class TensorOptions:
    """Wishes for one tensor.

    Attributes:
        lossless: code it exactly.
        weight: take it for a weight matrix, whatever it looks like.
        transform: as in `Settings`, or None to take the settings' one.
        step: factor on the step of all others.
        bits: bits per weight of its coefficients, bases and levels, instead of the common slope.
        side_bits: as in `Settings`, or None to take the settings' one.
    """

    lossless: bool = False
    weight: bool = False
    transform: str | None = None
    step: float = 1.0
    bits: float | None = None
    side_bits: int | None = None


def parse_options(pattern: str, text: str) -> TensorOptions:
    """Options of one rule, comma-separated: ``exact weight transform:T step:F bits:B side:N``.

    ``lossless`` is another word for ``exact``.

    Raises:
        EncodeError: an unknown option or a bad value.
    """
    values: dict[str, object] = {}
    for item in text.split(","):
        key, _, value = item.strip().partition(":")
        try:
            if key in ("exact", "lossless") and not value:
                values["lossless"] = True
            elif key == "weight" and not value:
                values["weight"] = True
            elif key == "transform" and value in TRANSFORMS:
                values["transform"] = value
            elif key == "step" and 1e-3 <= float(value) <= 1e3:
                values["step"] = float(value)
            elif key == "bits" and 0.05 <= float(value) <= 24:
                values["bits"] = float(value)
            elif key == "side" and 0 <= int(value) <= 52:
                values["side_bits"] = int(value)
            else:
                raise ValueError
        except ValueError:
            raise EncodeError(
                f"rule {pattern!r}: {item.strip()!r} is not exact, weight, "
                "transform:auto|none|dct|klt|elt, step:0.001..1000, bits:0.05..24 or side:0..52"
            ) from None
    return TensorOptions(**values)  # type: ignore[arg-type]


def options_for(rules: Sequence[tuple[str, str]], names: Iterable[str]) -> dict[str, TensorOptions]:
    """Options of each tensor; the last rule that matches wins.

    Raises:
        EncodeError: a rule that matches no tensor.
    """
    names = list(names)
    out = dict.fromkeys(names, TensorOptions())
    for pattern, text in rules:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            raise EncodeError(f"rule {pattern!r} matches no tensor")
        out.update(dict.fromkeys(matches, parse_options(pattern, text)))
    return out
