"""Optimizer states in 8 bits: codes of a dynamic map, relative to the largest value of every block, by bitsandbytes."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from lightning_weights.errors import MissingDependencyError

BLOCK = 256  # elements that share a largest value


def blocks(numel: int) -> int:
    """Return how many blocks a state of some elements has, the last one perhaps incomplete.

    Args:
        numel: Elements of the state.

    Examples:
        >>> blocks(4096), blocks(4097)
        (16, 17)
    """
    return -(-numel // BLOCK)


def quantize(values: Tensor, codes: Tensor, absmax: Tensor, *, signed: bool) -> None:
    """Write a state as codes and block maxima.

    A value that is not negative keeps at least the smallest code if it is not zero: a second moment rounded to zero
    would divide the first one by ε.

    Args:
        values: The state, contiguous.
        codes: uint8 tensor of as many elements, written.
        absmax: fp32 tensor of one element per block, written.
        signed: Whether values may be negative: first moments are, second moments are not.

    Raises:
        MissingDependencyError: If bitsandbytes is not installed.
    """
    library = _bitsandbytes()
    flat = values.reshape(-1).float()
    new, state = library.quantize_blockwise(flat, code=code_map(signed, values.device), blocksize=BLOCK)
    if not signed:
        new = new.clamp_(min=1).mul_(flat != 0)
    codes.copy_(new.view_as(codes))
    absmax.copy_(state.absmax)


def dequantize(codes: Tensor, absmax: Tensor, *, signed: bool) -> Tensor:
    """Read a state that `quantize` wrote.

    Args:
        codes: uint8 codes.
        absmax: Block maxima.
        signed: As it was written.

    Returns:
        The state in fp32, in the codes' shape.

    Raises:
        MissingDependencyError: If bitsandbytes is not installed.
    """
    library = _bitsandbytes()
    values: Tensor = library.dequantize_blockwise(
        codes, absmax=absmax, code=code_map(signed, codes.device), blocksize=BLOCK
    )
    return values.view_as(codes)


@functools.lru_cache(maxsize=16)
def code_map(signed: bool, device: torch.device) -> Tensor:
    """Return the 256 values in [-1, 1], or in [0, 1], that codes stand for, in ascending order.

    Args:
        signed: Whether negative values are among them.
        device: Where the table shall be.

    Raises:
        MissingDependencyError: If bitsandbytes is not installed.
    """
    values: Tensor = _bitsandbytes().create_dynamic_map(signed=signed)
    return values.to(device)


@functools.cache
def _bitsandbytes() -> Any:
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise MissingDependencyError("bitsandbytes", "bnb", "state_bits=8") from error
    return functional
