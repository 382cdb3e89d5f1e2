"""Regularized stacking against a transcription of the authors' modules on scikit-learn."""

import numpy as np
import pytest
import torch

from lightning_weights.functional.regularized_stacking import fold_ids, greedy_selection, meta_features
from lightning_weights.modules import RedundancyProjector, RegularizedStacking
from tests.helpers.golden import cases, load

GOLDEN = load("regularized_stacking")
LEARNERS = [name for name in ("ridge", "lasso", "elasticnet") if name in cases(GOLDEN, "", "_oof")]
ROUNDS, CLOSE, SLACK = 50, 1e-6, 2e-3  # of coordinate descent that stops at a duality gap


def tensor(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name].copy())


@pytest.fixture(scope="module")
def stack():
    """Return a stack fitted as the file was made, with the outer folds of the file."""
    ids = GOLDEN["fold_id"]
    folds = [(np.flatnonzero(ids != fold), np.flatnonzero(ids == fold)) for fold in range(int(GOLDEN["n_folds"]))]
    thresholds = {name: float(GOLDEN[name]) for name in ("tau_corr", "tau_mse", "tau_var")}
    settings = {"learners": LEARNERS, "inner_folds": int(GOLDEN["inner_cv"]), "splitter": folds}
    return RegularizedStacking(**thresholds, **settings).fit(tensor("oof_base"), tensor("y"))


def test_stage_1_selects_the_same_columns():
    thresholds = {name: float(GOLDEN[name]) for name in ("tau_corr", "tau_mse", "tau_var")}
    found = RedundancyProjector(**thresholds).fit(tensor("oof_base"), tensor("y")).selection_
    assert found.columns.tolist() == GOLDEN["selected"].tolist()
    np.testing.assert_allclose(found.risk, GOLDEN["base_rmse"], rtol=1e-12)
    np.testing.assert_allclose(found.condition_before, GOLDEN["cond_corr_before"], rtol=1e-3)
    np.testing.assert_allclose(found.condition_after, GOLDEN["cond_corr_after"], rtol=CLOSE)


def test_stage_2_appends_the_same_statistics():
    columns = tensor("oof_base")[:, tensor("selected")]
    np.testing.assert_allclose(meta_features(columns), GOLDEN["design"], atol=1e-10)


def test_outer_folds_are_those_of_scikit_learn():
    found = fold_ids(len(GOLDEN["y"]), int(GOLDEN["n_folds"]), int(GOLDEN["random_state"]))
    np.testing.assert_array_equal(found, GOLDEN["fold_id"])


@pytest.mark.parametrize("learner", LEARNERS)
def test_stage_3_chooses_the_same_penalties_and_predicts_the_same(stack, learner):
    report, output, row = stack.report_["learners"][learner], stack.state_.outputs[0], LEARNERS.index(learner)
    np.testing.assert_allclose(report["fold_penalties"], GOLDEN[f"{learner}_lam"], rtol=CLOSE)
    np.testing.assert_allclose(report["penalty"], GOLDEN[f"{learner}_alpha"], rtol=CLOSE)
    ratio = report["l1_ratio"] if learner == "elasticnet" else np.nan
    np.testing.assert_allclose(ratio, GOLDEN[f"{learner}_l1"])
    close = {"rtol": CLOSE} if learner == "ridge" else {"atol": SLACK}
    np.testing.assert_allclose(report["fold_rmse"], GOLDEN[f"{learner}_fold_rmse"], **close)
    np.testing.assert_allclose(report["rmse"], GOLDEN[f"{learner}_rmse"], **close)
    np.testing.assert_allclose(output.mean, GOLDEN[f"{learner}_mean"], rtol=1e-10)
    np.testing.assert_allclose(output.scale, GOLDEN[f"{learner}_scale"], rtol=1e-10)
    np.testing.assert_allclose(output.intercepts[row], GOLDEN[f"{learner}_intercept"], rtol=1e-10)
    if learner == "ridge":
        np.testing.assert_allclose(output.coefficients[row], GOLDEN["ridge_coef"], rtol=CLOSE)


@pytest.mark.parametrize("learner", LEARNERS)
def test_stage_3_predicts_the_same_test_rows(stack, learner):
    output, row = stack.state_.outputs[0], LEARNERS.index(learner)
    features = meta_features(tensor("test_base")[:, output.selected])
    found = (features - output.mean) / output.scale @ output.coefficients[row] + output.intercepts[row]
    close = {"rtol": CLOSE} if learner == "ridge" else {"atol": SLACK}
    np.testing.assert_allclose(found, GOLDEN[f"{learner}_test"], **close)


def test_stage_4_blends_the_same(stack):
    np.testing.assert_allclose(stack.state_.outputs[0].blend, GOLDEN["blend_weights"], atol=1e-4)
    np.testing.assert_allclose(stack.oof_, GOLDEN["oof_blend"], atol=SLACK)
    np.testing.assert_allclose(stack.predict(tensor("test_base")), GOLDEN["test_blend"], atol=SLACK)


@pytest.mark.parametrize("learner", LEARNERS)
def test_held_out_rows_are_predicted_the_same(stack, learner):
    close = {"rtol": CLOSE} if learner == "ridge" else {"atol": SLACK}
    np.testing.assert_allclose(stack.learner_oof_[learner], GOLDEN[f"{learner}_oof"], **close)


def test_greedy_selection_takes_the_same():
    found = greedy_selection(tensor("oof_base"), tensor("y"), rounds=ROUNDS)
    np.testing.assert_allclose(found, GOLDEN["greedy_weights"], atol=1e-12)
