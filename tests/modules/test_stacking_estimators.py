"""The stacking estimators inside of scikit-learn."""

import copy
import pickle
from unittest import SkipTest

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from lightning_weights.modules import (
    CVElasticNet,
    CVLasso,
    CVRidge,
    InverseRMSEBlender,
    MetaFeatureAugmenter,
    RedundancyProjector,
    RegularizedStacking,
)
from tests.modules.test_regularized_stacking import pool

GRID = [0.1, 1.0, 10.0]
ESTIMATORS = {
    "stack": RegularizedStacking(tau_corr=0.9, learners=["ridge"], n_folds=3),
    "projector": RedundancyProjector(tau_mse=0.5),
    "augmenter": MetaFeatureAugmenter(interactions=False),
    "ridge": CVRidge(GRID),
    "lasso": CVLasso(GRID),
    "elastic net": CVElasticNet(GRID, [0.5, 1.0]),
    "blender": InverseRMSEBlender(),
}


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_clones_have_the_same_arguments_and_are_not_fitted(estimator):
    table, target, _ = (part.numpy() for part in pool())
    fitted = copy.deepcopy(estimator).fit(table, target)
    again = clone(fitted)
    assert again.get_params() == estimator.get_params()
    assert repr(again) == repr(estimator)
    assert fitted.__sklearn_is_fitted__()
    assert not again.__sklearn_is_fitted__()
    use = "predict" if hasattr(fitted, "predict") else "transform"
    for twin in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted), again.fit(table, target)):
        np.testing.assert_array_equal(getattr(twin, use)(table), getattr(fitted, use)(table))


def test_they_show_what_is_not_default():
    assert repr(ESTIMATORS["stack"]) == "RegularizedStacking(tau_corr=0.9, learners=['ridge'], n_folds=3)"
    assert repr(CVRidge()) == "CVRidge()"


def test_a_pipeline_of_the_parts_and_a_search_over_thresholds():
    table, target, _ = (part.numpy() for part in pool())
    pipeline = make_pipeline(RedundancyProjector(), MetaFeatureAugmenter(), CVRidge(GRID))
    search = GridSearchCV(pipeline, {"redundancyprojector__tau_corr": [0.5, 0.95]}, cv=3).fit(table, target)
    assert search.best_score_ > 0.9
    predicted = cross_val_predict(pipeline, table, target, cv=KFold(3))
    assert predicted.shape == target.shape
    names = pipeline.fit(table, target)[:-1].get_feature_names_out()
    assert names.tolist() == [
        "x0",
        "x1",
        "x2",
        "x3",
        "x4",
        "x5",
        "mean",
        "std",
        "median",
        "range",
        "mean * std",
        "range * std",
    ]


def test_a_stack_at_the_end_of_a_pipeline_and_in_a_search():
    table, target, others = (part.numpy() for part in pool())
    search = GridSearchCV(ESTIMATORS["stack"], {"blend": ["uniform"], "tau_corr": [0.8, 0.95]}, cv=3).fit(table, target)
    assert search.best_params_["blend"] == "uniform"
    again = make_pipeline(search.best_estimator_).fit(table, target)
    np.testing.assert_array_equal(again.predict(others), search.predict(others))
    line = LinearRegression().fit(table, target)
    assert search.best_estimator_.score(table, target) == pytest.approx(line.score(table, target), abs=0.05)


def test_ridge_is_ridge_cv_behind_a_scaler():
    table, target, others = (part.numpy() for part in pool())
    scaled = RidgeCV(GRID, cv=KFold(3), scoring="neg_root_mean_squared_error")
    scaler = StandardScaler().fit(table)
    scaled.fit(scaler.transform(table), target)
    found = CVRidge(GRID).fit(table, target)
    assert found.penalty_ == scaled.alpha_
    np.testing.assert_allclose(found.predict(others), scaled.predict(scaler.transform(others)), rtol=1e-9)
    assert found.score(table, target) == pytest.approx(scaled.score(scaler.transform(table), target), rel=1e-9)


OTHERWISE = {
    "check_do_not_raise_errors_in_init_or_set_params": "arguments are checked where they are given",
    "check_estimators_unfitted": "the ValueError is not scikit-learn's own kind of one, which need not be there",
    "check_fit2d_1sample": "one row is refused in other words",
    "check_supervised_y_2d": "targets in one column need no warning",
    "check_regressors_no_decision_function": "its predictions are the targets",
    "check_n_features_in_after_fitting": "it does check; its message calls the table P, not X",
}


@pytest.mark.filterwarnings("ignore:Estimator .* does not inherit", "ignore:.* occurred during set_params")
@pytest.mark.parametrize("name", ["stack", "ridge", "projector", "augmenter"])
def test_scikit_learns_own_checks(name):
    failed, passed = {}, 0
    for estimator, check in estimator_checks_generator(ESTIMATORS[name], legacy=True):
        try:
            check(estimator)
            passed += 1
        except SkipTest:
            continue
        except Exception as error:
            failed[check.func.__name__] = f"{type(error).__name__}: {error}"
    assert not {check: why for check, why in failed.items() if check not in OTHERWISE}
    assert passed > 25
