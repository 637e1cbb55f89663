"""Synthesis in tensors: weights of coefficients in floating point (spec/tqc.md, 10.1)."""

from __future__ import annotations

from torch import Tensor


def of_columns(
    kept: Tensor,
    columns: Tensor | None,
    channels: tuple[int, int],
    inn: Tensor | None,
    taps: Tensor | None,
) -> Tensor:
    """Sums over the channels of the input axis and of the taps.

    Args:
        kept: coefficients by their steps (..., kept columns).
        columns: numbers of these columns, int64; None where all are kept.
        channels: of the two axes.
        inn, taps: their bases (channels, positions); None without a basis.

    Returns:
        (..., positions of the input axis times those of the taps).
    """
    if columns is not None:
        full = kept.new_zeros((*kept.shape[:-1], channels[0] * channels[1]))
        kept = full.index_copy_(-1, columns, kept)
    sums = kept.unflatten(-1, channels)
    if taps is not None:
        sums = sums @ taps
    if inn is not None:
        sums = (sums.transpose(-1, -2) @ inn).transpose(-1, -2)
    return sums.flatten(-2)


def of_rows(sums: Tensor, out: Tensor | None, scales: Tensor) -> Tensor:
    """Weights (output axis, all others) of sums of the channels of the output axis.

    Args:
        sums: as of `of_columns`, (channels out, all others).
        out: basis (channels, positions); None without one.
        scales: of the positions.
    """
    sums = sums if out is None else out.T @ sums
    return sums * scales[:, None]
