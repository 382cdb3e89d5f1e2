"""The block-affine weight and its gradients without Triton: no permuted copies, and pieces of limited size."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PIECE = 1 << 20  # elements of the weight that are worked on at once: 4 MiB in fp32

Index = tuple[slice, slice, slice]


def build(weight: Tensor, block: Tensor, dtype: torch.dtype, offset: bool) -> Tensor:
    """Return W(I + B) + B, or W(I + B) without ``offset``; arguments as in [`block_affine`][]."""
    r = block.shape[-1]
    wide = _wide(weight, block)
    summand = block.to(wide)
    factor = summand + torch.eye(r, dtype=wide, device=block.device)
    built = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    tiles, targets = _tiles(weight, r), _tiles(built, r)
    for (rows, column), where in _pieces(tiles, block.shape):
        source, target = tiles[where], targets[where]
        count = rows.stop - rows.start
        size = (count, source.numel() // (count * r), r)
        direct = target.is_contiguous() and dtype == wide
        product = target.view(size) if direct else torch.empty(size, dtype=wide, device=weight.device)
        # With out= neither autocast nor a copy comes between.
        torch.bmm(source.reshape(size).to(wide), factor[rows, column], out=product)
        tile = product.view(count, -1, *source.shape[1:])
        if offset:
            torch.add(tile, summand[rows, column][:, None, :, None], out=target.unflatten(0, tile.shape[:2]))
        elif not direct:
            target.copy_(product.view(source.shape))
    return built


def gradient(grad: Tensor, tokens: Tensor | None, weight: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    """Return the gradient of the block, the sum of (W + I)ᵀ dW' over the blocks of the weight that share it.

    Args:
        grad: Gradient dW' of the built weight, or with ``tokens`` that of the layer's outputs (T, out).
        tokens: Inputs of the layer (T, in); dW' is then their product, made piece by piece.
        weight: W (out, in).
        shape: That of the block, (g_o, g_i, r, r).
        dtype: That of the block.
    """
    r = shape[-1]
    wide = torch.promote_types(_wide(weight, grad), dtype)
    result = torch.empty(shape, dtype=dtype, device=weight.device)
    tiles = _tiles(weight, r)
    for (rows, column), where in _pieces(tiles, shape):
        source = tiles[where]
        if tokens is None:
            slope = _tiles(grad, r)[where]
        else:
            outputs, inputs = (
                matrix.unflatten(1, (-1, r))[:, index].flatten(1)
                for matrix, index in ((grad, where[0]), (tokens, where[2]))
            )
            slope = torch.empty((outputs.shape[1], inputs.shape[1]), dtype=grad.dtype, device=grad.device)
            torch.mm(outputs.t(), inputs, out=slope)
            slope = slope.view(source.shape)
        count = rows.stop - rows.start
        slope = slope.to(wide)
        sums = slope.reshape(count, -1, *slope.shape[1:]).sum((1, 3))
        left = source.reshape(count, -1, r).to(wide)
        result[rows, column] = sums.baddbmm_(left.transpose(1, 2), slope.reshape(left.shape))
    return result


def _wide(*tensors: Tensor) -> torch.dtype:
    wide = torch.float32
    for tensor in tensors:
        wide = torch.promote_types(wide, tensor.dtype)
    return wide


def _tiles(matrix: Tensor, r: int) -> Tensor:
    """View a matrix as (block rows, r, block columns, r)."""
    tiles: Tensor = matrix.unflatten(1, (-1, r)).unflatten(0, (-1, r))
    return tiles


def _pieces(tiles: Tensor, shape: torch.Size | list[int]) -> Iterator[tuple[tuple[slice, int], Index]]:
    """Split the blocks of a weight into groups that share a block of the grid, or contiguous ones with one block each.

    Yields:
        Where the blocks are in the grid, consecutive rows of one column, and their users in the tiles.
    """
    grid_out, grid_in, r, _ = shape
    blocks_out, _, blocks_in, _ = tiles.shape
    if (grid_out, grid_in) == (blocks_out, 1):
        step = max(1, PIECE // max(1, r * r * blocks_in))
        for start in range(0, blocks_out, step):
            rows = slice(start, min(start + step, blocks_out))
            yield (rows, 0), (rows, slice(None), slice(None))
    else:
        for row in range(grid_out):
            for column in range(grid_in):
                where = (slice(row, None, grid_out), slice(None), slice(column, None, grid_in))
                yield (slice(row, row + 1), column), where
