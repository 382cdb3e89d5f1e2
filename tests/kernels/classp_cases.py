"""Data and an independent oracle for tests of the CLASSP step."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

RULE: dict[str, Any] = {"lr": 0.1, "threshold": 1e-4, "power": 1.0, "eps": 1e-5, "apply_decay": True}


def lists(shapes: Any, dtype: torch.dtype = torch.float32, total: torch.dtype = torch.float32) -> list[list[Tensor]]:
    """Weights, gradients of which about a third is accepted under `RULE`, and accumulators with some history."""
    params = [torch.randn(shape).to(dtype) for shape in shapes]
    grads = [(torch.randn(shape) * 0.01).to(dtype) for shape in shapes]
    grad_sums = [torch.rand(shape).to(total).square() for shape in shapes]
    return [params, grads, grad_sums]


def oracle(param: Tensor, grad: Tensor, grad_sum: Tensor, rule: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The paper's Algorithm 1, one weight after the other, in float64."""
    w, g, a = (tensor.double().flatten().numpy().copy() for tensor in (param, grad, grad_sum))
    mask = np.zeros(len(w), dtype=bool)
    for i in range(len(w)):
        if np.isfinite(g[i]) and g[i] ** 2 > rule["threshold"]:
            mask[i] = True
            a[i] += abs(g[i]) ** rule["power"]
            w[i] -= rule["lr"] * g[i] / ((rule["eps"] + a[i]) ** (1 / rule["power"]) if rule["apply_decay"] else 1.0)
    return w, a, mask


def take(step: Any, data: list[list[Tensor]], rule: dict[str, Any]) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Run a step on copies that keep their strides; return weights, accumulators and counts."""
    params, grads, grad_sums = ([_copy(tensor) for tensor in tensors] for tensors in data)
    counts = torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        step(params, grads, grad_sums, counts, **rule)
    return params, grad_sums, counts.tolist()


def _copy(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)
