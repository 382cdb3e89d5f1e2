"""One block of column-by-column quantization: sequential columns, parallel rows, grids found on the way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_weights.errors import KernelUnavailableError, ShardedParameterError, check_choice
from lightning_weights.kernels._op import kernel_mode, register, takes_triton
from lightning_weights.kernels.compensate_columns.cost import LONGEST_BLOCK
from lightning_weights.kernels.compensate_columns.eager import compensate_in_pieces
from lightning_weights.kernels.compensate_columns.grid_search import GRIDS, search_grid
from lightning_weights.kernels.compensate_columns.reference import OUTER, compensate_columns_reference, search_block

__all__ = ["GRIDS", "OUTER", "compensate_columns", "compensate_columns_reference", "search_block", "search_grid"]

Results = tuple[Tensor, Tensor, Tensor]


def _forward(
    weight: Tensor,
    original: Tensor | None,
    coefficients: Tensor,
    diagonal: Tensor,
    scale: Tensor,
    zero: Tensor,
    groups: Tensor,
    bits: int,
    grid: str,
    clip: bool,
    search: int,
    start: int,
    cae: float,
    blend: float,
    pull: float,
    pull_all: bool,
    outer: str,
    block_last: bool,
) -> Results:
    tensors = (weight, original, coefficients, diagonal, scale, zero, groups)
    settings: dict[str, Any] = {
        "bits": bits,
        "grid": grid,
        "clip": clip,
        "search": search,
        "start": start,
        "cae": cae,
        "blend": blend,
        "pull": pull,
        "pull_all": pull_all,
        "outer": outer,
        "block_last": block_last,
    }
    if _takes_triton([tensor for tensor in tensors[:-1] if tensor is not None], groups):
        from lightning_weights.kernels.compensate_columns.kernel import launch_compensate_columns

        return launch_compensate_columns(*tensors, **settings)
    return compensate_in_pieces(*tensors, **settings)


def _takes_triton(tensors: list[Tensor], groups: Tensor) -> bool:
    if not takes_triton(groups.device.type, [(tensors, (torch.float32,)), ([groups], (torch.int32,))]):
        return False
    if len(groups) > LONGEST_BLOCK and kernel_mode() == "triton":
        raise KernelUnavailableError(
            f"the block has {len(groups)} columns; the Triton kernel holds up to {LONGEST_BLOCK}. Use 'auto'"
        )
    return len(groups) <= LONGEST_BLOCK


def _forward_fake(
    weight: Tensor, original: Tensor | None, coefficients: Tensor, diagonal: Tensor, *settings: object
) -> Results:
    block, pairs, rows = len(diagonal), coefficients.shape[1], weight.shape[1]
    return (
        weight.new_empty(block, rows, dtype=torch.uint8),
        weight.new_empty(block, pairs, rows),
        weight.new_empty(rows),
    )


_op = register(
    "compensate_columns",
    "(Tensor weight, Tensor? original, Tensor coefficients, Tensor diagonal, Tensor(a!) scale, Tensor(b!) zero, "
    "Tensor groups, int bits, str grid, bool clip, int search, int start, float cae, float blend, float pull, "
    "bool pull_all, str outer, bool block_last) -> (Tensor, Tensor, Tensor)",
    implementation=_forward,
    fake=_forward_fake,
)


def compensate_columns(
    weight: Tensor,
    original: Tensor | None,
    coefficients: Tensor,
    diagonal: Tensor,
    scale: Tensor,
    zero: Tensor,
    groups: Tensor,
    *,
    bits: int,
    grid: str,
    clip: bool = False,
    search: int = 0,
    start: int = 0,
    cae: float = 0.0,
    blend: float = 0.0,
    pull: float = 0.0,
    pull_all: bool = False,
    outer: str = "current",
    block_last: bool = False,
) -> Results:
    r"""Quantize the columns of one block of a weight matrix, each error passed on to the block's later columns.

    Matrices are transposed, so that a column of the layer is contiguous: m is the number of the layer's rows, all of
    which go the same way independently. For q = 0, 1, …

    $$\hat w_q = s\,(\mathrm{clamp}(\mathrm{round}(w_q / s) + z) - z), \qquad
      e_q = (w_q - \hat w_q) - c\,(w_q - w^0_q), \qquad v_q = w_q + b\,(w^0_q - w_q)$$

    $$w_j \mathrel{+}= e_q C_{q0j} + v_q C_{q1j} \quad (j > q), \qquad
      w_{q+1} \mathrel{-}= p\,(w_{q+1} - w^0_{q+1})$$

    Ties are rounded to the even code. Groups that begin in the block get their grids from the weights as they come.

    Args:
        weight: Columns from the block's first one on, (at least block, m); it is not changed. Grids are searched in as
            many columns beyond the block as the last group reaches.
        original: w⁰ of the block's columns, (block, m); needed if ``cae``, ``blend`` or ``pull`` is not 0.
        coefficients: C, (block, 1 or 2, block), of which j > q counts; only the last dimension must be contiguous.
        diagonal: What errors are divided by in the loss, (block,).
        scale: s of all groups, (groups, m). Groups that begin in the block are written.
        zero: z of all groups, (groups, m), whole numbers; written likewise.
        groups: Group of every column of the block, (block,), int32.
        bits: Bits per weight, 2 to 8.
        grid: How grids are searched: ``asymmetric``, ``quarot`` or ``gptq``.
        clip: Whether the search tries narrower ranges, too.
        search: Columns per group, if grids are to be searched; 0: all are known.
        start: Number of the block's first column; groups begin at multiples of ``search``.
        cae: c.
        blend: b.
        pull: p.
        pull_all: Whether all later columns are pulled in every step, instead of the next one.
        outer: Which value of its column later blocks are told, in place of w_q in c(w - w⁰) and v: ``current`` w_q,
            ``quantized`` ŵ_q or w_q ``clamped`` to its range; ``leftover``: e as it is, and v = w_q - e_q.
        block_last: Whether the range of ``clamped`` is that of the block's last column's group.

    Returns:
        Codes, uint8, (block, m); what later blocks are to be updated with, e and v, of shape (block, 1 or 2, m): their
        columns j get C_q0j e_q + C_q1j v_q; and the loss ½ Σ (e_q / diagonal_q)² of every row, (m,), its errors those
        of the block.

    Raises:
        ValueError: If a shape or a choice is not allowed.
        ShardedParameterError: If the weights are sharded.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Source: Frantar et al. 2023, arXiv:2210.17323, and its successors.

    Examples:
        >>> weight, one = torch.tensor([[0.4], [0.4]]), torch.ones(1, 1)
        >>> coefficients = torch.tensor([[[0.0, 0.5]], [[0.0, 0.0]]])  # half of the first error goes to the second
        >>> codes, pushed, loss = compensate_columns(
        ...     weight, None, coefficients, torch.ones(2), one, 0 * one, torch.tensor([0, 0]).int(), bits=3, grid="gptq"
        ... )
        >>> codes.flatten(), pushed.flatten()
        (tensor([0, 1], dtype=torch.uint8), tensor([ 0.4000, -0.4000]))
    """
    if hasattr(weight, "placements"):
        raise ShardedParameterError(
            "weight is sharded (a DTensor), and whole rows are needed; use weight.full_tensor()"
        )
    check_choice("grid", grid, GRIDS)
    check_choice("outer", outer, OUTER)
    block, rows = len(groups), weight.shape[1]
    if coefficients.shape not in ((block, 1, block), (block, 2, block)) or len(weight) < block:
        raise ValueError(
            f"coefficients have shape {tuple(coefficients.shape)} and weight {tuple(weight.shape)} for {block} "
            f"columns; allowed are ({block}, 1 or 2, {block}) and at least {block} rows"
        )
    if scale.shape != zero.shape or scale.shape[1] != rows or diagonal.shape != (block,):
        raise ValueError(
            f"scale has shape {tuple(scale.shape)}, zero {tuple(zero.shape)} and diagonal {tuple(diagonal.shape)}; "
            f"allowed are (groups, {rows}) for the first two, and ({block},)"
        )
    if (original is None and (cae or blend or pull)) or (original is not None and original.shape != (block, rows)):
        raise ValueError(
            f"original has shape {None if original is None else tuple(original.shape)}; allowed is ({block}, {rows}), "
            f"and None if cae, blend and pull are 0"
        )
    tensors = (weight, original, coefficients, diagonal, scale, zero, groups)
    results: Results = _op(*tensors, bits, grid, clip, search, start, cae, blend, pull, pull_all, outer, block_last)
    return results
