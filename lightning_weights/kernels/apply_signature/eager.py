"""The sum of weights and packed signatures without Triton: a cache-sized piece of a tensor at a time."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_weights.kernels.apply_signature.reference import GROUP, grid_values

CHUNK = 1 << 17  # values at a time; a multiple of 8, so that pieces begin with a byte
VALUES_PER_LOOKUP = {2: 4, 3: 4, 4: 2, 5: 2, 6: 2, 7: 1, 8: 1}  # tables of all combinations stay in the cache
# Looking up one wide number takes a quarter of the time of looking up a row of narrow ones.
LOOKED_UP = {1: torch.float32, 2: torch.float64, 4: torch.complex128}


@torch.inference_mode()
def apply_in_pieces(
    outs: Sequence[Tensor],
    bases: Sequence[Tensor],
    codes: Sequence[Tensor],
    low: Tensor,
    high: Tensor,
    scales: Sequence[float],
    bits: Sequence[int],
) -> None:
    """Write the sums; arguments as in the registered operator."""
    used = [i for i, scale in enumerate(scales) if scale != 0]
    tables = {i: _tables(grid_values(low[i], high[i], bits[i]).mul_(scales[i]), bits[i]) for i in used}
    for t, (out, base) in enumerate(zip(outs, bases, strict=True)):
        flat = base.reshape(-1)
        own = [(codes[i * len(outs) + t], tables[i][t], bits[i]) for i in used if len(codes[i * len(outs) + t])]
        whole = out.view(-1) if out.is_contiguous() else torch.empty_like(flat)
        step = CHUNK if flat.device.type == "cpu" else max(1, len(flat))
        for start in range(0, len(flat), step):
            _add(whole[start : start + step], flat[start : start + step], own, start)
        if not out.is_contiguous():
            out.copy_(whole.view(out.shape))


def _add(out: Tensor, base: Tensor, streams: list[tuple[Tensor, Tensor, int]], start: int) -> None:
    wide = torch.promote_types(base.dtype, torch.float32)
    total = out if out.dtype == wide else torch.empty_like(base, dtype=wide)
    last = base
    for stream, table, bits in streams:
        last = torch.add(last, _look_up(stream[start * bits // 8 :], table, bits, len(base)), out=total)
    if last is not out:
        out.copy_(last)


def _look_up(stream: Tensor, table: Tensor, bits: int, count: int) -> Tensor:
    """Return the first values of a stream that begins with them, in fp32."""
    per_lookup = table.element_size() // 4
    groups = -(-count // GROUP)
    piece = stream[: groups * bits]
    if per_lookup * bits == 8:
        indices = piece.long()
    else:
        whole = torch.nn.functional.pad(piece, (0, groups * bits - len(piece))).view(groups, bits)
        words = whole[:, 0].long()
        for place in range(1, bits):
            words.bitwise_or_(whole[:, place].long() << 8 * place)
        shifts = torch.arange(0, GROUP * bits, per_lookup * bits, device=stream.device)
        indices = (words.unsqueeze(1) >> shifts).bitwise_and_(len(table) - 1).flatten()
    return table.index_select(0, indices).view(torch.float32)[:count]


def _tables(values: Tensor, bits: int) -> Tensor:
    """Return what lookups find: the values of as many codes as `VALUES_PER_LOOKUP` says, as one number.

    Args:
        values: What codes stand for, (tensors, 2 ** bits).
        bits: Bits of a code.

    Returns:
        Tables, (tensors, entries).
    """
    if values.device.type != "cpu":
        return values
    per_lookup = VALUES_PER_LOOKUP[bits]
    return values[:, _combinations(bits, per_lookup)].view(LOOKED_UP[per_lookup]).flatten(1)


@functools.cache
def _combinations(bits: int, per_lookup: int) -> Tensor:
    """Return the codes in every index, (2 ** (bits * per_lookup), per_lookup)."""
    indices = torch.arange(2 ** (bits * per_lookup)).unsqueeze(1)
    codes: Tensor = (indices >> bits * torch.arange(per_lookup)) & (2**bits - 1)
    return codes
