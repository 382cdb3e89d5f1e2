"""One block without Triton: columns are contiguous, and as few operations as possible work on each of them."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.kernels.compensate_columns.reference import search_block

COLUMNS = 16  # of a piece: they get the errors of its earlier ones one by one, all later ones get them by a product


def compensate_in_pieces(
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
    clip: bool,
    search: int,
    start: int,
    cae: float,
    blend: float,
    pull: float,
    pull_all: bool,
    outer: str,
    block_last: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize one block; arguments and results as those of the operator."""
    search_block(weight, scale, zero, groups, bits=bits, grid=grid, clip=clip, search=search, start=start)
    block, pairs = len(groups), coefficients.shape[1]
    spread = groups[:1] if bool((groups == groups[0]).all()) else groups  # one group's grid is broadcast, not copied
    pushed = weight.new_empty(block, pairs, weight.shape[1])
    # values that are pushed as they are have no other place
    w = (pushed[:, 1] if pairs == 2 and blend == 0.0 else torch.empty_like(pushed[:, 0])).copy_(weight[:block])
    if pull_all and pull and original is not None:
        coefficients = _pull_all(w, original, coefficients, pull)
        pull = 0.0
    levels = _columns(w, original, coefficients, (scale, zero), groups, bits, pushed, cae, blend, pull)
    loss = pushed[:, 0].square().T @ diagonal.square().reciprocal_().mul_(0.5)
    if outer == "leftover":
        if pairs == 2:
            torch.sub(w, pushed[:, 0], out=pushed[:, 1])
    elif outer != "current" and (cae != 0.0 or pairs == 2):
        if outer == "clamped":
            bounds = groups[-1:] if block_last else spread
            s, z = scale[bounds], zero[bounds]
            excess = w.clamp(-z * s, (2**bits - 1 - z) * s).sub_(w).neg_()
        else:
            excess = w - levels * scale[spread] if cae else pushed[:, 0]
        if cae:
            pushed[:, 0].add_(excess, alpha=cae)
        if pairs == 2 and blend != 1.0:
            pushed[:, 1].sub_(excess, alpha=1.0 - blend)
    return levels.add_(zero[spread]).to(torch.uint8), pushed, loss


def _pull_all(w: Tensor, original: Tensor, coefficients: Tensor, pull: float) -> Tensor:
    """Pull column j j times beforehand, and return coefficients that shrink by every pull after their step."""
    kept = (1.0 - pull) ** torch.arange(len(w), dtype=w.dtype, device=w.device)
    w.copy_(torch.lerp(original, w, kept[:, None]))
    later = torch.arange(len(w), device=w.device)
    return coefficients * kept[(later[None, :] - later[:, None]).clamp_(min=0)].unsqueeze(1)


def _columns(
    w: Tensor,
    original: Tensor | None,
    coefficients: Tensor,
    grids: tuple[Tensor, Tensor],
    groups: Tensor,
    bits: int,
    pushed: Tensor,
    cae: float,
    blend: float,
    pull: float,
) -> Tensor:
    """Round column after column, in place, with what the earlier ones push; return levels relative to zero points."""
    block, pairs, rows = pushed.shape
    levels, lines = torch.empty_like(pushed[:, 0]), pushed.view(block * pairs, rows)
    later = coefficients.permute(2, 0, 1).reshape(block, block * pairs)
    shares, kept, drawn = _without_errors(coefficients, cae, blend, pull)
    # views are taken from all columns at once, since taking one costs as much as an operation on a short column
    columns, rounded, errors = w.unbind(0), levels.unbind(0), pushed[:, 0].unbind(0)
    index, (scales, zeros) = groups.tolist(), grids
    limits = {group: (scales[group], -zeros[group], 2**bits - 1 - zeros[group]) for group in set(index)}
    for number, first in enumerate(range(0, block, COLUMNS)):
        stop = min(first + COLUMNS, block)
        piece, size = slice(first, stop), slice(stop - first)
        own, trained = w[piece], None if original is None else original[piece]
        if kept is not None:
            prepared = kept[number, size, size] @ own
            if trained is not None:
                prepared.addmm_(drawn[number, size, size], trained)
            own.copy_(prepared)
        pushed[piece, 0] = 0.0
        # columns to come have coefficients of zero: one view of the piece serves all its columns
        told, parts = pushed[piece, 0].T, shares[number, size, size].unbind(0)
        for q in range(first, stop):
            column, (scale, low, high) = columns[q], limits[index[q]]
            if q > first:
                column.addmv_(told, parts[q - first])
            level = torch.div(column, scale, out=rounded[q]).round_().clamp_(low, high)
            torch.addcmul(column, level, scale, value=-1.0, out=errors[q])
        if cae and trained is not None:
            pushed[piece, 0].sub_(own, alpha=cae).add_(trained, alpha=cae)
        if pairs == 2 and blend and trained is not None:
            torch.lerp(own, trained, blend, out=pushed[piece, 1])
        if stop < block:
            taken = slice(first * pairs, stop * pairs)
            w[stop:].addmm_(later[stop:, taken], lines[taken])
    return levels


def _without_errors(
    coefficients: Tensor, cae: float, blend: float, pull: float
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Solve the steps within each piece for what its columns are if none of them has a rounding error.

    All else is linear. Let v be the piece's columns as they come, after the pull, and C its coefficients times 1 - p.
    With errors r = w - ŵ, the steps w = v + (r - c(w - w⁰)) C₀ + (w + b(w⁰ - w)) C₁ have the solution
    w = (v + w⁰(cC₀ + bC₁)) M⁻¹ + r C₀M⁻¹, where M = I + cC₀ - (1 - b)C₁. So every method's column step is that of GPTQ.

    Returns:
        What a column gets of an earlier one's rounding error, C₀M⁻¹; what it gets of the columns of the piece before
        any step, None: just its own; and what of their original values. Each (pieces, COLUMNS, COLUMNS), as (j, q).
    """
    block, pairs, _ = coefficients.shape
    missing = -block % COLUMNS
    whole = torch.nn.functional.pad(coefficients.permute(1, 2, 0), (0, missing, 0, missing))
    pieces = whole.reshape(pairs, -(-block // COLUMNS), COLUMNS, -(-block // COLUMNS), COLUMNS)
    steps = (1.0 - pull) * pieces.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).tril(-1)
    errors = steps[0].contiguous()
    if pairs == 1 and not (cae or pull):
        return errors, None, errors
    identity = torch.eye(COLUMNS, dtype=errors.dtype, device=errors.device)
    pulls = torch.full_like(errors[:, 0], pull)
    pulls[0, 0] = 0.0  # the block's first column
    matrix, drawn = identity + cae * errors, cae * errors + pulls.diag_embed()
    if pairs == 2:
        matrix, drawn = matrix - (1.0 - blend) * steps[1], drawn + blend * steps[1]
    inverse = torch.linalg.solve_triangular(matrix, identity, upper=False, unitriangular=True).contiguous()
    return inverse @ errors, inverse * (1.0 - pulls[:, None]), inverse @ drawn
