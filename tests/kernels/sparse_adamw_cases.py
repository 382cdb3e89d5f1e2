"""Data and an independent oracle for tests of the sparse AdamW step."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

RULE: dict[str, Any] = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-6, "decay": 0.98}
STEP_SIZES = (0.3, 0.05)  # taken in turn by the tensors of a list
COUNTS = (0, 1, 7, 16, 1000, 1025, 2048, 3333)  # chosen entries: empty, single, odd, a vector, blocks and tails


def lists(counts: Any = COUNTS, dtype: torch.dtype = torch.float32, state: torch.dtype = torch.float32) -> list[Any]:
    """Weights of two dimensions, chosen entries, dense gradients, and moments with some history."""
    params = [torch.randn(5, max(1, count)).to(dtype) for count in counts]
    indices = [
        torch.randperm(param.numel())[:count].sort().values.int() for param, count in zip(params, counts, strict=True)
    ]
    grads = [torch.randn(param.shape).to(dtype) for param in params]
    firsts = [torch.randn(count).to(state) for count in counts]
    seconds = [torch.rand(count).to(state) for count in counts]
    return [params, indices, grads, firsts, seconds]


def gathered(data: list[Any]) -> list[Any]:
    """The same data with gradients of the chosen entries alone."""
    params, indices, grads, *moments = data
    few = [grad.flatten()[idx.long()].float() for grad, idx in zip(grads, indices, strict=True)]
    return [params, indices, few, *moments]


def sizes(data: list[Any]) -> list[float]:
    """Step sizes, not all of them equal."""
    return [STEP_SIZES[i % 2] for i in range(len(data[0]))]


def oracle(param: Tensor, indices: Tensor, grad: Tensor, first: Tensor, second: Tensor, size: float) -> tuple[Any, ...]:
    """The equations, one chosen entry after the other, in float64."""
    w, g, m, v = (tensor.double().flatten().numpy().copy() for tensor in (param, grad, first, second))
    for place, i in enumerate(indices.tolist()):
        m[place] = RULE["beta1"] * m[place] + (1 - RULE["beta1"]) * g[i]
        v[place] = RULE["beta2"] * v[place] + (1 - RULE["beta2"]) * g[i] ** 2
        w[i] = (w[i] - size * m[place] / (np.sqrt(v[place]) + RULE["eps"])) * RULE["decay"]
    return w.reshape(param.shape), m, v


def take(step: Any, data: list[Any], **changes: Any) -> list[list[Tensor]]:
    """Run a step on copies that keep their strides; return weights and moments."""
    params, indices, grads, firsts, seconds = ([_copy(tensor) for tensor in tensors] for tensors in data)
    with torch.no_grad():
        step(params, indices, grads, firsts, seconds, sizes(data), **{**RULE, **changes})
    return [params, firsts, seconds]


def chosen_mask(param: Tensor, indices: Tensor) -> Tensor:
    """Truth values of the shape of the weights."""
    mask = torch.zeros(param.numel(), dtype=torch.bool)
    mask[indices.long()] = True
    return mask.view(param.shape)


def _copy(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)
