"""Ridge regression against direct solutions and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold

from lightning_weights.functional.regularized_stacking import RIDGE_PENALTIES, fit_ridge, fold_grams, ridge_path
from tests.functional.regularized_stacking.stacking_cases import design, three_folds


def test_the_path_is_that_of_direct_solutions():
    features, target = design(0, rows=60)
    sets = fold_grams(features, target, three_folds(60))
    z, y = ((features - sets.mean[0]) / sets.scale[0]).numpy(), (target - target.mean()).numpy()
    found = ridge_path(sets.whole, torch.tensor([0.1, 10.0, 1e4], dtype=torch.float64))[0]
    for weights, penalty in zip(found, (0.1, 10.0, 1e4), strict=True):
        want = np.linalg.solve(z.T @ z + penalty * np.eye(z.shape[1]), z.T @ y)
        np.testing.assert_allclose(weights, want, rtol=1e-8, atol=1e-10)


def test_a_huge_penalty_gives_the_mean():
    features, target = design(1)
    fit = fit_ridge(fold_grams(features, target, three_folds(90)), [1e15])
    assert float(fit.coefficients.abs().max()) < 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_it_chooses_and_fits_as_ridge_cv(seed):
    features, target = design(seed, rows=91, noise=0.3 * seed)
    sets = fold_grams(features, target, three_folds(91))
    penalties = RIDGE_PENALTIES[::3]
    fit = fit_ridge(sets, penalties)
    z = ((features - sets.mean[0]) / sets.scale[0]).numpy()
    want = RidgeCV(penalties, cv=KFold(3), scoring="neg_root_mean_squared_error").fit(z, target.numpy())
    assert float(fit.penalty) == want.alpha_
    np.testing.assert_allclose(fit.coefficients[0], want.coef_, rtol=1e-6, atol=1e-8)
    assert -float(fit.scores.min()) == pytest.approx(want.best_score_, rel=1e-9)
    assert not fit.unconverged


def test_of_equal_scores_the_first_is_taken():
    target = torch.arange(12.0, dtype=torch.float64)
    fit = fit_ridge(fold_grams(torch.ones(12, 2, dtype=torch.float64), target, three_folds(12)), [3.0, 1.0, 7.0])
    assert fit.penalty.item() == 3.0
    assert fit.coefficients.tolist() == [[0.0, 0.0]]
