"""Inputs and a float64 oracle for the tests of the row norms."""

import numpy as np
import torch

SHAPES = ((1, 1, 1), (3, 7, 2), (5, 48, 4), (32, 64, 16), (40, 100, 8), (33, 70, 17))  # rows, columns, rank
SCALE = 1.75


def inputs(shape, dtype=torch.float32):
    """A weight, both factors in fp32 or wider, and an upstream gradient."""
    (rows, columns, rank), wide = shape, torch.promote_types(dtype, torch.float32)
    weight = torch.randn(rows, columns).to(dtype)
    factors = torch.randn(rows, rank, dtype=wide), torch.randn(rank, columns, dtype=wide)
    return weight, *factors, torch.randn(rows, dtype=wide)


def oracle(weight, factor_i, factor_j, upstream):
    """Norms, and gradients of weight and factors, in numpy's float64 and with the update formed."""
    w, i, j, up = (tensor.detach().double().numpy() for tensor in (weight, factor_i, factor_j, upstream))
    rows = w + SCALE * i @ j
    norms = np.linalg.norm(rows, axis=1)
    of_rows = (up / norms)[:, None] * rows
    return norms, of_rows, SCALE * of_rows @ j.T, SCALE * i.T @ of_rows
