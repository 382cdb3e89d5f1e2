"""Layers with correlated inputs, and configurations, for the tests of the column solver."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_weights.functional.column_solver import CompensationConfig, FOEMConfig, InputStatistics

PLAIN = {"group_size": -1, "sym": False, "mse_clip": False, "block_size": 8}
METHODS = ("gptq", "gptaq", "rescomp", "rescomp_gptq", "foem", "foem_gptaq")


class Layer(NamedTuple):
    weight: Tensor
    hessian: Tensor
    asymmetry: Tensor
    inputs: Tensor


@lru_cache(maxsize=16)
def layer(m=6, n=24, seed=0, dtype=torch.float64, tokens=96, drift=0.3):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(n, n, generator=generator, dtype=torch.float64) / n**0.5
    x = torch.randn(4, tokens // 4, n, generator=generator, dtype=torch.float64) @ (mix + torch.eye(n))
    full = x + drift * x @ torch.randn(n, n, generator=generator, dtype=torch.float64) / n**0.5
    statistics = InputStatistics(n, asymmetric=True, dtype=torch.float64)
    statistics.update(x, full)
    weight = torch.randn(m, n, generator=generator, dtype=torch.float64)
    parts = (weight, statistics.hessian, statistics.asymmetry, x.flatten(0, 1))
    return Layer(*(part.to(dtype) for part in parts))


def config(method, **change):
    if method.startswith("foem"):
        alpha = 0.25 if method == "foem_gptaq" else 0.0
        return FOEMConfig(**{**PLAIN, "damp": 0.01, "alpha": alpha, **change})
    return CompensationConfig(**{**PLAIN, "method": method, **change})
