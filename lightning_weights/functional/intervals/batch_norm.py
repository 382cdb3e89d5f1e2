"""BatchNorm as an affine map whose statistics come from the clean activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_weights.functional.sum_over_processes import sum_over_processes


class _Moments(torch.autograd.Function):
    """Mean and biased variance, with a third of the memory traffic of torch.var_mean on CPUs."""

    @staticmethod
    def forward(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
        mean = x.mean(dims)
        return mean, (x - per_channel(mean, x)).square_().mean(dims)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, list[int]], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[0])

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_variance: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        count = x.numel() / x.shape[1]
        slope = grad_variance * (2 / count)
        constant = grad_mean / count - slope * mean
        return torch.addcmul(per_channel(constant, x), x, per_channel(slope, x)), None


def as_affine(
    apply: Callable[[Tensor], Tensor],
    clean: Tensor,
    statistics: tuple[Tensor, Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalised clean activations, the factors and the summands per channel, all differentiable.

    Args:
        apply: The normalisation itself; its one call here is what updates running statistics.
        clean: Activations on the clean input (N, C, ...).
        statistics: Mean and biased variance per channel.
        weight: γ, or None.
        bias: β, or None.
        eps: Added to the variance.
    """
    mean, variance = statistics
    scale = (variance + eps).rsqrt() if weight is None else weight * (variance + eps).rsqrt()
    shift = -mean * scale if bias is None else bias - mean * scale
    return apply(clean), scale, shift


def batch_norm_map(module: nn.modules.batchnorm._BatchNorm, clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalised clean activations, the factors a and the summands s per channel of a module.

    In training, a and s come from the clean activations of the batch, and the module is called once, on these, so that
    its running statistics, momentum and counter move as in a plain forward pass.

    Args:
        module: BatchNorm or SyncBatchNorm, in whichever mode it is.
        clean: Activations on the clean input (N, C, ...).
    """
    if module.running_mean is None or module.running_var is None or module.training:
        group = module.process_group if isinstance(module, nn.SyncBatchNorm) else None
        statistics = clean_statistics(clean, isinstance(module, nn.SyncBatchNorm), group)
    else:
        statistics = module.running_mean.clone(), module.running_var.clone()
    return as_affine(module, clean, statistics, module.weight, module.bias, module.eps)


def clean_statistics(
    clean: Tensor, across_processes: bool = False, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance per channel, differentiable.

    Args:
        clean: Activations (N, C, ...).
        across_processes: Whether the batch is spread over the processes of a group, as for SyncBatchNorm.
        group: The group; None is the default one.
    """
    dims = [dim for dim in range(clean.ndim) if dim != 1]
    if not (across_processes and dist.is_available() and dist.is_initialized()):
        return _Moments.apply(clean, dims)  # type: ignore[no-untyped-call, no-any-return]
    count = clean.new_tensor([clean.numel() / clean.shape[1]])
    totals = sum_over_processes(torch.cat([clean.sum(dims), count]), group)
    mean = totals[:-1] / totals[-1]
    deviations = (clean - per_channel(mean, clean)).square().sum(dims)
    return mean, sum_over_processes(deviations, group) / totals[-1]


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """Shape one value per channel so that it broadcasts against (N, C, ...)."""
    return values.view(-1, *(1,) * (like.ndim - 2))
