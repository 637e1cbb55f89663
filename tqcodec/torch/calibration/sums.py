"""Sums of second moments over the calibration data, kept on the device in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tqcodec.encoder.statistics import WeightStatistics
from tqcodec.torch.calibration.layers import Layer, Use, working

CHUNK = 1 << 26  # bytes of unfolded inputs and what is made of them at a time
LEAST_HALVED = 256  # rows from which halving a symmetric product pays


class UnfitError(Exception):
    """Why a weight cannot have statistics."""


class Sums:
    """Sums for one weight, or for one part of it.

    Products are of float32 (float64 if the network is), chunk by chunk; the chunks are added in
    float64.

    Attributes:
        layer: how the weight is used.
        images, vectors, probes: as in `WeightStatistics`.
    """

    def __init__(self, layer: Layer, block: int, device: torch.device) -> None:
        """Zeros. Raises UnfitError for groups wider than `block`."""
        self.layer = layer
        self.images = self.vectors = self.probes = 0
        groups, n = layer.groups, layer.width
        if layer.groups > 1 and layer.width > block:
            raise UnfitError(f"groups of {layer.width} columns, more than block={block}")
        if layer.width > block:
            taps = math.prod(layer.shape[2:])  # of one input channel stay together, for a basis
            channels = math.ceil(layer.width / taps / math.ceil(layer.width / block))
            n = channels * taps
            groups = math.ceil(layer.width / n)
        rows = layer.height if layer.rows else layer.height * layer.groups
        if layer.embedding:
            strips, m = rows, 1
        else:
            strips = math.ceil(rows / block)
            m = math.ceil(rows / strips)
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        self.inputs, self.sums = zeros(groups, n, n), zeros(groups, n)
        self.outputs, self.gradients = zeros(strips, m, m), zeros(groups, n, n)

    def add(self, uses: Sequence[Use], samples: int, first: bool) -> None:
        """Add the calls of one forward pass.

        Args:
            uses: calls; one without a gradient did not reach the output.
            samples: in the batch. Where a call's batch is no multiple of it, the whole batch counts
                as one sample in `gradients`: signs are independent, so the expectation is the same.
            first: False for a further probe of the same inputs.
        """
        self.images += samples if first else 0
        self.probes += samples
        if self.layer.embedding:
            self._add_tokens(uses)
            return
        pairs = []
        for use in uses:
            g = use.x.new_zeros(()).expand(use.shape) if use.gradient is None else use.gradient
            pairs.append((use, use.items(use.x, samples), use.items(g, samples)))
        if any(len(x) % samples for _, x, _ in pairs):
            samples = 1
        shares = [len(x) // samples for _, x, _ in pairs]
        values = self.layer.groups * self._values(sum(g.numel() for _, _, g in pairs) // samples)
        step = max(1, CHUNK // (4 * values))
        for start in range(0, samples, step):
            parts = []
            for (use, x, g), share in zip(pairs, shares, strict=True):
                chosen = slice(start * share, (start + step) * share)
                both = use.columns(x[chosen]), use.rows(g[chosen])
                parts.append([_joined(part, share) for part in both])
            columns, rows = (
                parts[0]
                if len(parts) == 1
                else (torch.cat(part, -1) for part in zip(*parts, strict=True))
            )
            self._add_chunk(columns, rows, first)

    def _values(self, outputs: int) -> int:
        """Numbers for each sample and group that a chunk holds at a time."""
        m, n = self.layer.height, self.layer.width
        positions = max(1, outputs // (m * self.layer.groups))
        products = n * m
        if _by_positions(m, n, positions):
            products = positions * (positions + n)
        return positions * (n + m) + products

    def _add_chunk(self, columns: Tensor, rows: Tensor, first: bool) -> None:
        """Add columns (groups, samples, n, positions) and rows (groups, samples, m, positions)."""
        self._add_outputs(rows)
        n, positions = self.layer.width, rows.shape[3]
        vectors = columns.shape[1] * positions
        if len(self.inputs) != self.layer.groups:
            columns = _split(columns, len(self.inputs), self.inputs.shape[1])
        if first:
            self.vectors += vectors
            self.sums += columns.sum((1, 3))
            if self.layer.groups == 1:
                add_gram(self.inputs, columns.transpose(1, 2).flatten(2))
            else:
                self.inputs += (columns @ columns.mT).sum(1)
        if _by_positions(rows.shape[2], n, positions):
            weighted = (rows.mT @ rows) @ columns.mT  # (groups, samples, positions, n)
            flat = columns.transpose(1, 2).flatten(2)
            self.gradients += flat @ weighted.flatten(1, 2)
        else:
            gradient = (rows @ columns.mT).flatten(1, 2)  # (groups, samples * m, n)
            add_gram(self.gradients, gradient.mT)

    def _add_outputs(self, rows: Tensor) -> None:
        flat = rows.transpose(1, 2).flatten(2)
        if not self.layer.rows:
            flat = flat.flatten(0, 1)[None]
        strips, m, _ = self.outputs.shape
        for group in flat:
            add_gram(self.outputs, group[None] if strips == 1 else _split(group[None], strips, m))

    def _add_tokens(self, uses: Sequence[Use]) -> None:
        """Gradients by the vectors that the tokens chose, as often as each was chosen."""
        for use in uses:
            if use.gradient is not None:
                tokens = use.x.flatten()
                g = working(use.gradient).reshape(len(tokens), -1).mT[None]
                if len(self.inputs) > 1:
                    g = _split(g, len(self.inputs), self.inputs.shape[1])
                add_gram(self.inputs, g)
                self.vectors += len(tokens)
                counts = torch.bincount(tokens, minlength=len(self.outputs))
                self.outputs += counts[:, None, None]
        self.gradients = self.inputs


def joined(shape: tuple[int, ...], parts: Sequence[Sums]) -> WeightStatistics:
    """Statistics of a weight from the sums of its parts; those of inputs for as many vectors.

    Raises:
        UnfitError: the output of the network does not depend on it.
        FloatingPointError: a sum is not finite.
    """
    vectors = parts[0].vectors
    scales = [vectors / max(1, part.vectors) for part in parts]
    tensors = {
        "inputs": [mirrored(p.inputs) * scale for p, scale in zip(parts, scales, strict=True)],
        "sums": [p.sums * scale for p, scale in zip(parts, scales, strict=True)],
        "outputs": [mirrored(p.outputs) for p in parts],
        "gradients": [mirrored(p.gradients) for p in parts],
    }
    arrays: dict[str, Any] = {name: torch.cat(each).cpu().numpy() for name, each in tensors.items()}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise FloatingPointError
    if not arrays["outputs"].any():
        raise UnfitError("the output does not depend on it")
    one = parts[0]
    return WeightStatistics(shape, one.layer.rows, one.images, vectors, one.probes, **arrays)


def _by_positions(m: int, n: int, positions: int) -> bool:
    """Whether x^T (g^T g) x takes fewer operations than (g x)^T (g x)."""
    return positions * (m + n) * positions + n * n * positions < m * n * (positions + n)


def _joined(tensor: Tensor, share: int) -> Tensor:
    """(groups, items, n, positions) with the positions of each `share` items beside each other."""
    if share == 1:
        return tensor
    groups, _, n, positions = tensor.shape
    return tensor.reshape(groups, -1, share, n, positions).transpose(2, 3).flatten(3)


def _split(tensor: Tensor, blocks: int, size: int) -> Tensor:
    """(1, ..., n, positions) -> (blocks, ..., size, positions), the last padded with zeros."""
    missing = blocks * size - tensor.shape[-2]
    padded = functional.pad(tensor, [0, 0, 0, missing])
    apart = padded.reshape(*padded.shape[1:-2], blocks, size, padded.shape[-1])
    return apart.movedim(-3, 0)


def add_gram(total: Tensor, x: Tensor) -> None:
    """Add X X^T of x (blocks, n, k) to the diagonal and what is left of it."""
    n = x.shape[1]
    if n < LEAST_HALVED:
        total += x @ x.mT
        return
    half = n // 2
    total[:, half:, :half] += x[:, half:] @ x[:, :half].mT
    add_gram(total[:, :half, :half], x[:, :half])
    add_gram(total[:, half:, half:], x[:, half:])


def mirrored(total: Tensor) -> Tensor:
    """The symmetric matrices of which the diagonal and what is left of it are given."""
    return total.tril() + total.tril(-1).mT
