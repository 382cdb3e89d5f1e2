"""Specification of packed signatures and of their sum with weights in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

GROUP = 8  # so many values of b bits fill b bytes


def packed_bytes(count: int, bits: int) -> int:
    """Return how many bytes ``count`` values of ``bits`` bits take.

    Args:
        count: Number of values.
        bits: Bits of a value.

    Examples:
        >>> packed_bytes(8, bits=3), packed_bytes(9, bits=3)
        (3, 4)
    """
    return -(-count * bits // 8)


def grid_values(low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Return the numbers that codes stand for: evenly spaced in fp32, the first one ``low``, the last one ``high``.

    Args:
        low: Smallest value of each grid, of any shape.
        high: Largest value of each, of the same shape.
        bits: Bits of a code.

    Returns:
        Numbers in fp32, (..., 2 ** bits).

    Examples:
        >>> grid_values(torch.tensor(-1.0), torch.tensor(2.0), bits=2)
        tensor([-1.,  0.,  1.,  2.])
    """
    top = 2**bits - 1
    low, high = low.float().unsqueeze(-1), high.float().unsqueeze(-1)
    step = (high - low) / torch.full_like(low, top)  # GPUs multiply by a plain number's reciprocal instead
    values = torch.arange(top + 1, dtype=torch.float32, device=low.device) * step + low
    values[..., top:] = high  # which low + top * step may miss by a bit
    return values


def unpack_codes(codes: Tensor, bits: int, count: int) -> Tensor:
    """Return the codes in a stream of bytes.

    Code i takes bits ``bits*i`` to ``bits*(i+1) - 1``, counted from the lowest bit of the first byte.

    Args:
        codes: Bytes, uint8, ``packed_bytes(count, bits)`` of them.
        bits: Bits of a code, 1 to 8.
        count: Number of codes.

    Returns:
        Codes in int64, (count,).

    Examples:
        >>> unpack_codes(torch.tensor([0b10_001_010, 0b1], dtype=torch.uint8), bits=3, count=3)
        tensor([2, 1, 6])
    """
    groups = -(-count // GROUP)
    whole = torch.nn.functional.pad(codes, (0, groups * bits - len(codes))).view(groups, bits).long()
    # bytes share no bits, so that adding them up puts them side by side; the eighth may end up in the sign
    words = (whole << (8 * torch.arange(bits, device=codes.device))).sum(1, keepdim=True)
    shifts = bits * torch.arange(GROUP, device=codes.device)
    codes_of_groups: Tensor = (words >> shifts) & (2**bits - 1)
    return codes_of_groups.flatten()[:count]


def dequantize_codes(codes: Tensor, low: Tensor, high: Tensor, bits: int, count: int) -> Tensor:
    """Return the numbers that a stream of packed codes stands for.

    Args:
        codes: Bytes, uint8.
        low: Number of code 0, no dimensions.
        high: Number of the largest code, no dimensions.
        bits: Bits of a code, 2 to 8.
        count: Number of codes.

    Returns:
        Numbers in fp32, (count,).

    Examples:
        >>> low, high = torch.tensor(-1.0), torch.tensor(2.0)
        >>> dequantize_codes(torch.tensor([0b11_00_01_10], dtype=torch.uint8), low, high, bits=2, count=4)
        tensor([ 1.,  0., -1.,  2.])
    """
    return grid_values(low, high, bits)[unpack_codes(codes, bits, count)]


def apply_signature_reference(
    bases: Sequence[Tensor],
    codes: Sequence[Sequence[Tensor | None]],
    low: Tensor,
    high: Tensor,
    scales: Sequence[float],
    bits: Sequence[int],
) -> list[Tensor]:
    """Unpack and dequantize every signature and add it to the weights, out of place.

    Args:
        bases: T tensors.
        codes: K rows of T streams of bytes; None where a signature leaves a tensor alone.
        low: Number of code 0, (K, T).
        high: Number of the largest code, (K, T).
        scales: K factors.
        bits: K numbers of bits.

    Returns:
        T tensors, like ``bases``, summed in fp32 or wider and rounded once.

    Examples:
        >>> codes, low, high = torch.tensor([0b11_00_01_10], dtype=torch.uint8), torch.zeros(1, 1), torch.ones(1, 1)
        >>> apply_signature_reference([torch.ones(4)], [[codes]], low, 3 * high, scales=[0.5], bits=[2])
        [tensor([2.0000, 1.5000, 1.0000, 2.5000])]
    """
    results = []
    for t, base in enumerate(bases):
        total = base.to(torch.promote_types(base.dtype, torch.float32)).flatten()
        for i, (row, scale) in enumerate(zip(codes, scales, strict=True)):
            stream = row[t]
            if stream is not None and scale != 0:
                total = total + scale * dequantize_codes(stream, low[i, t], high[i, t], bits[i], base.numel())
        results.append(total.view(base.shape).to(base.dtype))
    return results
