"""Lasso and elastic net against their conditions of optimality and scikit-learn."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import ElasticNetCV, LassoCV
from sklearn.model_selection import KFold

from lightning_weights.functional.regularized_stacking import elastic_net_paths, fit_elastic_nets, fold_grams
from tests.functional.regularized_stacking.stacking_cases import design, three_folds

PENALTIES = np.logspace(-2, 1, 8)  # as far as coordinate descent converges soon
RATIOS = (0.1, 0.9, 1.0)


def standardised(seed, rows=90):
    features, target = design(seed, rows)
    sets = fold_grams(features, target, three_folds(rows))
    return sets, ((features - sets.mean[0]) / sets.scale[0]).numpy(), target.numpy()


@pytest.mark.parametrize(("ratio", "sweeps"), [(1.0, 10_000), (0.5, 10_000), (1.0, 1), (0.5, 1)])
def test_solutions_are_optimal(ratio, sweeps):
    sets, z, y = standardised(0)
    alpha = torch.tensor([[[0.5, 0.1, 0.03]]], dtype=torch.float64)
    weights, gap = elastic_net_paths(sets.whole, alpha, torch.full_like(alpha, ratio), 1e-7, sweeps)
    assert float(gap.max()) <= 1e-7
    for w, penalty in zip(weights[0, 0].numpy(), alpha.flatten().tolist(), strict=True):
        gradient = z.T @ (y - y.mean() - z @ w) / len(y) - penalty * (1 - ratio) * w
        np.testing.assert_allclose(gradient[w != 0], penalty * ratio * np.sign(w[w != 0]), atol=1e-4)
        assert (np.abs(gradient) <= penalty * ratio + 1e-4).all()
        assert (w != 0).any()


def test_from_the_largest_correlation_on_all_weights_are_zero():
    sets, z, y = standardised(1)
    largest = float(np.abs(z.T @ (y - y.mean())).max() / len(y))
    alpha = torch.tensor([[[2 * largest, largest * (1 + 1e-12), 0.9 * largest]]], dtype=torch.float64)
    weights, _ = elastic_net_paths(sets.whole, alpha, torch.ones_like(alpha))
    assert weights[0, 0].ne(0).sum(1).tolist() == [0, 0, 1]


@pytest.mark.parametrize("seed", range(3))
def test_they_choose_and_fit_as_scikit_learn(seed):
    sets, z, y = standardised(seed)
    lasso, net = fit_elastic_nets(sets, [[1.0], RATIOS], PENALTIES.tolist())
    common = {"alphas": PENALTIES, "cv": KFold(3), "max_iter": 10_000, "tol": 1e-4}
    for fit, want in (
        (lasso, LassoCV(**common).fit(z, y)),
        (net, ElasticNetCV(**common, l1_ratio=list(RATIOS)).fit(z, y)),
    ):
        assert float(fit.penalty) == want.alpha_
        assert float(fit.l1_ratio) == getattr(want, "l1_ratio_", 1.0)
        np.testing.assert_allclose(z @ fit.coefficients[0].numpy(), z @ want.coef_, atol=2e-3)
        paths = want.mse_path_ if want.mse_path_.ndim == 3 else want.mse_path_[None]
        np.testing.assert_allclose(
            fit.scores[0], paths.mean(-1).flatten(), rtol=5e-3
        )  # theirs stop short of the solution


def test_of_equal_scores_the_largest_penalty_and_the_first_ratio_are_taken():
    sets, _, _ = standardised(2)
    fit = fit_elastic_nets(sets, [[0.9, 0.5]], [1e3, 1e4, 2e3])[0]
    assert (fit.penalty.item(), fit.l1_ratio.item()) == (1e4, 0.9)
    assert not fit.coefficients.any()


def test_ratio_one_of_the_elastic_net_is_the_lasso():
    sets, _, _ = standardised(0)
    lasso, net = fit_elastic_nets(sets, [[1.0], [1.0]], PENALTIES.tolist())
    np.testing.assert_array_equal(lasso.coefficients, net.coefficients)


def test_only_what_sweeps_leave_unsolved_is_solved_otherwise():
    sets, _, _ = standardised(0)
    alpha = torch.tensor([[[2.5, 0.5]]], dtype=torch.float64)
    weights, gap = elastic_net_paths(sets.whole, alpha, torch.ones_like(alpha), 1e-4, 300)
    swept, same = elastic_net_paths(sets.whole, alpha, torch.ones_like(alpha), 1e-4, 10_000)
    assert torch.equal(weights[:, :, 0], swept[:, :, 0])
    assert float(gap[0, 0, 1]) < 1e-9 < float(same[0, 0, 1]) <= 1e-4


def test_a_fit_that_has_not_converged_is_known():
    sets, _, _ = standardised(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # telling is the estimators' part
        fit = fit_elastic_nets(sets, [[1.0]], [0.01], tolerance=1e-15)[0]
    assert fit.unconverged == [0]
    assert float(fit.gap) > fit.tolerance
