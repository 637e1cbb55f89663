"""Findings: what the user of a file should know, judged by what came out of the encoding."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tqcodec.encoder.matrix.draft import Draft
from tqcodec.encoder.settings import Settings
from tqcodec.encoder.target import SNR_MISS
from tqcodec.encoder.tensor import Item
from tqcodec.errors import EncodeWarning
from tqcodec.format.container import default_limit

LEAST_SNR = 6.0  # dB; below, half of a matrix's amplitude is gone
BEHIND = 12.0  # dB by which a matrix may fall short of half of all weights: two bits
NAMED = 3  # tensors that a message names
SNR_SPARE = 6.0  # dB above it, likewise: small matrices have few ways to be coded
SIZE_MISS = 0.02  # of the size asked for, likewise
LEAST_MISS = 256  # bytes off a size that are not worth one


@dataclass(frozen=True)
class Finding:
    """One thing to know of a file.

    Attributes:
        kind: ``snr`` (matrices of which little is left, or much less than of others), ``lost``
            (matrices that decode to zeros, slices that do and that weight normalisation divides by
            their lengths, or outputs that are not finite), ``target`` (missed, or without a
            meaning), ``statistics`` (of other weights), ``limit`` (the file decodes to more than a
            decoder takes by default), ``inference`` (normalisations that are not in inference
            form), ``directions`` (slices that weight normalisation divides by their lengths got
            others, else they were lost), ``calibration`` (it did not help, and the file was made
            without), ``tuning`` (what it made of side tensors takes too many bytes, and they are as
            before).
        message: one line for people.
        tensors: names of those concerned, the worst first.
    """

    kind: str
    message: str
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeldOut:
    """How far a calibrated network, and one by weights alone, are from the original.

    Measured on inputs that neither statistics nor tuning had. The network that is nearer is in the
    file; the calibrated one is where they are about as near.

    Attributes:
        samples: inputs held out.
        measure: ``KL``, the mean Kullback-Leibler divergence of the softmax from the original's in
            nats, where the one output has the shape (samples, classes) and is no embedding; else
            ``error``, the squared error over the energy of the original, mean over outputs.
        calibrated: of the calibrated network; infinity where there is no such file.
        plain: of the one by weights alone, likewise.
        chance: the standard error of what they differ by; by no more are they about as near. 0
            where it is not known.
    """

    samples: int
    measure: str
    calibrated: float
    plain: float
    chance: float = 0.0

    @property
    def helped(self) -> bool:
        """Whether the calibrated network is in the file."""
        return self.calibrated <= self.plain + self.chance

    def __str__(self) -> str:
        return (
            f"{self.measure} {self.calibrated:.3g} calibrated, {self.plain:.3g} by weights alone "
            f"on {self.samples} inputs held out"
        )


@dataclass
class EncodeReport:
    """What came out of an encoding: an empty one is given to `encode`, which fills it in.

    Attributes:
        findings: what was warned of.
        snr: signal-to-noise ratio in dB of each matrix that was transform-coded; infinity without
            any error, minus infinity for one that decodes to zeros.
        held_out: what `held_out` of `tqcodec.torch.encode` said; None without.
    """

    findings: list[Finding] = field(default_factory=list)
    snr: dict[str, float] = field(default_factory=dict)
    held_out: HeldOut | None = None

    def warn(self, stacklevel: int) -> None:
        """An EncodeWarning for each finding; `stacklevel` as in `warnings.warn`."""
        for finding in self.findings:
            warnings.warn(finding.message, EncodeWarning, stacklevel=stacklevel)


def snr_of(draft: Draft) -> float:
    """Signal-to-noise ratio in dB, as `EncodeReport` has it."""
    if draft.error <= 0:
        return math.inf
    if draft.is_lost:
        return -math.inf
    return 10 * math.log10(max(draft.energy, 1e-300) / draft.error)


def of_matrices(
    snr: Mapping[str, float],
    sizes: Mapping[str, int],
    excused: set[str],
    shaped: Mapping[str, float],
) -> list[Finding]:
    """Matrices that are worse than they should be: in themselves, or beside the others.

    Args:
        snr: of each matrix, in dB.
        sizes: elements of each.
        excused: those whose ratio a rule or statistics are answerable for; they are named only
            where nothing is left of them.
        shaped: dB by which error feedback lowers the ratio of a matrix, to the gain of its outputs;
            these do not count against it.
    """
    judged = {name: value + shaped.get(name, 0.0) for name, value in snr.items()}
    lost = [name for name, value in snr.items() if value == -math.inf]
    found = []
    if lost:
        message = f"{_matrices(len(lost))} to zeros: {names_of(lost)}"
        found.append(Finding("lost", message, tuple(lost)))
    ordered = sorted((v, sizes[name]) for name, v in judged.items() if math.isfinite(v))
    floor, below, total = LEAST_SNR, 0, sum(size for _, size in ordered)
    for value, size in ordered:
        below += size
        if 2 * below >= total:  # half of all weights are no better
            floor = max(floor, value - BEHIND)
            break
    low = [n for n, v in judged.items() if -math.inf < v < floor and n not in excused]
    if low:
        low.sort(key=snr.__getitem__)
        named = [f"{name} ({snr[name]:.1f} dB)" for name in low]
        message = (
            f"{_matrices(len(low))} with less than {floor:.1f} dB of signal to noise: "
            f"{names_of(named)}; more bits, calibration data or a rule such as 'NAME=step:0.5' help"
        )
        found.append(Finding("snr", message, tuple(low)))
    return found


def _matrices(count: int) -> str:
    return "one matrix decodes" if count == 1 else f"{count} matrices decode"


def names_of(names: Sequence[str]) -> str:
    """The first of names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def of_target(settings: Settings, weights: int, size: int, snr: float | None) -> list[Finding]:
    """Whether the target was met.

    Args:
        settings: with the target.
        weights: elements of all weight matrices.
        size: bytes of the file.
        snr: that came out, in dB, as the target counts it; None where nothing was lost.
    """
    message = ""
    if settings.bits is not None:
        wanted = settings.bits * weights / 8
        if not weights:
            message = f"bits={settings.bits:g} says nothing: there is no weight matrix"
        elif abs(size - wanted) > max(SIZE_MISS * wanted, LEAST_MISS):
            got = 8 * size / weights
            message = f"bits={settings.bits:g} was missed: {got:.3f} bits per weight, {size} bytes"
    elif settings.target_snr is not None and snr is not None:
        asked = settings.target_snr
        if not -SNR_MISS < snr - asked < SNR_SPARE:
            name = "snr" if settings.snr is not None else "quality"
            message = (
                f"{name} was missed: {snr:.2f} dB of signal to noise, {asked:g} were asked for"
            )
    return [Finding("target", message)] if message else []


def of_tuning(size: int | None) -> list[Finding]:
    """Whether tuning was left out, since the file would have `size` bytes with it."""
    if size is None:
        return []
    message = f"tuning was left out: with it the file would take {size} bytes, too many"
    return [Finding("tuning", message)]


def of_size(size: int, decoded: int) -> list[Finding]:
    """Whether a decoder takes a file of `size` bytes, `decoded` when it is decoded, by default."""
    limit = default_limit(size)
    if decoded <= limit:
        return []
    message = (
        f"{size} bytes decode to {decoded}, above a decoder's default limit of {limit}: "
        f"decode with limit={decoded} (--limit {decoded})"
    )
    return [Finding("limit", message)]


def excused(items: Sequence[Item], calibrated: set[str]) -> set[str]:
    """Matrices whose ratio a rule or statistics are answerable for."""
    own = {i.name for i in items if i.options.step != 1.0 or i.options.bits is not None}
    return own | calibrated
