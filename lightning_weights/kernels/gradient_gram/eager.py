"""The Gram matrix of gradients without Triton: a cache-sized piece of every row at a time, nothing concatenated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK = 1 << 17  # elements of each row: pieces that several products need stay in the cache, and calls cost little


@torch.inference_mode()
def gram_in_pieces(gradients: Sequence[Tensor], objectives: int) -> Tensor:
    """Add up inner products; arguments as in the registered operator.

    Pieces are multiplied in fp32 or wider and added up in fp64.

    Returns:
        The matrix, (K, K).
    """
    device = gradients[0].device
    count = len(gradients) // objectives
    if device.type != "cpu":
        return _on_a_device(gradients, objectives)
    sums = [[0.0] * objectives for _ in range(objectives)]
    for place in range(count):
        rows = [gradients[k * count + place].reshape(-1) for k in range(objectives)]
        wide = torch.promote_types(rows[0].dtype, torch.float32)
        for start in range(0, len(rows[0]), CHUNK):
            pieces = [row[start : start + CHUNK].to(wide) for row in rows]
            for i, a in enumerate(pieces):
                for j, b in enumerate(pieces[i:], start=i):
                    sums[i][j] += float(torch.dot(a, b))
    return torch.tensor(
        [[sums[min(i, j)][max(i, j)] for j in range(objectives)] for i in range(objectives)],
        dtype=torch.float64,
        device=device,
    )


def _on_a_device(gradients: Sequence[Tensor], objectives: int) -> Tensor:
    """Do it tensor by tensor, without waiting for the device."""
    count, like = len(gradients) // objectives, gradients[0]
    gram = torch.zeros(objectives, objectives, dtype=sum_dtype(like), device=like.device)
    for place in range(count):
        rows = torch.stack([gradients[k * count + place].reshape(-1) for k in range(objectives)])
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        gram += (rows @ rows.T).to(gram.dtype)
    return gram


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """Return the type of sums: fp64, or fp32 on the one kind of device that has no other."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
