"""The matrices of adapters cut into sheets of equal size, and put together again."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def sheet_count(shape: Sequence[int], rank: int, width: int) -> int:
    """Return how many sheets of rank × width numbers a tensor takes; no two tensors share one.

    Args:
        shape: Shape of the tensor.
        rank: Rank r of the adapters, the rows of a sheet.
        width: Width d of a token, the columns of a sheet.

    Examples:
        >>> sheet_count((4, 20), rank=4, width=8)  # 80 numbers
        3
    """
    return -(-math.prod(shape) // (rank * width))


def to_sheets(
    tensor: Tensor, dims: int, rank: int, width: int, *, rank_axis: int | None = None, fill: float = 0.0
) -> Tensor:
    """Cut a tensor into sheets, the last one filled up at its end.

    Args:
        tensor: Tensor (..., *shape), with any leading dimensions.
        dims: Number of dimensions of shape.
        rank: Rows of a sheet.
        width: Columns of a sheet.
        rank_axis: Which of the dimensions of shape, counted from the end as -1, -2 ..., becomes the rows of the sheets.
            ``None``: the tensor is cut as its numbers lie in memory, so that rows of a sheet mean nothing in
            particular.
        fill: What the end of the last sheet is filled with.

    Returns:
        Sheets (..., count, rank, width).

    Examples:
        >>> import torch
        >>> to_sheets(torch.arange(6.0).view(2, 3), 2, rank=2, width=2)
        tensor([[[0., 1.],
                 [2., 3.]],
        <BLANKLINE>
                [[4., 5.],
                 [0., 0.]]])
        >>> to_sheets(torch.arange(6.0).view(2, 3), 2, rank=2, width=2, rank_axis=-2)
        tensor([[[0., 1.],
                 [3., 4.]],
        <BLANKLINE>
                [[2., 0.],
                 [5., 0.]]])
    """
    count = sheet_count(tensor.shape[tensor.dim() - dims :], rank, width)
    if rank_axis is None:
        flat = tensor.flatten(-dims)
        filled = F.pad(flat, (0, count * rank * width - flat.shape[-1]), value=fill)
        sheets: Tensor = filled.unflatten(-1, (count, rank, width))
        return sheets
    rows = tensor.movedim(rank_axis, -dims).flatten(1 - dims)
    filled = F.pad(rows, (0, count * width - rows.shape[-1]), value=fill)
    sheets = filled.unflatten(-1, (count, width)).transpose(-3, -2)
    return sheets


def from_sheets(sheets: Tensor, shape: Sequence[int], *, rank_axis: int | None = None) -> Tensor:
    """Put a tensor together again, the inverse of [`to_sheets`][].

    Args:
        sheets: Sheets (..., count, rank, width).
        shape: Shape of the tensor.
        rank_axis: As it was cut.

    Returns:
        The tensor (..., *shape).

    Examples:
        >>> import torch
        >>> x = torch.arange(6.0).view(2, 3)
        >>> torch.equal(from_sheets(to_sheets(x, 2, rank=2, width=2), (2, 3)), x)
        True
    """
    if rank_axis is None:
        tensor: Tensor = sheets.flatten(-3)[..., : math.prod(shape)].unflatten(-1, tuple(shape))
        return tensor
    others = list(shape)
    del others[rank_axis]
    rows = sheets.transpose(-3, -2).flatten(-2)[..., : math.prod(others)]
    tensor = rows.unflatten(-1, others).movedim(-len(shape), rank_axis)
    return tensor
