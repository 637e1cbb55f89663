"""Rate: bits of latents under the tables that the file would have, and their slope."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from tqcodec.encoder import tables
from tqcodec.encoder.assembly import INDEX_CLUSTERS
from tqcodec.encoder.histograms import Histograms
from tqcodec.encoder.matrix.classes import Levels, class_count
from tqcodec.encoder.matrix.levels import level_bits
from tqcodec.encoder.matrix.quantizer import UNIFORM
from tqcodec.encoder.rate_control import rates_of
from tqcodec.torch.retraining.latent import Latent

TABLE_COUNTS = (16, 32)  # numbers of tables that are tried while training
ROUNDS = 5  # of classes and tables in turn; more bring next to nothing


class Rate:
    """Bits of the coefficients of a network by tables that are fitted to them.

    Between two whole numbers the bits are interpolated, so that the slope of a latent is what the
    file saves where it falls to the next smaller integer.

    Args:
        latents: of all matrices.

    Attributes:
        bits: of the integers, when the tables were fitted.
    """

    def __init__(self, latents: Sequence[Latent]) -> None:
        self._latents = latents
        self.bits = 0.0
        self.fit()

    def classify(self) -> None:
        """Fit classes and tables in turn, each to the other; the best of them are kept."""
        self.fit()
        found = [self._priced_levels()]
        for latent in self._latents:
            if class_count(latent.levels) == 1:  # else nothing would ever tell its channels apart
                latent.classify()
        self.fit()
        for _ in range(ROUNDS):
            for latent, rates in zip(self._latents, self._rates, strict=True):
                latent.refit(rates)
            self.fit()
            found.append(self._priced_levels())
        _, best = min(found, key=itemgetter(0))
        for latent, levels in zip(self._latents, best, strict=True):
            latent.levels = levels
        self.fit()

    def _priced_levels(self) -> tuple[float, list[Levels]]:
        """Bits of integers and levels, and the levels."""
        levels = [latent.levels for latent in self._latents]
        return self.bits + sum(map(level_bits, levels)), levels

    def fit(self) -> None:
        """Fit tables to the integers, as the file will have them."""
        counted = []
        for latent in self._latents:
            q = latent.integers
            classes = latent.classes()
            present = q.any(dim=0)  # columns that are all zero are not in the file
            kept = q[:, present].cpu().numpy().astype(np.int32)
            of = classes[:, present].cpu().numpy()
            counted.append(UNIFORM.count(kept, of, class_count(latent.levels)))
        joined = Histograms.join(counted)
        fitted = tables.fit(joined, INDEX_CLUSTERS, True, TABLE_COUNTS)
        self.bits = float(tables.group_bits(joined, fitted).sum())
        self._rates = rates_of(fitted, counted)
        self._slopes = []
        for latent, rates in zip(self._latents, self._rates, strict=True):
            lengths = torch.from_numpy(rates.lengths[:, 0]).to(latent.values.device)
            slopes = lengths.diff(dim=1)
            cluster = torch.from_numpy(rates.cluster).to(latent.values.device)
            base = cluster[latent.classes()] * slopes.shape[1]
            self._slopes.append((slopes.reshape(-1), base, slopes.shape[1]))

    def gradients(self) -> list[Tensor]:
        """Derivatives of the bits by the latents, each of their shape."""
        out = []
        for latent, (slopes, base, width) in zip(self._latents, self._slopes, strict=True):
            magnitude = latent.values.abs()
            index = magnitude.floor().long().clamp_(max=width - 1) + base
            out.append(slopes[index] * latent.values.sign())
        return out
