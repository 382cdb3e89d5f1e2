"""Rows that every process has, together."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


def rows_of_processes(rows: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Return the rows of all processes, in the order of their ranks; each may have another number of them.

    The host waits for the numbers of rows.

    Args:
        rows: This process's rows, (N, columns); dtype and columns are the same everywhere.
        group: The processes; None: all of them.

    Returns:
        All rows, the same on every process.
    """
    size = torch.tensor([len(rows)], device=rows.device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, size, group=group)
    counts = [int(count) for count in sizes]
    padded = F.pad(rows, (0, 0, 0, max(counts) - len(rows))).contiguous()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def several_processes() -> bool:
    """Tell whether there is a group of more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
