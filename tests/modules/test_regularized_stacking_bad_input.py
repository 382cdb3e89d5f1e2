"""What the stacking estimators refuse, and what they warn about."""

import numpy as np
import pytest
import torch

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.modules import (
    CVElasticNet,
    CVLasso,
    CVRidge,
    InverseRMSEBlender,
    MetaFeatureAugmenter,
    RedundancyProjector,
    RegularizedStacking,
)
from tests.modules.test_regularized_stacking import pool, ridge


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tau_corr": 1.5}, r"tau_corr is 1\.5; allowed is a correlation in \[0, 1\].*tau_mse=0\.0"),
        ({"tau_corr": -0.1}, r"tau_corr is -0\.1"),
        ({"tau_corr": "high"}, "tau_corr is 'high'"),
        ({"tau_mse": -1.0}, r"tau_mse is -1\.0"),
        ({"tau_mse_mode": "both"}, "tau_mse_mode is 'both'; allowed are 'absolute', 'relative'"),
        ({"tau_var": -1.0}, r"tau_var is -1\.0"),
        ({"statistics": "yes"}, "statistics is 'yes'"),
        ({"interactions": None}, "interactions is None"),
        ({"learners": []}, r"learners is \[\]"),
        ({"learners": "ridge"}, "learners is 'ridge'; allowed is a list"),
        ({"learners": ["ridge", "ridge"]}, "allowed is a list of different names"),
        ({"learners": ["ols"]}, "learners is 'ols'; allowed are 'ridge', 'lasso', 'elasticnet'"),
        ({"n_folds": 1}, "n_folds is 1"),
        ({"inner_folds": 2.5}, r"inner_folds is 2\.5"),
        ({"blend": "best"}, "blend is 'best'; allowed are 'inverse_rmse', 'uniform'"),
        ({"seed": -1}, "seed is -1"),
        ({"nested": 2}, "nested is 2"),
        ({"splitter": 5}, "splitter is 5; allowed are an object with split"),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RegularizedStacking(**arguments)


@pytest.mark.parametrize("kind", [torch.nan, torch.inf])
def test_broken_predictions_are_named_and_counted(kind):
    table, target, others = pool()
    table[[3, 7], 2] = kind
    table[5, 4] = -torch.inf
    with pytest.raises(ValueError, match=r"NaN or inf among its 120 rows: model_2 \(2\), model_4 \(1\)"):
        ridge().fit(table, target)
    with pytest.raises(ValueError, match=r"tree \(2\), net \(1\)"):
        ridge().fit(table, target, names=["a", "b", "tree", "c", "net", "d"])
    found = ridge().fit(pool()[0], target)
    others[0, 1] = kind
    with pytest.raises(ValueError, match=r"model_1 \(1\)"):
        found.predict(others)


def test_broken_targets():
    table, target, _ = pool()
    target[2] = torch.nan
    with pytest.raises(ValueError, match=r"y has NaN or inf among its 120 rows: output 0 \(1\)"):
        ridge().fit(table, target)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda t, y: (t[:3], y[:3]), "n_folds is 4 with 3 rows"),
        (lambda t, y: (t[:5], y[:5]), None),
        (lambda t, y: (t[:, :1], y), "P has 1 columns .* needs the predictions of 2 models"),
        (lambda t, y: (t[:-1], y), "P has 119 rows and y has 120"),
        (lambda t, y: (t[:, 0], y), "P is 1-d; allowed is 2-d or 3-d"),
        (lambda t, y: (t[:, :, None].expand(-1, -1, 3), torch.stack([y, y], 1)), "P has 3 outputs and y has 2"),
        (lambda t, y: (t * torch.nan, y), "P is all NaN"),
        (lambda t, y: (t, None), "requires y to be passed, but the target y is None"),
        (lambda t, y: (t, y, [1, 2]), "groups has 2 entries and P 120 rows"),
        (lambda t, y: (t, y, None, ["a", "b"]), "allowed are 6 different names"),
        (lambda t, y: (t, y, None, ["a"] * 6), "allowed are 6 different names"),
        (lambda t, y: (t.to(torch.complex128), y), "complex"),
    ],
)
def test_data(arguments, message):
    table, target, _ = pool()
    given = arguments(table, target)
    if message is None:  # as few rows as there can be: three inner folds of the training rows of four folds
        assert ridge().fit(*given).oof_.isfinite().all()
        return
    with pytest.raises(ValueError, match=message):
        ridge().fit(*given)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_predictions_that_are_the_targets_are_refused(dtype):
    table, target, _ = pool()
    table[:, 3] = target.to(dtype).double()
    with pytest.raises(ValueError, match=r"model_3: predictions equal the targets .*not out-of-fold\?"):
        ridge().fit(table, target)


