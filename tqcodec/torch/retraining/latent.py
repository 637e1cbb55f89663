"""Latents: what is trained in place of weights, and how weights and gradients follow from it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tqcodec.encoder.matrix.bases import analysis_of
from tqcodec.encoder.matrix.classes import Levels, fit_levels
from tqcodec.encoder.matrix.levels import refitted
from tqcodec.encoder.matrix.quantizer import Rates
from tqcodec.encoder.matrix.record import is_uniform, with_integers
from tqcodec.format.dtypes import DType
from tqcodec.format.reconstruct import domain, reconstruct
from tqcodec.format.records import CodedTensor, axis_lengths, axis_order
from tqcodec.format.registry import MAX_DEPTH, Quantizer
from tqcodec.torch import synthesis

LARGEST = (1 << (MAX_DEPTH - 1)) - 1  # magnitude of an integer
RESIDUAL = 0.4  # of a step by which a latent starts off its integer at most


class Latent:
    """The coefficients of one weight matrix as real numbers, in units of the step.

    Weights are made of the integers nearest to them (spec/tqc.md, 10.1); gradients go straight
    through the rounding (Bengio et al. 2013; Young et al. 2021, section V).

    Args:
        record: where the training starts: its bases, relative steps and columns stay.
        shape: of the tensor.
        device: where the numbers are.
        original: the weights before coding: they say on which side of its integer a latent starts;
            None where they are not known.

    Attributes:
        values: float32 (channels out, kept columns).
        log_scale: float32 (), natural logarithm of the step over that of the record.
        levels: class levels of the channels of the three axes.
    """

    def __init__(
        self,
        record: CodedTensor,
        shape: tuple[int, ...],
        device: torch.device,
        original: Tensor | None,
    ) -> None:
        found = domain(record, shape)
        self._record = record
        self._shape = shape
        self._lengths = axis_lengths(shape, record.roles)
        self._order = axis_order(record.roles)
        self._channels = found.channels
        self._columns = torch.from_numpy(found.columns.astype(np.int64)).to(device)
        self._complete = len(found.columns) == self._channels[1] * self._channels[2]

        def real(array: NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(np.asarray(array, np.float32)).to(device)

        # Integers of bases and relative steps are large: their sizes go into the step.
        self._unit, self._bases = 1.0, []
        for rows in found.bases:
            norm = 1.0 if rows is None else _norm(rows)
            self._unit *= norm
            self._bases.append(None if rows is None else real(rows / norm))
        middle = _middle(found.multipliers)
        self._multipliers = real(found.multipliers / middle)
        center = _middle(found.row_scales)
        self._rows = real(found.row_scales / center)[:, None, None]
        self._unit *= middle * center
        self._scale = math.ldexp(*found.scale)
        self.log_scale = torch.zeros((), device=device)
        out_levels, in_levels, taps_levels = (level.values.copy() for level in record.levels)
        self.levels: Levels = (out_levels, in_levels, taps_levels)
        self.values = real(found.coefficients)
        if original is not None:
            off = self._analysed(original.to(device, torch.float32)) - self.values
            self.values += off.clamp(-RESIDUAL, RESIDUAL)
        if record.quantizer == Quantizer.TRELLIS:  # whose integers count half steps
            self.double_step()
        if not is_uniform(record):
            self.classify()

    @property
    def integers(self) -> Tensor:
        """The coefficients: float32 (channels out, kept columns), whole numbers of the format."""
        return self.values.round().clamp(-LARGEST, LARGEST)

    @property
    def _step(self) -> Tensor:
        """The step, for bases and relative steps of about 1."""
        return self.log_scale.exp() * (self._scale * self._unit)

    def weights(self) -> Tensor:
        """The weights, of the tensor's shape; those of the file but for rounding in float32."""
        out, inn, taps = self._bases
        columns = None if self._complete else self._columns
        kept = self.integers * self._multipliers
        sums = synthesis.of_columns(kept, columns, self._channels[1:], inn, taps)
        weights = synthesis.of_rows(sums, out, self._rows.flatten() * self._step)
        spread = weights.reshape([self._shape[d] for d in self._order])
        return spread.permute([self._order.index(d) for d in range(len(self._shape))])

    def gradients(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients by `values` and by `log_scale`, for one by the weights.

        Rounding is taken for no change; the derivative by the logarithm of the step is exact.
        """
        q = self._projected(gradient) * self._step
        return q, (q * self.integers).sum()

    def _projected(self, tensor: Tensor) -> Tensor:
        """A tensor of weights by the transposed synthesis, (channels out, kept columns)."""
        x = tensor.permute(self._order).reshape(self._lengths) * self._rows
        return self._kept(x, self._bases) * self._multipliers

    def _analysed(self, weights: Tensor) -> Tensor:
        """Coefficients of weights over their steps, by least squares."""
        x = weights.permute(self._order).reshape(self._lengths)
        x = x / torch.where(self._rows > 0, self._rows, 1.0) / self._step
        analyses = [
            None
            if rows is None
            else torch.from_numpy(analysis_of(rows.double().cpu().numpy())).to(x)
            for rows in self._bases
        ]
        return self._kept(x, analyses) / self._multipliers

    def _kept(self, x: Tensor, bases: Sequence[Tensor | None]) -> Tensor:
        """Products with the rows of each axis's basis, (channels out, kept columns)."""
        out, inn, taps = bases
        x = x if out is None else torch.einsum("pit,op->oit", x, out)
        x = x if inn is None else torch.einsum("ojt,ij->oit", x, inn)
        x = x if taps is None else x @ taps.T
        flat = x.reshape(len(x), -1)
        return flat if self._complete else flat[:, self._columns]

    def double_step(self) -> None:
        """Halve all values, for the same weights but for rounding."""
        self.values /= 2
        self.log_scale += math.log(2)

    def classify(self) -> None:
        """Fit the class levels to the sizes of the latents as they are now."""
        self.levels = fit_levels(self._full(self.values.abs()))

    def refit(self, rates: Rates) -> None:
        """Fit the class levels to the integers as they are now, by the code lengths they have."""
        q = self._full(self.integers).astype(np.int32)
        self.levels = refitted(self.levels, q.reshape(len(q), -1), rates)

    def _full(self, kept: Tensor) -> NDArray[np.float32]:
        """Coefficients of all columns, (channels out, in, taps); those that are not kept are 0."""
        full = np.zeros((len(kept), self._channels[1] * self._channels[2]), np.float32)
        full[:, self._columns.cpu().numpy()] = kept.cpu().numpy()
        return full.reshape(len(full), *self._channels[1:])

    def record(self) -> CodedTensor:
        """The record of the integers."""
        integers = self.integers.cpu().numpy().astype(np.int32)
        scale = self._scale * math.exp(float(self.log_scale))
        return with_integers(self._record, integers, scale, self.levels)

    def patterns(self, dtype: DType) -> NDArray[np.unsignedinteger]:
        """Bit patterns of the weights that a decoder makes of `record`."""
        return reconstruct(self.record(), self._shape, dtype)

    def classes(self) -> Tensor:
        """Class of each coefficient: int64 (channels out, kept columns)."""
        out, inn, taps = (level.astype(np.int64) for level in self.levels)
        columns = (inn[:, None] + taps[None, :]).ravel()[self._columns.cpu().numpy()]
        return torch.from_numpy(out[:, None] + columns).to(self.values.device)


def _norm(rows: NDArray[np.int64]) -> float:
    """Root mean square of the lengths of rows; 1 where there are none."""
    return math.sqrt(float((rows.astype(float) ** 2).sum()) / max(1, len(rows))) or 1.0


def _middle(factors: NDArray[np.int64]) -> float:
    """Geometric mean, with 1 in place of 0; 1 where there are none."""
    return math.exp(float(np.log(np.maximum(factors, 1)).mean())) if len(factors) else 1.0
