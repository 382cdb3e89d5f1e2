"""Data and independent oracles in numpy for tests of interval propagation and of the margin head."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

# (rows, inputs, outputs): empty, single, odd, one tile, several ragged tiles, and full tiles of every kernel.
SHAPES = ((0, 3, 2), (1, 1, 2), (7, 5, 3), (16, 32, 64), (70, 40, 65), (9, 64, 128))
NAMES = ("center", "radius", "weight", "bias", "scale", "shift")
VARIANTS = [
    {"bias": bias, "affine": affine, "relu": relu}
    for bias, affine, relu in [(True, True, True), (False, True, False), (True, False, True), (False, False, False)]
]


def operands(shape: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Operands by name; some weights and one factor are exactly zero, and factors have both signs."""
    rows, inner, outputs = shape
    data = {
        "center": torch.randn(rows, inner, dtype=dtype),
        "radius": torch.rand(rows, inner, dtype=dtype) / inner,
        "weight": torch.randn(outputs, inner, dtype=dtype),
        **{name: torch.randn(outputs, dtype=dtype) for name in NAMES[3:]},
    }
    data["weight"][:, 0] = 0.0
    data["scale"][0] = 0.0
    return data


def call(function: Any, data: dict[str, Tensor], variant: dict[str, bool], **options: Any) -> Any:
    """Run an implementation on the operands that a variant has."""
    return function(
        data["center"],
        data["radius"],
        data["weight"],
        data["bias"] if variant["bias"] else None,
        scale=data["scale"] if variant["affine"] else None,
        shift=data["shift"] if variant["affine"] else None,
        relu=variant["relu"],
        **options,
    )


def used(variant: dict[str, bool]) -> list[str]:
    """Names of the operands that a variant has."""
    return ["center", "radius", "weight", *["bias"] * variant["bias"], *["scale", "shift"] * variant["affine"]]


def oracle(data: dict[str, Tensor], variant: dict[str, bool]) -> tuple[np.ndarray, ...]:
    """End points by choosing, for every product, the smaller and the larger of its two corners, in float64."""
    center, radius, weight, bias, scale, shift = (data[name].double().numpy() for name in NAMES)
    corners = np.stack([weight * (center - radius)[:, None], weight * (center + radius)[:, None]])
    lower, upper = corners.min(0).sum(2), corners.max(0).sum(2)
    if variant["bias"]:
        lower, upper = lower + bias, upper + bias
    if variant["affine"]:
        ends = np.stack([scale * lower + shift, scale * upper + shift])
        lower, upper = ends.min(0), ends.max(0)
    c, r = (lower + upper) / 2, (upper - lower) / 2
    active, inactive = lower > 0, upper < 0
    sums = [r.sum(), active.sum(), inactive.sum(), c[active].sum(), c[inactive].sum(), c.sum()]
    sums += [(c[active] ** 2).sum(), (c[inactive] ** 2).sum()]
    if variant["relu"]:
        lower, upper = np.maximum(lower, 0), np.maximum(upper, 0)
    return (lower + upper) / 2, (upper - lower) / 2, c, r, np.array(sums, dtype=np.float64)


def margin_oracle(data: dict[str, Tensor], labels: Tensor) -> np.ndarray:
    """The least margin at the corners of every box, one pair of classes after the other, in float64."""
    center, radius, weight, bias = (data[name].double().numpy() for name in NAMES[:4])
    margins = []
    for c, r, y in zip(center, radius, labels.tolist(), strict=True):
        for j in range(len(weight)):
            if j != y:
                row = weight[y] - weight[j]
                margins.append(np.minimum(row * (c - r), row * (c + r)).sum() + bias[y] - bias[j])
    return np.array(margins).reshape(len(center), len(weight) - 1)


def gradients(results: Any, operand: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a sum of all results, each element with a weight of its own."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.rand(result.shape, generator=generator, dtype=torch.float64) for result in results]
    total = sum((result * weight.to(result.dtype)).sum() for result, weight in zip(results, weights, strict=True))
    return torch.autograd.grad(total, operand, materialize_grads=True)