def test_predictions_that_are_too_good_are_warned_about():
    table, target, _ = pool()
    table[:, 3] = target + 0.01 * (table[:, 3] - target)
    with pytest.warns(LightningWeightsWarning, match=r"model_3: predictions explain more than 99\.9%"):
        ridge().fit(table, target)


def test_errors_far_below_those_on_a_validation_set_are_warned_about(recwarn):
    table, target, _ = pool()
    risk = (table - target[:, None]).square().mean(0).sqrt()
    ridge().fit(table, target, validation_risk=1.5 * risk)
    assert not [warning for warning in recwarn if warning.category is LightningWeightsWarning]
    risk[4] *= 3
    with pytest.warns(LightningWeightsWarning, match=r"model_4: the error is less than 50% of the validation risk"):
        ridge().fit(table, target, validation_risk=risk)
    with pytest.raises(ValueError, match="validation_risk has 2 entries; allowed is one for each of 6 models"):
        ridge().fit(table, target, validation_risk=[1.0, 2.0])


def test_thresholds_that_leave_nothing():
    table, target, _ = pool()
    with pytest.raises(ValueError, match=r"tau_var is 0\.01 .*nothing would be left.*relative"):
        ridge().fit(table / 1000, target / 1000)
    assert ridge(tau_mse_mode="relative").fit(table / 1000, target / 1000).report_["selected"]


def test_columns_of_another_fit():
    table, target, others = pool()
    names = list("abcdef")
    found = ridge().fit(table, target, names=names)
    assert found.predict(others, names=names).shape == (20,)
    with pytest.raises(ValueError, match="column 1 is 'c', in fit it was 'b': the columns are in another order"):
        found.predict(others[:, [0, 2, 1, 3, 4, 5]], names=list("acbdef"))
    with pytest.raises(ValueError, match=r"\['f'\] are missing, \['x'\] are new"):
        found.predict(others, names=list("abcdex"))
    with pytest.raises(ValueError, match=r"shape \(20, 5\); allowed is \(N, 6\)"):
        found.predict(others[:, :5])


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ([], "gives no splits"),
        ([([0, 1], [2, 3]), ([0, 2], [3, 4])], "a row in two test sets"),
        ([([0, 1, 2], [2, 3])], "split 0 has no test rows, or rows that are in both"),
        ([([0, 1, 2], [])], "allowed are row numbers from 0 to 119"),
        ([([0, 1, 2], [120])], "allowed are row numbers from 0 to 119"),
        ([([0, 1], [2])], "3 inner folds were asked for with 2 training rows"),
    ],
)
def test_splits(splits, message):
    table, target, _ = pool()
    with pytest.raises(ValueError, match=message):
        ridge(splitter=splits).fit(table, target)


@pytest.mark.parametrize("estimator", [RegularizedStacking, CVRidge, RedundancyProjector, MetaFeatureAugmenter])
def test_using_before_fitting(estimator):
    use = "predict" if hasattr(estimator, "predict") else "transform"
    with pytest.raises(ValueError, match=f"this {estimator.__name__} is not fitted; call fit first"):
        getattr(estimator(), use)(np.ones((3, 2)))


@pytest.mark.parametrize("estimator", [CVRidge, CVLasso, CVElasticNet])
def test_grids(estimator):
    for penalties in ([], [0.0], [-1.0], "1", [float("nan")], 3.0):
        with pytest.raises(ValueError, match="penalties is"):
            estimator(penalties=penalties)
    with pytest.raises(ValueError, match="inner_folds is 1"):
        estimator(inner_folds=1)


def test_ratios_and_ends_of_coordinate_descent():
    with pytest.raises(ValueError, match=r"l1_ratios has 1\.5; allowed are numbers in \(0, 1\.0\]"):
        CVElasticNet(l1_ratios=[0.5, 1.5])
    with pytest.raises(ValueError, match="tolerance is 0"):
        CVLasso(tolerance=0)
    with pytest.raises(ValueError, match="max_sweeps is 0"):
        CVElasticNet(max_sweeps=0)


def test_a_fit_that_has_not_converged_is_told_with_its_duality_gap():
    table, target, _ = pool()
    with pytest.warns(LightningWeightsWarning, match=r"CVLasso: 1 of 1 fits did not converge; .* gap is \d\.\d+e"):
        CVLasso([0.01], tolerance=1e-15).fit(table, target)


def test_blending_what_has_no_error():
    with pytest.raises(ValueError, match="not out-of-fold"):
        InverseRMSEBlender().fit([[1.0, 2.0], [3.0, 4.0]], [1.0, 3.0])


def test_set_params_changes_all_or_nothing():
    stack = RegularizedStacking()
    with pytest.raises(ValueError, match="n_folds is 0"):
        stack.set_params(tau_corr=0.5, n_folds=0)
    with pytest.raises(ValueError, match="RegularizedStacking has no folds; it has tau_corr, "):
        stack.set_params(folds=3)
    assert (stack.tau_corr, stack.n_folds) == (0.95, 10)
