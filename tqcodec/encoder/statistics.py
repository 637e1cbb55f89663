"""Statistics: what calibration data says of each weight, as sums that add.

Symbols of Young et al. 2021, section II: y are the logits, theta the weights. With x the unfolded
input of a layer at one position, g the gradient of a random sign combination v^T y of the logits by
the layer's output there, and dW = SUM over positions of g x^T, the gradient of v^T y by the weight:

    inputs     SUM over images and positions         x x^T
    sums       SUM over images and positions         x
    outputs    SUM over images, probes and positions g g^T
    gradients  SUM over images and probes            dW^T dW    (n C_gg of the paper, on columns)

The expectation of (v^T dy)^2 over sign vectors v is |dy|^2, so ``gradients`` measures the error of
the logits without a pass for each of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqcodec.common import streams
from tqcodec.common.atomic import replacing
from tqcodec.errors import EncodeError

FORMAT = "tqcodec statistics 1"
ARRAYS = ("inputs", "sums", "outputs", "gradients")
SKETCH = 256  # sampled weights that tell one network from another
GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of it, without whole numbers, spread evenly
# Relative distances of sketches: above the first the weights were trained on since, above the
# second, for half of them, it is another network (unrelated ones are 1 or more apart).
CHANGED, ANOTHER = 0.1, 0.5


def sampled_places(size: int) -> NDArray[np.int64]:
    """Positions of the elements of a sketch in a weight of `size` elements, row-major."""
    steps = np.arange(min(size, SKETCH)) + 0.5
    return np.floor(steps * GOLDEN % 1 * size).astype(np.int64)


def sketch_of(values: NDArray[np.floating]) -> tuple[float, ...]:
    """A sketch of the elements at `sampled_places`: six digits of each."""
    return tuple(float(f"{value:.6g}") for value in values.tolist())


def distance(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Relative distance of two sketches, 0 to 2."""
    if len(one) != len(other):
        return 2.0
    largest = max(math.hypot(*one), math.hypot(*other))
    if largest == 0:
        return 0.0
    found = math.dist(one, other) / largest
    return found if math.isfinite(found) else 2.0


@dataclass(frozen=True, eq=False)
class WeightStatistics:
    """Sums over the calibration data for one weight.

    The weight is a matrix of rows (one for each output) and columns (input channels times taps, in
    the order of the weight's dimensions). ``inputs``, ``sums`` and ``gradients`` come in blocks:
    one for all columns; or one for each group of rows, where the rows of a grouped or depthwise
    convolution see different inputs; or, where a block is narrower than the columns, a
    block-diagonal of them (the last block padded with zeros). The rows of an embedding are looked
    up, so its error is weighed by the gradient: there ``inputs`` holds the sum of g g^T.

    Attributes:
        shape: of the weight.
        rows: dimension of the weight that holds the rows; 1 for transposed convolutions, else 0.
        images: samples seen.
        vectors: input vectors in `inputs` and `sums`.
        probes: pairs of an image and a sign vector in `outputs` and `gradients`.
        inputs: float64 (blocks, n, n).
        sums: float64 (blocks, n).
        outputs: float64 (blocks, m, m), a block-diagonal over the rows.
        gradients: float64 (blocks, n, n).
        shift: name of the 1-D tensor that takes up a shift of the layer's output: its bias, or the
            running mean of the batch normalisation behind it; None if there is none.
        shift_sign: 1 if `shift` is added to the output, -1 if it is subtracted.
        gain: name of the 1-D tensor that multiplies the output after `shift`: the weight of the
            batch normalisation behind it; None if there is none.
        behind: `shift` is added behind `gain`: it is the bias of a batch normalisation.
        synthetic: how many of `images` were made up (`tqcodec.torch.synthetic_inputs`).
        sketch: of the weight itself, by `sketch_of`; None where it is not known.
    """

    shape: tuple[int, ...]
    rows: int
    images: int
    vectors: int
    probes: int
    inputs: NDArray[np.float64]
    sums: NDArray[np.float64]
    outputs: NDArray[np.float64]
    gradients: NDArray[np.float64]
    shift: str | None = None
    shift_sign: int = 1
    gain: str | None = None
    sketch: tuple[float, ...] | None = None
    behind: bool = False
    synthetic: int = 0

    def __post_init__(self) -> None:
        if not self._fits():
            raise EncodeError(f"statistics: sums do not fit a weight of shape {self.shape}")
        if not all(np.isfinite(getattr(self, name)).all() for name in ARRAYS):
            raise EncodeError(f"statistics: sums of a weight of shape {self.shape} are not finite")

    def _fits(self) -> bool:
        if self.rows not in (0, 1) or len(self.shape) <= self.rows or self.sums.ndim != 2:
            return False
        blocks, n = self.sums.shape
        rows = self.shape[self.rows]
        columns = math.prod(self.shape) // max(1, rows)
        if n == columns:
            fits = blocks > 0 and rows % blocks == 0
        else:
            fits = n < columns and (blocks - 1) * n < columns <= blocks * n
        fits = fits and self.inputs.shape == self.gradients.shape == (blocks, n, n)
        fits = fits and self.outputs.ndim == 3 and self.outputs.shape[1] == self.outputs.shape[2]
        return fits and self.outputs.shape[0] * self.outputs.shape[1] >= rows

    def __add__(self, other: WeightStatistics) -> WeightStatistics:
        """Sums over both, for the same weight.

        A vector that only one of them knows to take up a shift or a gain is not used for it.

        Raises:
            EncodeError: they are of different layers, or of weights that differ.
        """
        chosen: dict[str, Any] = {}
        for name in ("shift", "gain"):
            both = {getattr(self, name), getattr(other, name)}
            self._expect(len(both - {None}) < 2, other)
            chosen[name] = None if None in both else getattr(self, name)
        both_shift = self.shift is not None and other.shift is not None
        self._expect(not both_shift or self.shift_sign == other.shift_sign, other)
        self._expect((self.shape, self.rows) == (other.shape, other.rows), other)
        chosen["shift_sign"] = self.shift_sign if chosen["shift"] is not None else 1
        chosen["sketch"] = self.sketch if self.sketch is not None else other.sketch
        if self.sketch is not None and other.sketch is not None:
            apart = distance(self.sketch, other.sketch)
            if apart > CHANGED:
                raise EncodeError(
                    f"statistics: of weights that differ by {apart:.0%} of their norm"
                )
        added = ("images", "synthetic", "vectors", "probes", *ARRAYS)
        sums = {name: getattr(self, name) + getattr(other, name) for name in added}
        return replace(self, **sums, **chosen)

    def _expect(self, condition: bool, other: WeightStatistics) -> None:
        if not condition:
            raise EncodeError(f"statistics: {self.shape} and {other.shape} are different layers")

    def over_more(self, others: Mapping[str, WeightStatistics]) -> WeightStatistics:
        """The same sums over further data, of which this weight saw nothing.

        Args:
            others: statistics of other weights over that data.
        """
        more = {
            name: getattr(self, name) + max((getattr(o, name) for o in others.values()), default=0)
            for name in ("images", "synthetic", "probes")
        }
        return replace(self, **more)


