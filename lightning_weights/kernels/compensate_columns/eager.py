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
    (block, pairs, _), rows = coefficients.shape, weight.shape[1]
    codes, pushed = weight.new_empty((block, rows), dtype=torch.uint8), weight.new_empty(block, pairs, rows)
    loss = weight.new_zeros(rows)
    with torch.inference_mode():  # spares thousands of calls the autograd layers
        search_block(weight, scale, zero, groups, bits=bits, grid=grid, clip=clip, search=search, start=start)
        # columns wait where their errors will be; one group's grid is broadcast, not copied
        waiting, spread = pushed[:, 0].copy_(weight[:block]), groups[:1] if _one(groups) else groups
        if pull_all and pull and original is not None:
            coefficients = _pull_all(waiting, original, coefficients, pull)
            pull = 0.0
        w, levels = _columns(original, coefficients, (scale, zero), groups, bits, pushed, cae, blend, pull)
        loss.addmv_(waiting.square().T, diagonal.square().reciprocal_().mul_(0.5))
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
        codes.copy_(levels.add_(zero[spread]))
    return codes, pushed, loss


def _one(groups: Tensor) -> bool:
    return bool((groups == groups[0]).all())


def _pull_all(w: Tensor, original: Tensor, coefficients: Tensor, pull: float) -> Tensor:
    """Pull column j j times beforehand, and return coefficients that shrink by every pull after their step."""
    kept = (1.0 - pull) ** torch.arange(len(w), dtype=w.dtype, device=w.device)
    w.copy_(torch.lerp(original, w, kept[:, None]))
    later = torch.arange(len(w), device=w.device)
    return coefficients * kept[(later[None, :] - later[:, None]).clamp_(min=0)].unsqueeze(1)


def _columns(
    original: Tensor | None,
    coefficients: Tensor,
    grids: tuple[Tensor, Tensor],
    groups: Tensor,
    bits: int,
    pushed: Tensor,
    cae: float,
    blend: float,
    pull: float,
) -> tuple[Tensor, Tensor]:
    """Round column after column, and put what each pushes in its place.

    Returns:
        Columns before they were rounded, if they can differ from what waited, and levels relative to zero points.
    """
    block, pairs, rows = pushed.shape
    waiting, lines = pushed[:, 0], pushed.view(block * pairs, rows)
    later = coefficients.permute(2, 0, 1).reshape(block, block * pairs)
    shares, kept, drawn = _without_errors(coefficients, cae, blend, pull)
    # values that are pushed as they are have no other place; if only errors are, they take that of the columns
    w = waiting if kept is None else pushed[:, 1] if pairs == 2 and blend == 0.0 else torch.empty_like(waiting)
    levels = torch.empty_like(waiting)
    # views are taken from all columns at once, since taking one costs as much as an operation on a short column
    rounded, errors = levels.unbind(0), waiting.unbind(0)
    columns = errors if kept is None else w.unbind(0)
    limits = _limits(grids, groups, bits)
    for number, first in enumerate(range(0, block, COLUMNS)):
        stop = min(first + COLUMNS, block)
        piece, size = slice(first, stop), slice(stop - first)
        own, error, trained = w[piece], waiting[piece], None if original is None else original[piece]
        if kept is not None:
            if trained is None:
                torch.mm(kept[number, size, size], error, out=own)
            else:
                torch.addmm(trained, kept[number, size, size], error.sub_(trained), out=own)
            if trained is not None and drawn is not None:
                own.addmm_(drawn[number, size, size], trained)
        # columns to come have coefficients of zero: one view of the piece serves all its columns
        told, parts = error.T, shares[number, size, size].unbind(0)
        for q in range(first, stop):
            column, (scale, low, high) = columns[q], limits[q]
            if q > first:
                column.addmv_(told, parts[q - first])
            level = torch.div(column, scale, out=rounded[q]).round_().clamp_(low, high)
            torch.addcmul(column, level, scale, value=-1.0, out=errors[q])
        if cae and trained is not None:
            error.sub_(own, alpha=cae).add_(trained, alpha=cae)
        if pairs == 2 and blend and trained is not None:
            torch.lerp(own, trained, blend, out=pushed[piece, 1])
        if stop < block:
            width = stop & -stop  # as many columns to come as have gone: products are as few, and larger
            after, taken = slice(stop, stop + width), slice((stop - width) * pairs, stop * pairs)
            waiting[after].addmm_(later[after, taken], lines[taken])
    return w, levels


def _limits(grids: tuple[Tensor, Tensor], groups: Tensor, bits: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return scale, lowest and highest level relative to the zero point for every column."""
    index, (scales, zeros) = groups.tolist(), grids
    found = {group: (scales[group], -zeros[group], 2**bits - 1 - zeros[group]) for group in set(index)}
    return [found[group] for group in index]


def _without_errors(
    coefficients: Tensor, cae: float, blend: float, pull: float
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Solve the steps within each piece for what its columns are if none of them has a rounding error.

    All else is linear. Let v be the piece's columns as they come, before the pull p, and C its coefficients times
    1 - p. With errors r = w - ŵ, w = v - p(v - w⁰) + (r - c(w - w⁰)) C₀ + (w + b(w⁰ - w)) C₁ is the same as
    w = w⁰ + ((1 - p)(v - w⁰) + w⁰C₁ + rC₀) M⁻¹, where M = I + cC₀ - (1 - b)C₁. So every method's column step is that
    of GPTQ.

    Returns:
        What a column gets of an earlier one's rounding error, C₀M⁻¹; what it gets of the drifts v - w⁰ of the piece
        before any step, or of v if there are no original values, None: just its own; and what of the original values,
        None: just its own. Each (pieces, COLUMNS, COLUMNS), as (j, q).
    """
    block, pairs, _ = coefficients.shape
    missing = -block % COLUMNS
    whole = torch.nn.functional.pad(coefficients.permute(1, 2, 0), (0, missing, 0, missing))
    pieces = whole.reshape(pairs, -(-block // COLUMNS), COLUMNS, -(-block // COLUMNS), COLUMNS)
    steps = (1.0 - pull) * pieces.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).tril(-1)
    if pairs == 1 and not (cae or pull):
        return steps[0], None, None
    identity = torch.eye(COLUMNS, dtype=steps.dtype, device=steps.device)
    matrix = torch.add(identity, steps[0], alpha=cae)
    if pairs == 2:
        matrix.sub_(steps[1], alpha=1.0 - blend)
    inverse = torch.linalg.solve_triangular(matrix, identity, upper=False, unitriangular=True).contiguous()
    kept = (1.0 - pull) * inverse
    kept[0, :, 0] = inverse[0, :, 0]  # the block's first column is not pulled
    return inverse @ steps[0], kept, inverse @ steps[1] if pairs == 2 else None
