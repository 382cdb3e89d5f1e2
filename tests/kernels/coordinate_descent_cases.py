"""Data for the tests of coordinate descent, and what scikit-learn finds in them."""

import warnings

import numpy as np
import pytest
import torch


def data(rows=60, size=9, seed=0, spread=0.05):
    """Centred features, one the mean of others, one a near-copy, one constant, and a centred target."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, size, generator=generator, dtype=torch.float64)
    x[:, 2] = x[:, 1] + spread * x[:, 2]
    x[:, 5] = x[:, :3].mean(dim=1)
    x[:, 7] = 0.0
    y = x[:, :4].sum(dim=1) + torch.randn(rows, generator=generator, dtype=torch.float64)
    return x - x.mean(dim=0), y - y.mean()


def sums(*pairs):
    """Gram matrices, moments and powers."""
    parts = [(x.T @ x / len(x), x.T @ y / len(x), y @ y / len(x)) for x, y in pairs]
    return tuple(torch.stack(tensors) for tensors in zip(*parts, strict=True))


def penalties(alphas, ratios):
    """λ₁ and λ₂ of one path for each ratio."""
    alpha, ratio = (torch.as_tensor(values, dtype=torch.float64) for values in (alphas, ratios))
    return alpha * ratio[:, None], alpha * (1.0 - ratio[:, None])


def scikit_learn(x, y, alphas, ratio, tolerance, most):
    """Weights (L, p), sweeps and gaps of scikit-learn's path on the Gram matrix."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, weights, gaps, sweeps = linear_model.enet_path(
            x.numpy(), y.numpy(), l1_ratio=ratio, alphas=np.asarray(alphas), precompute=True, tol=tolerance,
            max_iter=most, return_n_iter=True,
        )  # fmt: skip
    return weights.T, np.array(sweeps), gaps
