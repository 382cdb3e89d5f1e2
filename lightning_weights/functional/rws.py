"""Robust weight signatures: the part of a robust network's weights that its clean training does not have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_weights.errors import check_choice, check_number
from lightning_weights.kernels.apply_signature.reference import packed_bytes

WEIGHTINGS = ("sum", "published")
RANGE_BYTES = 8  # of the smallest and the largest value of a tensor in fp32


class LevelCodes(NamedTuple):
    """A tensor on a grid of equally spaced levels from its smallest to its largest value.

    Attributes:
        codes: Number of every entry's level, uint8, of the tensor's shape.
        low: Smallest value, fp32, shape ().
        high: Largest value, fp32, shape ().

    Examples:
        >>> quantize_levels(torch.tensor([-1.0, 0.1, 2.0]), levels=4).codes
        tensor([0, 1, 3], dtype=torch.uint8)
    """

    codes: Tensor
    low: Tensor
    high: Tensor


@torch.no_grad()
def project_out(p: Tensor, a: Tensor) -> Tensor:
    r"""Return the part of a tensor that is orthogonal to another, as vectors.

    $$p - \frac{\langle a, p\rangle}{\langle a, a\rangle}\, a$$

    Sums run in float64, and the projection is done twice: what cancellation leaves of the first one along ``a`` is gone
    after the second, so that also a small rest of a large tensor is orthogonal.

    Args:
        p: Tensor of any shape: what the robust training added.
        a: Tensor of the same shape: what the clean training added. If it is zero, the result is ``p``.

    Returns:
        A tensor of ``p``'s shape in fp32 or wider.

    Raises:
        ValueError: If the shapes differ.

    Source: Cai, Zhang, Wang 2023, arXiv:2302.12480.

    Examples:
        >>> project_out(torch.tensor([3.0, 4.0]), torch.tensor([2.0, 0.0]))
        tensor([0., 4.])
    """
    if p.shape != a.shape:
        raise ValueError(f"p has the shape {tuple(p.shape)} and a {tuple(a.shape)}; allowed are tensors of one shape")
    rest, along = p.double().flatten(), a.double().flatten()
    square = along @ along
    if square > 0:
        for _ in range(2):
            rest = rest - (along @ rest) / square * along
    return rest.reshape(p.shape).to(torch.promote_types(p.dtype, torch.float32))


@torch.no_grad()
def quantize_levels(values: Tensor, levels: int) -> LevelCodes:
    r"""Round a tensor to levels that are spaced equally from its smallest to its largest value.

    $$q = \mathrm{round}\Bigl(\frac{v - v_{\min}}{v_{\max} - v_{\min}} (L - 1)\Bigr)$$

    Halves go to even numbers. A tensor whose entries are all equal has the code 0 everywhere.

    Args:
        values: Tensor of floating type; it is rounded to fp32 first.
        levels: Number of levels L, 3 to 256. Two levels exist only for ranges symmetric to zero.

    Returns:
        Codes from 0 to L - 1 with the smallest and the largest value.

    Raises:
        ValueError: If ``levels`` is out of range, or the values are none, not finite or not of floating type.

    Examples:
        >>> quantize_levels(torch.tensor([0.0, 0.4, 1.0]), levels=16)
        LevelCodes(codes=tensor([ 0,  6, 15], dtype=torch.uint8), low=tensor(0.), high=tensor(1.))
    """
    check_number("levels", levels, low=3, high=257, whole=True)
    if not values.is_floating_point() or not values.numel():
        raise ValueError(f"values are {values.numel()} of {values.dtype}; allowed are one or more of floating type")
    exact = values.float().double()
    low, high = exact.min(), exact.max()
    if not torch.isfinite(high.float() - low.float()):
        raise ValueError(f"values go from {low.item()} to {high.item()}; allowed are finite ones with a finite range")
    width = torch.where(high > low, high - low, 1.0)
    codes = ((exact - low) / width * (levels - 1)).round()
    return LevelCodes(codes.to(torch.uint8), low.float(), high.float())


def dequantize_levels(quantized: LevelCodes, levels: int) -> Tensor:
    r"""Return the values of the levels that a tensor was rounded to.

    $$\hat v = v_{\min} + q\, \frac{v_{\max} - v_{\min}}{L - 1}, \qquad \hat v = v_{\max} \text{ at } q = L - 1$$

    Smallest and largest value come back in every bit; the operator ``apply_signature`` has the same values.

    Args:
        quantized: What ``quantize_levels`` returned.
        levels: Number of levels.

    Returns:
        A tensor of fp32.

    Examples:
        >>> dequantize_levels(quantize_levels(torch.tensor([0.0, 0.4, 1.0]), 4), 4)
        tensor([0.0000, 0.3333, 1.0000])
    """
    codes, low, high = quantized
    step = (high - low) / (levels - 1)
    return torch.where(codes == levels - 1, high, low + step * codes.float())


def bits_of(levels: int) -> int:
    """Return the bits that a level's number takes.

    Args:
        levels: Number of levels.

    Raises:
        ValueError: If the levels don't use all numbers of so many bits: 4, 8, 16, 32, 64, 128 and 256 do.

    Examples:
        >>> bits_of(16)
        4
    """
    if levels not in [2**bits for bits in range(2, 9)]:
        raise ValueError(f"levels is {levels!r}; allowed for packing are 4, 8, 16, 32, 64, 128 and 256, or None")
    return levels.bit_length() - 1


def signature_bytes(counts: Iterable[int], levels: int | None) -> int:
    """Return what a signature takes on disk, without the names.

    Args:
        counts: Number of entries of every tensor.
        levels: Number of levels, or None for fp32.

    Examples:
        >>> signature_bytes([1728, 64], levels=16), signature_bytes([1728, 64], levels=None)
        (912, 7168)
    """
    if levels is None:
        return sum(4 * count for count in counts)
    bits = bits_of(levels)
    return sum(packed_bytes(count, bits) + RANGE_BYTES for count in counts)


def composition_scales(scales: Sequence[float], weighting: str = "sum") -> list[float]:
    r"""Return the factors with which several signatures are added.

    Args:
        scales: Scale α of every signature.
        weighting: ``sum``: α itself. ``published``: $(\alpha / K)^2$ for K signatures, what the authors' code adds: it
            multiplies by the share α / K before the projection and once more after it.

    Examples:
        >>> composition_scales([1.0, 1.0]), composition_scales([1.0, 1.0], "published")
        ([1.0, 1.0], [0.25, 0.25])
    """
    check_choice("weighting", weighting, WEIGHTINGS)
    if weighting == "sum":
        return list(scales)
    return [(scale / len(scales)) ** 2 for scale in scales]
