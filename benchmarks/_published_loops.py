"""Column loops as the published implementations have them, written from the papers' equations.

Weights are (m, n); every column step slices a strided column, and changes all later columns of the block at once by an
outer product for each term: the rounding error with U, for GPTAQ the value with P, for ResComp the drift with R. FOEM
corrects the error and pulls the next column. Grids are per row and group, asymmetric, without clipping.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Loop(NamedTuple):
    """U and the settings of a loop; P for GPTAQ, R for ResComp, β for FOEM."""

    upper: Tensor
    p: Tensor | None = None
    r: Tensor | None = None
    bits: int = 3
    group_size: int = 128
    block_size: int = 128
    beta: float = 0.0
    outer: str = "current"

    @property
    def levels(self) -> int:
        return 2**self.bits - 1

    @property
    def has_values(self) -> bool:
        """Whether later blocks are told more than errors."""
        return self.p is not None or self.r is not None


class Quantized(NamedTuple):
    """What a loop leaves: levels, (m, n), and scales and zero points of all groups, (m, groups)."""

    levels: Tensor
    scale: Tensor
    zero: Tensor

    @property
    def codes(self) -> Tensor:
        """Codes, which published loops do not write."""
        size = -(-self.levels.shape[1] // self.scale.shape[1])
        scale, zero = (grid.repeat_interleave(size, 1)[:, : self.levels.shape[1]] for grid in self[1:])
        return torch.round(self.levels / scale + zero).to(torch.uint8)


def inverse_factor(hessian: Tensor, damp: float) -> Tensor:
    """Return U as published implementations compute it: the inverse is built, and factorized again."""
    h = hessian.clone()
    h.diagonal().add_(damp * h.diagonal().mean())
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)


def correction(asymmetry: Tensor, upper: Tensor, alpha: float) -> Tensor:
    """Return P as GPTAQ's implementation computes it."""
    return alpha * torch.triu(asymmetry @ upper.T, diagonal=1) @ upper


def published(weight: Tensor, loop: Loop) -> Quantized:
    """Quantize a matrix."""
    w, original = weight.clone(), weight.clone() if loop.r is not None or loop.beta else weight
    quantized, losses = torch.zeros_like(w), torch.zeros_like(w)
    grids: list[tuple[Tensor, Tensor]] = []
    for i1 in range(0, w.shape[1], loop.block_size):
        i2 = min(i1 + loop.block_size, w.shape[1])
        block, w0 = slice(i1, i2), original[:, i1:i2]
        quantized[:, block], errors, told, losses[:, block] = one_block(w, w0, i1, i2, loop, grids)
        w[:, i2:] -= errors.matmul(loop.upper[block, i2:])
        if loop.p is not None:
            w[:, i2:] += told.matmul(loop.p[block, i2:])
        if loop.r is not None:
            w[:, i2:] += (w0 - told).matmul(loop.r[block, i2:])
    return Quantized(quantized, *(torch.cat(parts, 1) for parts in zip(*grids, strict=True)))


def one_block(
    w: Tensor, w0: Tensor, i1: int, i2: int, loop: Loop, grids: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return levels, errors, what later blocks are told, and losses of columns i1 to i2."""
    w1 = w[:, i1:i2].clone()
    quantized, errors, losses = (torch.zeros_like(w1) for _ in range(3))
    told = torch.zeros_like(w1) if loop.outer in ("current", "clamped") and loop.has_values else w1
    u = loop.upper[i1:i2, i1:i2]
    for i in range(i2 - i1):
        if (i1 + i) % loop.group_size == 0:
            grids.append(grid(w[:, i1 + i : i1 + i + loop.group_size], loop.levels))
        (scale, zero), column, d = grids[-1], w1[:, i], u[i, i]
        code = torch.clamp(torch.round(column.unsqueeze(1) / scale) + zero, 0, loop.levels)
        near = (scale * (code - zero)).flatten()
        quantized[:, i] = near
        losses[:, i] = (column - near) ** 2 / d**2
        error = (column - near) / d
        if loop.beta:
            error = (column - near - loop.beta * (column - w0[:, i])) / d
        if loop.outer == "clamped":
            told[:, i] = torch.clamp(column, (-zero * scale).flatten(), ((loop.levels - zero) * scale).flatten())
        elif told is not w1:
            told[:, i] = column
        update = error.unsqueeze(1).matmul(u[i, i:].unsqueeze(0))
        if loop.p is not None:
            update = update - column.unsqueeze(1).matmul(loop.p[i1 + i, i1 + i : i2].unsqueeze(0))
        if loop.r is not None:
            update = update - (w0[:, i] - column).unsqueeze(1).matmul(loop.r[i1 + i, i1 + i : i2].unsqueeze(0))
        w1[:, i:] -= update  # leaves what the error does not take away: ŵ, or FOEM's ŵ + β(w - W⁰)
        errors[:, i] = error
        if loop.beta and i + 1 < i2 - i1:
            w1[:, i + 1] -= loop.beta * (w1[:, i + 1] - w0[:, i + 1])
    return quantized, errors, told, losses


def grid(columns: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of every row, (m, 1) each."""
    low, high = columns.amin(1, keepdim=True).clamp_(max=0.0), columns.amax(1, keepdim=True).clamp_(min=0.0)
    scale = (high - low) / levels
    return scale, torch.round(-low / scale)
