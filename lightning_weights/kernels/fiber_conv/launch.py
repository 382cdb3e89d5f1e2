"""Launches of the Triton kernels."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from lightning_weights.kernels._op import WARP_SIZE, exact_products
from lightning_weights.kernels.fiber_conv.conv_kernels import (
    fiber_conv_bwd_basis_kernel,
    fiber_conv_bwd_weight_kernel,
    fiber_conv_fwd_kernel,
)
from lightning_weights.kernels.fiber_conv.cost import STAGES, pick_config, pick_splits
from lightning_weights.kernels.fiber_conv.edges import SortedEdges


def launch_fiber_conv(
    features: Tensor, basis: Tensor, weight: Tensor, fiber: Tensor | None, bias: Tensor | None, edges: SortedEdges
) -> tuple[Tensor, Tensor]:
    """Run the forward kernel.

    Args:
        features: f of shape (N, O, C).
        basis: φ of shape (E, O, B).
        weight: W of shape (C, B).
        fiber: F of shape (O, O, C), or ``None``.
        bias: b of shape (C,), or ``None``.
        edges: The sorted graph.

    Returns:
        The result, and the sums over edges in fp32, empty without F.
    """
    along = (edges.senders, edges.senders, edges.offsets)
    result = torch.empty_like(features, memory_format=torch.contiguous_format)
    sums = features.new_empty(0 if fiber is None else features.shape, dtype=torch.float32)
    _gather(result, sums, features, basis, weight, fiber, bias, along, ordered=False)
    return result, sums


def launch_gather_backward(
    grad: Tensor, features: Tensor, basis: Tensor, weight: Tensor, edges: SortedEdges, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the kernels of the wanted gradients; arguments and results as those of the eager `gather_backward`."""
    grad, features, basis, weight = (tensor.contiguous() for tensor in (grad, features, basis, weight))
    slopes = [
        torch.empty_like(tensor) if want else tensor.new_empty(0)
        for tensor, want in zip((features, basis, weight), needed, strict=True)
    ]
    (_, orientations, channels), functions, rows = features.shape, basis.shape[2], basis.shape[0] * basis.shape[1]
    sizes = (rows, orientations, channels, functions)
    exact = exact_products(features.dtype, basis.dtype, weight.dtype)
    config = pick_config(orientations, channels, functions, WARP_SIZE, exact=exact)
    tiles = (triton.cdiv(channels, config.channels), triton.cdiv(functions, config.basis))
    # rows of products are not padded: orientations need not be a power of two
    even = channels % config.channels == 0 and functions % config.basis == 0
    options = {**_options(exact, even), "ROWS": config.rows, "num_warps": config.warps}
    options |= {"CHANNELS": config.channels, "FUNCTIONS": config.basis}
    if needed[0]:
        against = (edges.receivers, edges.by_sender, edges.sender_offsets)
        _gather(slopes[0], slopes[0], grad, basis, weight, None, None, against, ordered=True)
    with torch.cuda.device_of(features):
        if needed[1] and rows:
            fiber_conv_bwd_basis_kernel[triton.cdiv(rows, config.rows), tiles[1]](
                grad, features, weight, slopes[1], edges.senders, edges.receivers, *sizes, **options
            )
        if needed[2]:
            splits = pick_splits(basis.shape[0], orientations, tiles[0] * tiles[1])
            partial = torch.empty(splits, channels, functions, dtype=torch.float32, device=features.device)
            fiber_conv_bwd_weight_kernel[splits, tiles[0], tiles[1]](
                grad, features, basis, partial, edges.senders, edges.receivers, *sizes, **options
            )
            slopes[2] = partial.sum(0).to(weight.dtype)
    return slopes[0], slopes[1], slopes[2]


def _gather(
    result: Tensor,
    sums: Tensor,
    features: Tensor,
    basis: Tensor,
    weight: Tensor,
    fiber: Tensor | None,
    bias: Tensor | None,
    along: tuple[Tensor, Tensor, Tensor],
    ordered: bool,
) -> None:
    nodes, orientations, channels = features.shape
    exact = exact_products(features.dtype, basis.dtype, weight.dtype)
    config = pick_config(orientations, channels, basis.shape[2], WARP_SIZE, exact=exact)
    if not result.numel():
        return
    with torch.cuda.device_of(features):
        fiber_conv_fwd_kernel[nodes, triton.cdiv(channels, config.channels)](
            *(tensor.contiguous() for tensor in (features, basis, weight)),
            *(weight if tensor is None else tensor.contiguous() for tensor in (fiber, bias)),
            result,
            sums,
            *along,
            orientations,
            channels,
            basis.shape[2],
            ORDERED=ordered,
            FIBER=fiber is not None,
            BIAS=bias is not None,
            EDGES=config.edges,
            PADDED=config.orientations,
            CHANNELS=config.channels,
            FUNCTIONS=config.basis,
            num_warps=config.warps,
            **_options(exact, config.even),
        )


def _options(exact: bool, even: bool) -> dict[str, Any]:
    return {
        "EVEN": even,
        "PRECISION": "ieee" if exact else "tf32",
        "num_stages": STAGES,
        "enable_fp_fusion": True,
    }
