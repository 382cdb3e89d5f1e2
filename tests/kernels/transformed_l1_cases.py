"""Inputs and a float64 oracle for the tests of the transformed group energy."""

import numpy as np
import torch

RULE = {"precision": 3.0, "l0": 0.002, "a": 50.0}
SHAPES = ((1, 1), (3, 7), (2, 16), (5, 27), (4, 1000), (2, 1025), (3, 576), (2, 9000))
OP_RULE = (*RULE.values(), False)


def inputs(shape, dtype=torch.float32):
    """Weights, probabilities and upstream gradients, small enough for the released sign."""
    wide = torch.promote_types(dtype, torch.float32)
    weight = (torch.randn(shape) / shape[1] ** 0.5).to(dtype)
    return weight, torch.rand(shape[0], dtype=wide), torch.randn(shape[0], dtype=wide)


def oracle(weight, keep, upstream, precision, l0, a, released=False):
    """Energies and both gradients in numpy's float64."""
    w, keep, upstream = (tensor.detach().double().numpy() for tensor in (weight, keep, upstream))
    price = precision / 2 * np.einsum("rn,rn->r", w, w) + l0 * w.shape[1]
    distance = a + (-1 if released else 1) * keep * price
    slope = upstream * a * (a + 1) / distance**2
    return (a + 1) * keep * price / distance, (slope * keep * precision)[:, None] * w, slope * price
