"""Inputs and a float64 oracle for the tests of the block-affine weight."""

import numpy as np
import torch

# outputs, inputs, grid, r: per block row, per block column, tiled evenly and unevenly, whole, odd sizes, single entries
CASES = (
    (12, 8, (3, 1), 4),
    (12, 8, (1, 2), 4),
    (24, 16, (3, 2), 4),
    (20, 15, (3, 2), 5),
    (8, 8, (1, 1), 8),
    (6, 9, (2, 3), 3),
    (3, 5, (3, 1), 1),
    (64, 160, (4, 1), 16),
)


def inputs(case, dtype=torch.float32, scale=0.1):
    """Weight, block, tokens and their outputs' gradient; the block is in fp32 or wider."""
    out_features, in_features, grid, r = case
    weight = (torch.randn(out_features, in_features) / in_features**0.5).to(dtype)
    block = scale * torch.randn(*grid, r, r, dtype=torch.promote_types(dtype, torch.float32))
    return weight, block, torch.randn(7, in_features).to(dtype), torch.randn(7, out_features).to(dtype)


def oracle(weight, block, tokens, upstream):
    """Built weight, outputs and gradients of block and tokens, block by block in numpy's float64."""
    w, b, x, g = (tensor.detach().double().numpy() for tensor in (weight, block, tokens, upstream))
    grid_out, grid_in, r, _ = b.shape
    built, slopes = np.empty_like(w), np.zeros_like(b)
    for row in range(w.shape[0] // r):
        for column in range(w.shape[1] // r):
            here = slice(row * r, row * r + r), slice(column * r, column * r + r)
            own = row % grid_out, column % grid_in
            built[here] = w[here] @ (np.eye(r) + b[own]) + b[own]
            slopes[own] += (w[here] + np.eye(r)).T @ (g[:, here[0]].T @ x[:, here[1]])
    return built, x @ built.T, slopes, g @ built