@dataclass(frozen=True, eq=False)
class Statistics(Mapping[str, WeightStatistics]):
    """Statistics of the weights of a network, by name.

    Attributes:
        weights: by name of the weight in the state dict.
        without: why a weight has none, by name; it is encoded without data.
    """

    weights: Mapping[str, WeightStatistics]
    without: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> WeightStatistics:
        return self.weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def __add__(self, other: Statistics) -> Statistics:
        """Statistics over the data of both.

        A weight that one of them lacks, such as that of an expert which got no sample, saw nothing
        of its data. Float64 sums: adding the same parts in the same order gives the same bits.

        Raises:
            EncodeError: statistics of different networks; says which weight.
        """
        sums = {}
        for name in {**self.weights, **other.weights}:
            one, more = self.weights.get(name), other.weights.get(name)
            if one is not None and more is not None:
                try:
                    sums[name] = one + more
                except EncodeError as error:
                    raise EncodeError(f"{error}: {name!r}") from error
            elif one is not None:
                sums[name] = one.over_more(other.weights)
            elif more is not None:
                sums[name] = more.over_more(self.weights)
        reasons = {**other.without, **self.without}
        return Statistics(sums, {name: why for name, why in reasons.items() if name not in sums})

    def made_up(self) -> Statistics:
        """The same, over samples that were made up; files that they are used for say so."""
        weights = {n: replace(one, synthetic=one.images) for n, one in self.weights.items()}
        return Statistics(weights, self.without)

    def objection(self, sampled: Callable[[str], NDArray[np.floating] | None]) -> str | None:
        """What speaks against using them on a network, None if nothing does.

        Args:
            sampled: elements of a weight at `sampled_places`, by name; None for one that is not
                there or has another shape.

        Raises:
            EncodeError: they are those of another network.
        """
        apart = {}
        for name, one in self.weights.items():
            found = sampled(name) if one.sketch is not None else None
            if one.sketch is not None and found is not None:
                apart[name] = distance(one.sketch, sketch_of(found))
        if not apart:
            return None
        if (middle := sorted(apart.values())[len(apart) // 2]) > ANOTHER:
            raise EncodeError(
                f"statistics: of another network: half of its weights differ by {middle:.0%} of "
                "their norm or more; calibrate this one"
            )
        changed = [name for name, value in apart.items() if value > CHANGED]
        if not changed:
            return None
        worst = max(changed, key=lambda name: apart[name])
        return (
            f"statistics: {len(changed)} of {len(apart)} weights have changed since, most "
            f"{worst!r}, by {apart[worst]:.0%} of its norm; calibrating again would do better"
        )

    def save(self, path: str | Path) -> None:
        """Write a file of numpy arrays (.npz), which appears whole or not at all."""
        about = {
            name: {f.name: getattr(one, f.name) for f in fields(one) if f.name not in ARRAYS}
            for name, one in self.weights.items()
        }
        document = {"format": FORMAT, "weights": about, "without": dict(self.without)}
        arrays: dict[str, Any] = {"about": np.array(json.dumps(document))}
        for i, one in enumerate(self.weights.values()):
            arrays |= {f"{i}.{name}": getattr(one, name) for name in ARRAYS}
        with replacing(Path(path)) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read what `save` wrote.

        Raises:
            EncodeError: the file is no such file.
            OSError: it cannot be read.
        """
        with streams.open(path) as raw:
            try:
                with np.load(raw, allow_pickle=False) as file:
                    document = json.loads(str(file["about"]))
                    if document["format"] != FORMAT:
                        raise EncodeError(f"{path}: {document['format']!r} is not {FORMAT!r}")
                    weights, without = {}, dict(document["without"])
                    for i, (name, about) in enumerate(document["weights"].items()):
                        about["shape"] = tuple(about["shape"])
                        if about.get("sketch") is not None:
                            about["sketch"] = tuple(map(float, about["sketch"]))
                        arrays = {key: file[f"{i}.{key}"] for key in ARRAYS}
                        weights[name] = WeightStatistics(**about, **arrays)
            except Exception as error:  # damaged files make numpy and zipfile raise anything
                if isinstance(error, EncodeError):
                    raise
                raise EncodeError(f"{path}: not a file of statistics") from error
        return cls(weights, without)
