"""Predictions of the KNOWN network for many weights, all layers and recursions in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.errors import KernelUnavailableError, ShardedParameterError, check_number
from lightning_weights.kernels._op import exact_products, kernel_mode, register, takes_triton
from lightning_weights.kernels.nowcast.cost import WIDEST
from lightning_weights.kernels.nowcast.eager import nowcast_in_chunks
from lightning_weights.kernels.nowcast.reference import (
    Parameters,
    Stream,
    check_parameters,
    known_delta,
    nowcast_reference,
    parameter_count,
    split_parameters,
)

__all__ = [
    "Parameters",
    "Stream",
    "known_delta",
    "nowcast",
    "nowcast_reference",
    "parameter_count",
    "split_parameters",
]


def _nowcast(history: Tensor, parameters: Tensor, recursions: int, leaky_slope: float) -> Tensor:
    if _takes_triton(history, parameters, recursions):
        from lightning_weights.kernels.nowcast.kernel import launch_nowcast

        return launch_nowcast(history, parameters, recursions, leaky_slope)
    return nowcast_in_chunks(history, parameters, recursions, leaky_slope)


def _takes_triton(history: Tensor, parameters: Tensor, recursions: int) -> bool:
    covered, exact = [([history, parameters], (torch.float32,))], exact_products(torch.float32)
    if not takes_triton(history.device.type, covered, exact_products=exact):
        return False
    columns = history.shape[1] + recursions
    if columns > WIDEST and kernel_mode() == "triton":
        raise KernelUnavailableError(
            f"history and recursions are {columns} columns; the Triton kernel holds up to {WIDEST}. Use 'auto'"
        )
    return columns <= WIDEST


def _nowcast_fake(history: Tensor, parameters: Tensor, recursions: int, leaky_slope: float) -> Tensor:
    return history.new_empty(history.shape[0], recursions)


_op = register(
    "nowcast",
    "(Tensor history, Tensor parameters, int recursions, float leaky_slope) -> Tensor",
    implementation=_nowcast,
    fake=_nowcast_fake,
)


def nowcast(history: Tensor, parameters: Tensor, recursions: int = 1, leaky_slope: float = 0.3) -> Tensor:
    r"""Predict what weights would be with more data, each by itself: [`nowcast_reference`][], fused.

    With δ of [`known_delta`][],

    $$\hat\theta_1 = \theta_0 + \delta(\theta_{S-1}, \dots, \theta_1, \theta_0), \qquad
      \hat\theta_2 = \hat\theta_1 + \delta(\theta_{S-2}, \dots, \theta_0, \hat\theta_1), \qquad \dots$$

    Nothing of the network's inside is written to memory. Gradients do not pass: train with ``known_delta``.

    Args:
        history: Values of every weight, from the most forgotten to the last, fp32 or fp64, (N, S), S at least 2. It is
            computed in its type.
        parameters: Of the network, packed, see [`split_parameters`][].
        recursions: Predictions, at least 1.
        leaky_slope: Slope of the leaky ReLU below zero.

    Returns:
        Predictions, (N, recursions).

    Raises:
        ValueError: If shapes, types or numbers are not allowed.
        ShardedParameterError: If the history is sharded; it needs no neighbours, so that local shards will do.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Source: Jang, Kim and Kim 2026, arXiv:2508.05059.

    Examples:
        >>> nowcast(torch.tensor([[0.1, 0.2, 0.3]]), torch.zeros(parameter_count(3)), recursions=2)
        tensor([[0.3000, 0.3000]])
    """
    if hasattr(history, "placements"):
        raise ShardedParameterError("history is sharded (a DTensor); every weight goes alone: pass history.to_local()")
    check_number("recursions", recursions, low=1, whole=True)
    check_number("leaky_slope", leaky_slope, low=0.0)
    if history.dim() != 2 or history.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"history is {tuple(history.shape)} of {history.dtype}; allowed are two dimensions of torch.float32 or "
            f"torch.float64: differences of narrower weights are noise"
        )
    check_parameters(parameters, history.shape[1])
    found: Tensor = _op(history.detach(), parameters.detach().to(history), recursions, float(leaky_slope))
    return found
