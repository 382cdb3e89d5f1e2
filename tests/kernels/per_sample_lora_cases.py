"""Inputs and a float64 oracle for the tests of adapters per sample."""

import numpy as np
import torch

SCALE = 1.7
# samples, tokens, inputs, outputs, rank: odd sizes, one token, full tiles, single entries, a rank above the inputs
CASES = (
    (2, 3, 5, 7, 2),
    (3, 1, 16, 24, 4),
    (2, 32, 16, 128, 16),
    (1, 1, 1, 1, 1),
    (2, 17, 4, 20, 6),
)


def inputs(case, dtype=torch.float32):
    """Base, tokens, A, B and the outputs' gradient."""
    samples, tokens, width, outputs, rank = case
    shapes = ((samples, tokens, outputs), (samples, tokens, width), (samples, rank, width), (samples, outputs, rank))
    tensors = [torch.randn(shape).to(dtype) for shape in shapes]
    return (*tensors, torch.randn(shapes[0]).to(dtype))


def oracle(base, tokens, a, b, upstream):
    """Outputs, and the gradients of tokens, A and B, sample by sample in numpy's float64."""
    base, x, a, b, g = (tensor.detach().double().numpy() for tensor in (base, tokens, a, b, upstream))
    updates = [SCALE * right @ left for left, right in zip(a, b, strict=True)]
    outputs = np.stack([own + rows @ delta.T for own, rows, delta in zip(base, x, updates, strict=True)])
    slope_x = np.stack([rows @ delta for rows, delta in zip(g, updates, strict=True)])
    slopes = [rows.T @ own for rows, own in zip(g, x, strict=True)]  # of the update, divided by the scale
    slope_a = np.stack([SCALE * right.T @ slope for right, slope in zip(b, slopes, strict=True)])
    slope_b = np.stack([SCALE * slope @ left.T for left, slope in zip(a, slopes, strict=True)])
    return outputs, slope_x, slope_a, slope_b
