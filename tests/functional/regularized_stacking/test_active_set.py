"""Exact lasso and elastic-net paths: conditions of optimality, scikit-learn, and collinear features."""

import numpy as np
import pytest
import torch

from lightning_weights.functional.regularized_stacking import active_set_paths
from lightning_weights.kernels.coordinate_descent import duality_gap
from tests.kernels.coordinate_descent_cases import data, penalties, scikit_learn, sums

ALPHAS = np.logspace(0.7, -4, 9)
RATIOS = (0.2, 0.9, 1.0)


def solve(pairs, alphas=ALPHAS):
    gram, moments, power = sums(*pairs)
    l1, l2 = (t.repeat(len(pairs), 1) for t in penalties(alphas, RATIOS))
    own = torch.arange(len(pairs)).repeat_interleave(len(RATIOS))
    return active_set_paths(gram, moments, own, l1, l2), (gram[own], moments[own], power[own], l1, l2)


@pytest.mark.parametrize("spread", [0.0, 1e-3, 0.3])  # 0: two features are the same
def test_solutions_are_optimal(spread):
    weights, (gram, moments, power, l1, l2) = solve([data(60, 12, seed, spread) for seed in range(3)])
    slopes = moments[:, None] - weights @ gram
    columns = [tensor.permute(2, 0, 1) for tensor in (weights, slopes, moments[:, None].expand_as(slopes))]
    gap, _ = duality_gap(*columns, l1, l2, power[:, None])
    assert (gap <= 1e-6 * power[:, None]).all()
    assert not weights[:, 0].all()
    assert (weights[..., 7] == 0.0).all()  # the constant feature
    left = slopes - l2[..., None] * weights
    assert (left.abs() <= l1[..., None] + 1e-5).all()
    active = weights != 0.0
    bound = (l1[..., None] * weights.sign())[active]
    torch.testing.assert_close(left[active], bound, atol=1e-5, rtol=1e-4)


def test_it_is_where_scikit_learn_goes():
    x, y = data(80, 10, spread=0.2)
    weights, _ = solve([(x, y)])
    for path, ratio in enumerate(RATIOS):
        want, _, _ = scikit_learn(x, y, ALPHAS, ratio, 1e-10, 20_000)
        np.testing.assert_allclose(x @ weights[path].T, x.numpy() @ want.T, atol=1e-4)


def test_nothing_where_the_penalty_is_largest_and_least_squares_where_it_vanishes():
    x, y = data(80, 10, spread=0.3)
    x = x[:, [0, 1, 2, 3, 4, 6]]
    gram, moments, _ = sums((x, y))
    l1 = moments.abs().max() * torch.tensor([[1.0, 1e-9]], dtype=torch.float64)
    weights = active_set_paths(gram, moments, torch.tensor([0]), l1, 0 * l1)
    assert not weights[0, 0].any()
    torch.testing.assert_close(weights[0, 1], torch.linalg.lstsq(x, y).solution, atol=1e-6, rtol=1e-6)


def test_paths_do_not_see_each_other():
    pairs = [data(60, 9, seed) for seed in range(2)]
    together, _ = solve(pairs)
    alone = torch.cat([solve([pair])[0] for pair in pairs])
    torch.testing.assert_close(together, alone, atol=1e-7, rtol=1e-6)
