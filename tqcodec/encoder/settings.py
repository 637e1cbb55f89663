"""What the user wishes: settings and rules, checked when they are made."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tqcodec.errors import EncodeError


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`, both included; whole numbers only if `whole`."""

    least: float
    most: float
    whole: bool = False

    def __str__(self) -> str:
        return f"{self.least:g} to {self.most:g}"

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most

    def parse(self, text: str) -> float:
        """The number that a text is.

        Raises:
            ValueError: it is none, or not in the range.
        """
        number = int(text) if self.whole else float(text)
        if number not in self:
            raise ValueError(f"{text} is not within {self}")
        return number


TRANSFORMS: Final = ("auto", "none", "dct", "klt", "elt")
PAYLOADS: Final = ("range", "fixed")
DECIBELS_PER_QUALITY: Final = 0.4
DEFAULT_QUALITY: Final = 70.0
# Of the numbers in `Settings`, by name.
RANGES: Final = {
    "bits": Range(0.01, 32),
    "max_size": Range(1, 10**18, whole=True),
    "quality": Range(0, 100),
    "snr": Range(0, 100),
    "side_bits": Range(0, 52, whole=True),
    "effort": Range(1, 9, whole=True),
    "workers": Range(1, 1024, whole=True),
}


@dataclass(frozen=True)
class Settings:
    """How to encode. At most one of `bits`, `max_size`, `quality`, `snr`, `lossless` is given.

    Attributes:
        bits: bits per weight of the whole file, over the elements of all weight matrices; 0.01 to
            32.
        max_size: largest size of the file in bytes; 1 to 1e+18.
        quality: 0 to 100; quality q asks for a signal-to-noise ratio of 0.4 q dB in which errors
            count by what they do to the output, as far as the statistics tell; without them by
            relative errors, each matrix by its number of weights. Default 70.
        snr: 10 log10 of weight energy over error energy, over all weight matrices, in dB; 0 to 100.
        lossless: code every tensor exactly.
        transform: ``auto`` chooses for each tensor; ``none``, ``dct``, ``klt``, ``elt`` force it.
        payload: ``range`` for the smallest file, ``fixed`` for coefficients of fixed length.
        side_bits: mantissa bits kept of vectors (biases, batch normalisation), 0 to 52; their
            relative error is at most 2^-(side_bits + 1), that of the smallest numbers too. None
            keeps all bits, of what statistics or tuning have made of them.
        effort: 1 to 9, from fast to thorough.
        rules: pairs of a name pattern (as in `fnmatch`) and options such as ``exact``, ``weight``,
            ``transform:none``, ``step:0.5``; later rules win.
        workers: processes, 1 to 1024; the bytes do not depend on it.
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
        for name, numbers in RANGES.items():
            _check(name, getattr(self, name), numbers)
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


def _check(name: str, value: float | None, numbers: Range) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int if numbers.whole else (int, float)):
        kind = "whole number" if numbers.whole else "number"
        raise EncodeError(f"settings: {name} is {value!r}, not a {kind}")
    if value not in numbers:
        raise EncodeError(f"settings: {name} is {value}, not within {numbers}")


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


@dataclass(frozen=True)
class RuleOption:
    """An option of a rule, ``NAME`` or ``NAME:VALUE``.

    Attributes:
        field: of `TensorOptions`, which it sets.
        values: what VALUE may be; None for an option without one, which sets True.
    """

    field: str
    values: Range | tuple[str, ...] | None = None

    @property
    def form(self) -> str:
        """What follows the name: nothing, ``:dct|klt`` or ``:0.5..2``."""
        if self.values is None:
            return ""
        if isinstance(self.values, Range):
            return f":{self.values.least:g}..{self.values.most:g}"
        return f":{'|'.join(self.values)}"

    def parse(self, text: str) -> object:
        """The value of a field.

        Raises:
            ValueError: the text is none.
        """
        if isinstance(self.values, Range):
            return self.values.parse(text)
        if text not in (self.values or ("",)):
            raise ValueError(f"{text!r} is unknown")
        return text or True  # True for an option without value


RULE_OPTIONS: Final = {
    "exact": RuleOption("lossless"),
    "weight": RuleOption("weight"),
    "transform": RuleOption("transform", TRANSFORMS),
    "step": RuleOption("step", Range(1e-3, 1e3)),
    "bits": RuleOption("bits", Range(0.05, 24)),
    "side": RuleOption("side_bits", RANGES["side_bits"]),
}
RULE_FORMS: Final = tuple(f"{name}{option.form}" for name, option in RULE_OPTIONS.items())


def parse_options(pattern: str, text: str) -> TensorOptions:
    """Options of one rule, comma-separated, each in one of `RULE_FORMS`.

    ``lossless`` is another word for ``exact``.

    Raises:
        EncodeError: an unknown option or a bad value.
    """
    values: dict[str, object] = {}
    for item in map(str.strip, text.split(",")):
        name, _, value = item.partition(":")
        try:
            option = RULE_OPTIONS["exact" if name == "lossless" else name]
            values[option.field] = option.parse(value)
        except (KeyError, ValueError):
            forms = f"{', '.join(RULE_FORMS[:-1])} or {RULE_FORMS[-1]}"
            raise EncodeError(f"rule {pattern!r}: {item!r} is not {forms}") from None
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
