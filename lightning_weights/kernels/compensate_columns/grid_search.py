"""Grids of quantized columns: where their levels lie, and the search for scales and zero points."""

from __future__ import annotations

import torch
from torch import Tensor

GRIDS = ("asymmetric", "quarot", "gptq")  # the latter two are symmetric, and differ in how they treat the sign
CLIP_STEPS, CLIP_GRID, CLIP_NORM = 80, 100, 2.4
SMALLEST = 1e-5  # of a row's largest weight, on QuaRot's symmetric grid
CHUNK = 1 << 17  # elements of a piece of the clipping search, whose temporaries stay in the cache


def search_grid(columns: Tensor, bits: int, grid: str, clip: bool) -> tuple[Tensor, Tensor]:
    """Find scale and zero point of every row over some columns.

    Levels are s(c - z) for codes c = 0 … 2ᵇ - 1. The symmetric grids have z = 2ᵇ⁻¹. On QuaRot's, the largest positive
    level is max|w|, and the smallest lies one step beyond -max|w|; on GPTQ's, the levels span ±max|w|, and a
    positive maximum falls between two of them.

    Args:
        columns: Weights of the group, transposed: one column of the layer per row, (group, m).
        bits: b.
        grid: ``asymmetric``, ``quarot`` or ``gptq``.
        clip: Whether to shrink the range in steps of 1 % as long as Σ|ŵ - w|^2.4 falls.

    Returns:
        Scale and zero point, (m,) each. A row of zeros gets the range ±1, or QuaRot's smallest scale.

    Examples:
        >>> search_grid(torch.tensor([[-1.0], [3.0]]), 2, "asymmetric", False)
        (tensor([1.3333]), tensor([1.]))
        >>> search_grid(torch.tensor([[-1.0], [3.0]]), 3, "quarot", False)
        (tensor([1.]), tensor([4.]))
    """
    low, high = columns.amin(0).clamp_(max=0.0), columns.amax(0).clamp_(min=0.0)
    if grid != "asymmetric":
        high = torch.maximum(high, -low)
        low = -high
    if grid == "quarot":
        high = high.clamp(min=SMALLEST)
    else:
        nothing = high - low <= torch.finfo(columns.dtype).tiny * 2**bits
        low, high = low.masked_fill(nothing, -1.0), high.masked_fill(nothing, 1.0)
    if not clip:
        return _grid(low, high, bits, grid)
    piece = max(1, CHUNK // len(columns)) if columns.device.type == "cpu" else max(1, columns.shape[1])
    found = [
        _clipped(columns[:, part], low[part], high[part], bits, grid)
        for part in (slice(start, start + piece) for start in range(0, columns.shape[1], piece))
    ]
    return torch.cat([scale for scale, _ in found]), torch.cat([zero for _, zero in found])


def _grid(low: Tensor, high: Tensor, bits: int, grid: str) -> tuple[Tensor, Tensor]:
    if grid == "quarot":
        return high / (2 ** (bits - 1) - 1), torch.full_like(high, 2 ** (bits - 1))
    scale = (high - low) / (2**bits - 1)
    return scale, torch.full_like(scale, 2 ** (bits - 1)) if grid == "gptq" else torch.round(-low / scale)


def _clipped(columns: Tensor, low: Tensor, high: Tensor, bits: int, grid: str) -> tuple[Tensor, Tensor]:
    """Try ranges of 100 %, 99 % … 21 % and keep the first of the best, row by row."""
    best = torch.full_like(low, torch.inf)
    scale, zero = _grid(low, high, bits, grid)
    for step in range(CLIP_STEPS):
        share = 1.0 - step / CLIP_GRID
        s, z = _grid(share * low, share * high, bits, grid)
        error = columns.div(s).round_().clamp_(-z, 2**bits - 1 - z).mul_(s).sub_(columns).abs_().pow_(CLIP_NORM).sum(0)
        better = error < best
        best = torch.where(better, error, best)
        scale, zero = torch.where(better, s, scale), torch.where(better, z, zero)
    return scale, zero
