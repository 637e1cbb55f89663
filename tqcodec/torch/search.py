"""The smallest file whose network is still good enough: a search over bits per weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from tqcodec.common.checks import need
from tqcodec.common.progress import Progress
from tqcodec.encoder.settings import Settings
from tqcodec.errors import EncodeError
from tqcodec.format.container import EVERYTHING
from tqcodec.torch.batches import copied
from tqcodec.torch.checkpoint import decoded as state_of
from tqcodec.torch.checkpoint import load_state

START, FINEST, COARSEST = 3.0, 8.0, 0.05  # bits per weight
MOST = 32.0  # of networks whose names and heads take more than their weights
FACTOR = 2.0  # from one rate to the next, until the bound lies between two
BRACKET = 1.02  # ratio of two rates, one too coarse, that are near enough
ABOUT = 8  # evaluations of decoded networks, for the progress

Evaluate = Callable[[torch.nn.Module], float]
Encode = Callable[[Settings], bytes]


def smallest(
    model: object,
    encode: Encode,
    settings: Settings | None,
    target_drop: float | None,
    evaluate: Evaluate | None,
    progress: Progress | None = None,
) -> bytes:
    """The smallest file found whose decoded network loses at most `target_drop`.

    Rates are halved or doubled from 3 bits per weight until one is good enough and one is not, and
    then bisected in the logarithm until they are within 2 %: about 8 files are made. Accuracy
    need not fall with the rate: of all files that were measured and good enough, the smallest is
    given.

    Args:
        model: the network. A copy of it takes the decoded weights.
        encode: the file of the network at the bits of its argument.
        settings: without any target; `Settings()` if None.
        target_drop: the most that `evaluate` may fall, at least 0.
        evaluate: called with the network, then with the copy; gives a number, higher is better.
        progress: called with ("search", files measured, of about how many).

    Raises:
        EncodeError: arguments that do not go together, or too high a drop at 8 bits per weight.
    """
    if target_drop is None or evaluate is None:
        raise EncodeError("target_drop and evaluate are given together or not at all")
    if not isinstance(model, torch.nn.Module):
        raise EncodeError("target_drop needs a network (nn.Module), not a state dict")
    settings = settings or Settings()
    _check(target_drop, settings)
    decoded = copied(model)
    original = float(evaluate(model))
    if not math.isfinite(original):
        raise EncodeError(f"evaluate gives {original} for the network as it is")

    bracket, best, measured = _Bracket(), None, 0
    while (bits := bracket.next_bits()) is not None:
        try:
            data = encode(replace(settings, bits=bits))
        except EncodeError:
            if bits >= MOST:
                raise
            drop = math.inf
            bracket.finest = MOST  # no file of so small a network is so small
        else:
            load_state(decoded, state_of(data, limit=EVERYTHING, progress=progress))
            drop = original - float(evaluate(decoded))
        measured += 1
        if progress is not None:
            progress("search", measured, max(measured, ABOUT))
        if drop <= target_drop:
            bracket.good(bits, shrinks=best is None or len(data) * BRACKET < len(best))
            best = data if best is None or len(data) < len(best) else best
        elif bits >= bracket.finest:
            bound = f"{target_drop:g} at most is asked for"
            raise EncodeError(f"a drop of {drop:.4g} at {bits:g} bits per weight; {bound}")
        else:
            bracket.coarse = bits
    assert best is not None, "the bracket ends where a rate is good enough"
    return best


@dataclass
class _Bracket:
    """Rates in bits per weight, between which the smallest good one lies.

    Attributes:
        coarse: the finest rate that is too coarse.
        fine: the coarsest rate that is good enough.
        finest: rate at which the search gives up.
        is_flat: True where files no longer shrink with the rate.
    """

    coarse: float | None = None
    fine: float | None = None
    finest: float = FINEST
    is_flat: bool = False

    def good(self, bits: float, shrinks: bool) -> None:
        """A rate is good enough; its file is smaller than those before, or not by much."""
        self.fine, self.is_flat = bits, not shrinks

    def next_bits(self) -> float | None:
        """Rate to be measured next; None where nothing more is to be found."""
        if self.coarse is None:
            if self.fine is None:
                return START
            if self.fine <= COARSEST or self.is_flat:
                return None
            return max(self.fine / FACTOR, COARSEST)
        if self.fine is None:
            return min(self.coarse * FACTOR, self.finest)
        return math.sqrt(self.coarse * self.fine) if self.fine > BRACKET * self.coarse else None


def _check(target_drop: float, settings: Settings) -> None:
    need("target_drop", target_drop, (int, float), "a number")
    if not (math.isfinite(target_drop) and target_drop >= 0):
        raise EncodeError(f"target_drop is {target_drop}, not a number from 0 up")
    for name in ("bits", "max_size", "quality", "snr", "lossless"):
        given = getattr(settings, name)
        if given is not None and given is not False:  # 0 is a target
            raise EncodeError(f"target_drop and {name} cannot both be given")
