"""Weights on a grid that follows from their statistics, and how near they are to its thresholds."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lightning_weights.errors import check_number
from lightning_weights.kernels.statsq import statsq as statsq_rows
from lightning_weights.kernels.statsq import statsq_observe, statsq_reference


class CodedWeight(NamedTuple):
    """A quantized weight as integers.

    Attributes:
        codes: Integers of the weight's shape: int8, or uint8 for unsigned grids of 8 bits.
        step: Distance between neighbouring values, one per index of ``dim``, or a single one.
        offset: What is added to a code before it is scaled: 1/2 on a grid without zero, else 0.
        bits: Number of bits of a code.
        dim: Dimension whose indices have a step each; None for a single step.

    Examples:
        >>> import torch
        >>> CodedWeight(torch.tensor([[-2, 1]], dtype=torch.int8), torch.tensor([0.5]), 0.5, 2, 0).dequantize()
        tensor([[-0.7500,  0.7500]])
    """

    codes: Tensor
    step: Tensor
    offset: float
    bits: int
    dim: int | None

    def dequantize(self) -> Tensor:
        """Return (code + offset) · step in the step's dtype: the quantized weight, bit for bit."""
        return (self.codes.to(self.step.dtype) + self.offset) * along(self.step, self.codes, self.dim)


def along(step: Tensor, like: Tensor, dim: int | None) -> Tensor:
    """Give steps the shape that lines them up with a dimension of another tensor.

    Args:
        step: One number per index of the dimension, or a single one.
        like: The other tensor.
        dim: The dimension; None for a single step.

    Returns:
        A view that broadcasts.

    Raises:
        ValueError: If there are not as many steps as indices.

    Examples:
        >>> import torch
        >>> along(torch.ones(3), torch.zeros(2, 3, 4), dim=1).shape
        torch.Size([3, 1])
    """
    if dim is None:
        return step.reshape(())
    if len(step) != like.shape[dim]:
        raise ValueError(
            f"there are {len(step)} steps, but dimension {dim} of a tensor of shape {tuple(like.shape)} has "
            f"{like.shape[dim]} indices. Steps per token belong to the sequence length that they were calibrated for: "
            f"keep that length, or choose granularity 'channel' or 'tensor'"
        )
    return step.reshape(-1, *[1] * (like.dim() - 1 - dim % like.dim()))


def statsq(weight: Tensor, bits: int, dim: int = 0) -> Tensor:
    r"""Quantize a weight on a grid that follows from its statistics; gradients pass straight through.

    $$s = 2 \operatorname{mean} |W|, \quad \hat W = \frac{s}{n} \Bigl(\bigl\lfloor n \operatorname{clamp}(W / s, -1,
    1 - 10^{-6}) - \tfrac12 \bigr\rceil + \tfrac12\Bigr), \quad n = 2^{b-1}$$

    Args:
        weight: W of two or more dimensions.
        bits: b from 2 to 8.
        dim: Dimension whose indices have a scale each; the mean is over all others.

    Returns:
        Ŵ of the weight's shape and dtype.

    Raises:
        ValueError: If an argument is not allowed.

    Source: Liu, Liu & Cheng 2023, arXiv:2302.02210.

    Examples:
        >>> import torch
        >>> statsq(torch.tensor([[[-0.2, 0.6, 1.0, -0.2]]]), bits=2, dim=1)
        tensor([[[-0.2500,  0.7500,  0.7500, -0.2500]]])
    """
    return _as_before(statsq_rows(_rows(weight, dim), bits), weight, dim)


def stats_codes(weight: Tensor, bits: int, dim: int = 0) -> CodedWeight:
    """Return the integers and steps of the statistics-based quantizer.

    Args:
        weight: W of two or more dimensions.
        bits: b from 2 to 8.
        dim: Dimension whose indices have a scale each.

    Returns:
        Codes k from -n to n-1 and steps s/n; values are (k + 1/2)·s/n.

    Raises:
        ValueError: If an argument is not allowed.

    Examples:
        >>> import torch
        >>> stats_codes(torch.tensor([[-0.2, 0.6, 1.0, -0.2]]), bits=2).codes
        tensor([[-1,  1,  1, -1]], dtype=torch.int8)
    """
    observed = statsq_observe(_rows(weight, dim), bits)
    return CodedWeight(_as_before(observed.codes, weight, dim), observed.step, 0.5, bits, dim)


def confidence(weight: Tensor, bits: int, dim: int = 0) -> Tensor:
    r"""Return how far every weight is from the nearest threshold between two codes, in quantization steps.

    $$\delta = \min_{-n \le j \le n-2} \bigl|u - (j + \tfrac12)\bigr|$$

    Args:
        weight: W of two or more dimensions.
        bits: b from 2 to 8.
        dim: Dimension whose indices have a scale each.

    Returns:
        δ of the weight's shape, at most 1/2 except for weights near the ends of the grid.

    Raises:
        ValueError: If an argument is not allowed.

    Source: Liu, Liu & Cheng 2023, arXiv:2302.02210.

    Examples:
        >>> import torch
        >>> confidence(torch.tensor([[0.0, 0.5, 1.5]]), bits=2)  # the scale is 4/3
        tensor([[0.0000, 0.2500, 1.0000]])
    """
    check_number("bits", bits, low=2, high=9, whole=True)
    return _as_before(statsq_reference(_rows(weight.detach(), dim), bits).confidence, weight, dim)


def boundary_mask(weight: Tensor, bits: int, boundary_range: float, dim: int = 0) -> Tensor:
    """Tell which weights are so near to a threshold that annealing lets them move: δ ≤ x.

    Args:
        weight: W of two or more dimensions.
        bits: b from 2 to 8.
        boundary_range: x ≥ 0, in quantization steps.
        dim: Dimension whose indices have a scale each.

    Returns:
        True for weights inside the range; all others are frozen.

    Raises:
        ValueError: If an argument is not allowed.

    Examples:
        >>> import torch
        >>> boundary_mask(torch.tensor([[0.01, 0.5, 1.5]]), bits=2, boundary_range=0.05)
        tensor([[ True, False, False]])
    """
    movable = statsq_observe(_rows(weight, dim), bits, boundary_range=boundary_range).movable
    assert movable is not None
    return _as_before(movable, weight, dim)


def _rows(weight: Tensor, dim: int) -> Tensor:
    if weight.dim() < 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; allowed are two or more dimensions")
    return weight.movedim(dim, 0).flatten(1)


def _as_before(rows: Tensor, weight: Tensor, dim: int) -> Tensor:
    return rows.view(weight.movedim(dim, 0).shape).movedim(0, dim)
