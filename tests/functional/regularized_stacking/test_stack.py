"""The whole stack as a function: shared paths, outer folds, and learners that make no error."""

import numpy as np
import pytest
import torch

from lightning_weights.functional.regularized_stacking import (
    Grids,
    Split,
    StackRules,
    fit_elastic_nets,
    fit_linear_models,
    fit_ridge,
    fit_stack,
    fold_grams,
    fold_ids,
    inner_folds,
)
from tests.functional.regularized_stacking.stacking_cases import design, three_folds

GRIDS = Grids(ridge=[0.1, 1.0, 10.0], l1=[0.05, 0.2, 1.0], ratios=[0.5, 1.0])


def divided(rows, outer=3):
    ids, numbers = fold_ids(rows, outer, seed=0), torch.arange(rows)
    splits = [Split(numbers[ids != fold], numbers[ids == fold]) for fold in range(outer)]
    return splits, inner_folds([*(split.train for split in splits), numbers], rows, 3)


def test_learners_that_share_paths_fit_as_each_alone():
    features, target = design(0)
    sets = fold_grams(features, target, three_folds(90))
    found = fit_linear_models(sets, ["elasticnet", "ridge", "lasso"], GRIDS)
    assert list(found) == ["elasticnet", "ridge", "lasso"]
    alone = {
        "ridge": fit_ridge(sets, GRIDS.ridge),
        "lasso": fit_elastic_nets(sets, [[1.0]], GRIDS.l1)[0],
        "elasticnet": fit_elastic_nets(sets, [GRIDS.ratios], GRIDS.l1)[0],
    }
    for name, want in alone.items():
        assert torch.equal(found[name].penalty, want.penalty)
        np.testing.assert_allclose(found[name].coefficients, want.coefficients, rtol=1e-9, atol=1e-12)


def test_held_out_rows_are_predicted_by_fits_to_the_others():
    features, target = design(1)
    splits, folds = divided(90)
    rules = StackRules(statistics=False, interactions=False)
    fitted = fit_stack(features[:, :4], target, splits, folds, ["ridge", "lasso"], rules, GRIDS)
    for index, split in enumerate(splits):
        sets = fold_grams(features[split.train, :4], target[split.train], three_folds(len(split.train)))
        fits = fit_linear_models(sets, ["ridge", "lasso"], GRIDS)
        z = (features[split.test, :4] - sets.mean[0]) / sets.scale[0]
        for column, (name, fit) in enumerate(fits.items()):
            want = z @ fit.coefficients[0] + sets.target_mean[0]
            np.testing.assert_allclose(fitted.oof[split.test, column], want, rtol=1e-8)
            assert fitted.fits[name].penalty[index] == fit.penalty[0]
            rmse = float((want - target[split.test]).square().mean().sqrt())
            assert float(fitted.fold_rmse[index, column]) == pytest.approx(rmse)
    assert fitted.blend.sum() == pytest.approx(1.0)


def test_a_learner_without_any_error_is_an_error_unless_all_weigh_the_same():
    target = torch.zeros(30, dtype=torch.float64)
    predictions = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    splits, folds = divided(30)
    with pytest.raises(ValueError, match="not out-of-fold"):
        fit_stack(predictions, target, splits, folds, ["ridge"], grids=GRIDS)
    fitted = fit_stack(predictions, target, splits, folds, ["ridge"], StackRules(blend="uniform"), GRIDS)
    assert not fitted.oof.any()
