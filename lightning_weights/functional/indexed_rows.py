"""Rows that carry the numbers of samples: one per sample, in their order."""

from __future__ import annotations

import torch
from torch import Tensor

SHOWN = 5  # samples that a message names


def unique_rows(indices: Tensor, rows: Tensor, what: str = "predictions") -> tuple[Tensor, Tensor]:
    """Sort rows by the number of their sample, and keep one of those that are there several times.

    Samplers that pad the share of a process give a sample to two of them: both have the same row, up to what another
    batch changes in rounding. Samples whose rows differ by more than the square root of the type's precision, of the
    largest entry, share a number by mistake.

    Args:
        indices: Number of every row's sample (n,), whole.
        rows: Anything with n rows.
        what: What the rows are, for messages.

    Returns:
        The different numbers, ascending, and a row for each: of several, the first.

    Raises:
        ValueError: If rows of one sample contradict each other.

    Examples:
        >>> unique_rows(torch.tensor([2, 0, 2]), torch.tensor([[5.0], [1.0], [5.0]]))
        (tensor([0, 2]), tensor([[1.],
                [5.]]))
    """
    order = torch.argsort(indices, stable=True)
    indices, rows = indices[order], rows[order]
    first = torch.ones(len(indices), dtype=torch.bool, device=indices.device)
    first[1:] = indices[1:] != indices[:-1]
    group = first.cumsum(0) - 1
    kept = rows[first]
    if len(kept) < len(rows):
        differs = _differs(rows, kept[group])
        if bool(differs.any()):
            named = ", ".join(map(str, indices[differs].unique()[:SHOWN].tolist()))
            raise ValueError(
                f"the {what} of sample {named} contradict each other: it comes several times, with different rows. "
                f"Either two samples share an index (put one data.IndexedDataset around the whole data), or the "
                f"{what} are random (switch dropout off)"
            )
    return indices[first], kept


def _differs(rows: Tensor, others: Tensor) -> Tensor:
    if not rows.is_floating_point():
        return (rows != others).flatten(1).any(1) if rows.dim() > 1 else rows != others
    rows, others = rows.flatten(1) if rows.dim() > 1 else rows[:, None], others.reshape(len(rows), -1)
    largest = rows.abs().nan_to_num(posinf=0.0).amax().clamp(min=1e-30)
    return ~torch.isclose(
        rows / largest, others / largest, rtol=0.0, atol=torch.finfo(rows.dtype).eps ** 0.5, equal_nan=True
    ).all(dim=1)


def missing_numbers(indices: Tensor, expected: Tensor) -> Tensor:
    """Return the numbers that are expected and not there.

    Args:
        indices: Numbers that are there.
        expected: Numbers that should be.
    """
    return expected[~torch.isin(expected, indices)]
