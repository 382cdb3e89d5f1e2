"""Tables from which kernels read many tensors in one launch: where each starts, and which block a program takes."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.lru_cache(maxsize=64)
def address_table(starts: tuple[int, ...], device: torch.device, stream: int) -> Tensor:
    """Return addresses on a device, from a cache while they repeat.

    Args:
        starts: Addresses, and whatever else a kernel reads beside them.
        device: Where the kernel runs.
        stream: Part of the key, since memory is reused in the order of its own stream.

    Returns:
        One-dimensional int64 tensor.
    """
    return torch.tensor(starts, dtype=torch.int64, device=device)


@functools.lru_cache(maxsize=64)
def task_tables(numels: tuple[int, ...], block: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Split tensors into full blocks and tails.

    Args:
        numels: Elements of each tensor.
        block: Elements of a block.
        device: Where the kernel runs.

    Returns:
        Two int64 tables of (tensor, first element, number of elements), one row per program.
    """
    sizes = torch.tensor(numels, dtype=torch.int64)
    blocks = sizes // block
    tensor = torch.repeat_interleave(torch.arange(len(numels)), blocks)
    index = torch.arange(len(tensor)) - (blocks.cumsum(0) - blocks)[tensor]
    full = torch.stack([tensor, index * block, torch.full_like(tensor, block)], dim=1)
    tails = torch.stack([torch.arange(len(numels)), blocks * block, sizes % block], dim=1)
    return full.to(device), tails[tails[:, 2] > 0].to(device)
