"""Recipe: the numbers by which a network is trained, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tqcodec.errors import EncodeError

# Least and most of the numbers of a recipe, by name; those with whole bounds are whole.
BOUNDS: Final = {
    **dict.fromkeys(("rate", "scale_rate", "vector_rate", "warm_up"), (0.0, 1.0)),
    **dict.fromkeys(("classify", "trim"), (0.0, 1.0)),
    **dict.fromkeys(("fit_every", "size_every"), (1, 1 << 30)),
    **dict.fromkeys(("pull", "gain", "hints"), (0.0, 1e6)),
    "integral": (1.0, 1e12),
}


@dataclass(frozen=True)
class TrainingRecipe:
    """How to train; the defaults were chosen on held-out training images (docs/encoder.md).

    Attributes:
        rate: largest step of a latent, in steps of its quantizer.
        scale_rate: largest step of the logarithm of a quantizer's step.
        vector_rate: largest step of a vector.
        warm_up: part of all steps over which these rise.
        fit_every: steps between two fits of the tables.
        size_every: steps between two measurements of the whole file.
        classify: parts of the training after which classes are fitted anew; at its end they are
            once more.
        trim: parts after which the file is brought to its size, if it is not there yet; it is once
            more at the end.
        pull: weight of the bits, in units of what the loss is above the original's, before the
            size has a say.
        gain: powers by which the weight answers to the size at once.
        integral: steps after which it has answered twice as much; a sixth of all, if that is less.
        hints: weight of the error of blocks inside of the network, where outputs are scores of
            classes; it pays in short trainings (docs/encoder.md).
    """

    rate: float = 0.003
    scale_rate: float = 0.001
    vector_rate: float = 0.001
    warm_up: float = 0.02
    fit_every: int = 20
    size_every: int = 400
    classify: tuple[float, ...] = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.97)
    trim: tuple[float, ...] = (0.4, 0.7, 0.85, 0.97)
    pull: float = 2.0
    gain: float = 6.0
    integral: float = 2000.0
    hints: float = 0.0

    def __post_init__(self) -> None:
        for name, (least, most) in BOUNDS.items():
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else (values,):
                whole = isinstance(least, int)
                if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                    kind = "whole number" if whole else "number"
                    raise EncodeError(f"recipe: {name} is {value!r}, not a {kind}")
                if not least <= value <= most:
                    raise EncodeError(
                        f"recipe: {name} is {value}, not within {least:g} to {most:g}"
                    )
