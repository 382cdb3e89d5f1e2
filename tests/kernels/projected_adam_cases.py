"""Inputs and a float64 oracle for the tests of the projected Adam step."""

import numpy as np
import torch

from lightning_weights.kernels.projected_adam.blockwise import blocks, dequantize, quantize

SHAPES = ((1, 1, 1), (7, 3, 2), (3, 48, 3), (40, 50, 8), (64, 128, 16), (33, 70, 17))  # rows, columns, rank
SIDES = ("left", "right", "full", "none")
RULE = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-6, "scale": 0.25, "decay": 0.01}
STEP_SIZE = 0.05


def inputs(shape, side, dtype=torch.float32):
    """A weight, its gradient, both projections (None where there is none), and moments of some age."""
    (rows, columns, rank), wide = shape, torch.promote_types(dtype, torch.float32)
    param, grad = torch.randn(rows, columns).to(dtype), torch.randn(rows, columns).to(dtype)
    left = torch.linalg.qr(torch.randn(rows, rank, dtype=wide)).Q if side in ("left", "full") else None
    right = torch.linalg.qr(torch.randn(columns, rank, dtype=wide)).Q.T if side in ("right", "full") else None
    size = (rows if left is None else left.shape[1], columns if right is None else right.shape[0])
    return param, grad, left, right, torch.randn(size, dtype=wide), torch.rand(size, dtype=wide)


def oracle(param, grad, left, right, exp_avg, exp_avg_sq, beta1, beta2, eps, scale, decay):
    """Weights and moments after the step in numpy's float64."""
    names = (param, grad, left, right, exp_avg, exp_avg_sq)
    w, d, lt, rt, m, v = (None if tensor is None else tensor.detach().double().numpy() for tensor in names)
    lt, rt = np.eye(len(w)) if lt is None else lt, np.eye(w.shape[1]) if rt is None else rt
    reduced = lt.T @ d @ rt.T
    m, v = beta1 * m + (1 - beta1) * reduced, beta2 * v + (1 - beta2) * reduced**2
    return (w - STEP_SIZE * scale * lt @ (m / (np.sqrt(v) + eps)) @ rt) * (1 - decay), m, v


def listed(*tensors):
    """Each tensor as a list of one, None as an empty one."""
    return [[] if tensor is None else [tensor] for tensor in tensors]


def encoded(moments, left_only):
    """Codes and block maxima of both moments."""
    codes, maxima = [], []
    for moment, signed in zip(moments, (True, False), strict=True):
        lying = (moment.T if left_only else moment).contiguous()
        codes.append(torch.empty(lying.shape, dtype=torch.uint8))
        maxima.append(torch.empty(blocks(lying.numel())))
        quantize(lying, codes[-1], maxima[-1], signed=signed)
    return codes, maxima


def decoded(codes, maxima, left_only):
    """Both moments of what `encoded` returned."""
    moments = [dequantize(c, a, signed=signed) for c, a, signed in zip(codes, maxima, (True, False), strict=True)]
    return [moment.T if left_only else moment for moment in moments]
