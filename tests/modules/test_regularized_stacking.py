"""The stacking estimator: what a stack predicts, and on what its out-of-fold predictions depend."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.model_selection import KFold, TimeSeriesSplit

from lightning_weights.functional.regularized_stacking import meta_features
from lightning_weights.modules import (
    CVRidge,
    InverseRMSEBlender,
    MetaFeatureAugmenter,
    RedundancyProjector,
    RegularizedStacking,
)

CLOSE = partial(np.testing.assert_allclose, rtol=1e-11)  # sums in another order


def pool(seed=0, rows=120, models=6):
    """Return out-of-fold predictions, targets, and predictions of other rows."""
    random = np.random.RandomState(seed)
    target = 3 * random.randn(rows + 20) + 10
    table = target[:, None] + random.randn(rows + 20, models) + 0.5 * random.randn(rows + 20, 1)
    table, target = torch.from_numpy(table), torch.from_numpy(target)
    return table[:rows], target[:rows], table[rows:]


def ridge(**settings):
    return RegularizedStacking(learners=["ridge"], n_folds=4, **settings)


def test_it_is_the_chain_of_its_parts():
    table, target, others = pool()
    table = torch.cat([table, table[:, :2] + 1e-3], 1)
    others = torch.cat([others, others[:, :2] + 1e-3], 1)
    found = ridge().fit(table, target)
    projector, augmenter, model = RedundancyProjector(), MetaFeatureAugmenter(), CVRidge()
    features = augmenter.fit_transform(projector.fit_transform(table, target))
    model.fit(features, target)
    want = model.predict(augmenter.transform(projector.transform(others)))
    np.testing.assert_allclose(found.predict(others), want, rtol=1e-10)
    assert found.state_.retained == projector.selection_.columns.tolist()
    for train, test in KFold(4, shuffle=True, random_state=42).split(table):
        model.fit(features[train], target[train])
        np.testing.assert_allclose(found.oof_[test], model.predict(features[test]), rtol=1e-10)


def test_learners_are_blended_by_their_errors():
    table, target, _ = pool(rows=60, models=3)
    settings = {"n_folds": 3, "statistics": False, "interactions": False}
    found = RegularizedStacking(**settings).fit(table, target)
    oof = torch.stack(list(found.learner_oof_.values()), 1)
    blender = InverseRMSEBlender().fit(oof, target)
    np.testing.assert_allclose(found.state_.outputs[0].blend, blender.weights_)
    np.testing.assert_allclose(found.oof_, blender.predict(oof))
    learners = found.report_["learners"]
    assert set(learners["lasso"]["fold_l1_ratios"]) == {1.0}
    assert set(learners["elasticnet"]["fold_l1_ratios"]) <= {0.1, 0.5, 0.7, 0.9, 0.95, 0.99, 1.0}
    assert list(learners) == ["ridge", "lasso", "elasticnet"]
    assert found.report_["rmse"] <= sum(part["weight"] * part["rmse"] for part in learners.values()) + 1e-12
    uniform = RegularizedStacking(**settings, blend="uniform").fit(table, target)
    np.testing.assert_allclose(uniform.oof_, oof.mean(1))


def test_one_learner_is_not_blended():
    table, target, _ = pool()
    found = ridge().fit(table, target)
    assert found.state_.outputs[0].blend.tolist() == [1.0]
    np.testing.assert_array_equal(found.oof_, found.learner_oof_["ridge"])


@pytest.mark.parametrize("position", [0, 3, 6])
def test_a_copy_of_a_column_changes_nothing(position):
    table, target, others = pool()
    want = ridge().fit(table, target)
    columns = [*range(position), 2, *range(position, 6)]
    found = ridge().fit(table[:, columns], target)
    # in front of its original, the copy takes its place, and the order of sums changes
    compare = CLOSE if position < 2 else np.testing.assert_array_equal
    compare(found.predict(others[:, columns]), want.predict(others))
    compare(found.oof_, want.oof_)
    assert len(found.report_["selected"]) == len(want.report_["selected"])


def test_permuted_columns_permute_selection_and_coefficients():
    table, target, others = pool()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    want, found = ridge().fit(table, target), ridge().fit(table[:, order], target)
    np.testing.assert_allclose(found.predict(others[:, order]), want.predict(others), rtol=1e-9)
    a, b = found.state_.outputs[0].coefficients[0], want.state_.outputs[0].coefficients[0]
    np.testing.assert_allclose(a[:6], b[order], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(a[6:], b[6:], rtol=1e-6, atol=1e-9)


def test_out_of_fold_predictions_do_not_depend_on_targets_of_their_own_fold():
    table, target, _ = pool()
    want = ridge().fit(table, target).oof_
    for _, test in KFold(4, shuffle=True, random_state=42).split(table):
        moved = target.clone()
        moved[test] += torch.linspace(-1, 1, len(test), dtype=torch.float64)
        found = ridge().fit(table, moved)
        assert found.state_.retained == list(range(6))  # the same columns, whatever the targets
        CLOSE(found.oof_[test], want[test])
        rest = np.setdiff1d(np.arange(len(target)), test)
        assert ((found.oof_ - want)[rest].abs() > 1e-6).all()


def test_nested_selection_depends_on_the_training_rows_only():
    """Two copies of each model; which of them is better depends on the rows."""
    table, target, _ = pool(3)
    random = torch.Generator().manual_seed(0)
    copies = table + 0.05 * torch.randn(table.shape, generator=random, dtype=torch.float64)
    table = torch.cat([table, copies], 1)
    splits = list(KFold(4, shuffle=True, random_state=42).split(table))
    found = ridge(nested=True).fit(table, target)
    for train, test in splits:
        projector = RedundancyProjector().fit(table[train], target[train])
        features = meta_features(projector.transform(table))
        model = CVRidge().fit(features[train], target[train])
        np.testing.assert_allclose(found.oof_[test], model.predict(features[test]), rtol=1e-10)
    plain = ridge().fit(table, target)
    assert found.state_.retained == plain.state_.retained
    np.testing.assert_allclose(found.state_.outputs[0].coefficients, plain.state_.outputs[0].coefficients, rtol=1e-8)
    assert float((found.oof_ - plain.oof_).abs().max()) > 1e-3
    assert len(found.report_["learners"]["ridge"]["fold_penalties"]) == 4


def test_it_is_deterministic_and_the_seed_moves_the_folds():
    table, target, others = pool()
    first, again, other = (ridge(seed=seed).fit(table, target) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.oof_, again.oof_)
    CLOSE(first.predict(others), other.predict(others))
    assert ((first.oof_ - other.oof_).abs() > 1e-6).any()


def test_groups_are_held_out_together_inside_and_outside():
    table, target, _ = pool()
    groups = np.random.RandomState(0).permutation(np.repeat(np.arange(15), 8))
    found = ridge().fit(table, target, groups=groups)
    shuffled = ridge().fit(table, target)
    assert float((found.oof_ - shuffled.oof_).abs().max()) > 1e-3
    moved = target.clone()
    moved[groups == 3] += 1.0
    again = ridge().fit(table, moved, groups=groups)
    CLOSE(again.oof_[groups == 3], found.oof_[groups == 3])


def test_rows_without_a_held_out_prediction_are_left_out_of_the_errors():
    table, target, _ = pool()
    found = ridge(splitter=TimeSeriesSplit(3)).fit(table, target)
    assert found.oof_.isnan().nonzero().flatten().tolist() == list(range(30))
    error = (found.oof_ - target)[30:]
    assert found.report_["rmse"] == pytest.approx(float(error.square().mean().sqrt()))
    assert found.report_["rows_without_oof"] == 30
    np.testing.assert_allclose(found.state_.outputs[0].mean[:6], table.mean(0))


def test_rows_that_no_model_predicted_are_left_out():
    table, target, others = pool()
    gap = table.clone()
    gap[:25] = torch.nan
    found, want = ridge().fit(gap, target), ridge().fit(table[25:], target[25:])
    CLOSE(found.predict(others), want.predict(others))
    CLOSE(found.oof_[25:], want.oof_)
    assert found.oof_[:25].isnan().all()
    assert found.report_["rows_without_predictions"] == 25


@pytest.mark.parametrize("pairs", [list, tuple])
def test_outer_folds_may_be_given_as_row_numbers(pairs):
    table, target, _ = pool()
    splits = pairs(KFold(4, shuffle=True, random_state=42).split(table))
    np.testing.assert_array_equal(ridge(splitter=splits).fit(table, target).oof_, ridge().fit(table, target).oof_)


def test_each_output_has_a_stack_of_its_own():
    (first, y, rest), (second, z, other) = pool(0), pool(1)
    second[:, 3] = second[:, 2] + 1e-4
    table, target = torch.stack([first, second], 2), torch.stack([y, z], 1)
    found = ridge().fit(table, target)
    alone = [ridge().fit(first, y), ridge().fit(second, z)]
    predicted = found.predict(torch.stack([rest, other], 2))
    for output, (model, columns) in enumerate(zip(alone, (rest, other), strict=True)):
        np.testing.assert_array_equal(predicted[:, output], model.predict(columns))
        np.testing.assert_array_equal(found.oof_[:, output], model.oof_)
        for name in ("selected", "removed", "risk", "rmse"):
            assert found.report_[output][name] == model.report_[name]
    assert len(found.state_.outputs[1].selected) == 5
    assert found.state_.retained == list(range(6))


def test_outputs_can_share_columns():
    table, target, others = pool()
    found = ridge().fit(table, torch.stack([target, 2 * target], 1))
    assert found.predict(others).shape == (20, 2)
    np.testing.assert_array_equal(found.predict(others)[:, 0], ridge().fit(table, target).predict(others))
    one = ridge().fit(table, target[:, None])
    assert one.oof_.shape == (120, 1)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(torch.Tensor.double, torch.float64), (torch.Tensor.float, torch.float32), (torch.Tensor.numpy, np.float64)],
)
def test_predictions_are_of_the_kind_that_was_given(kind, dtype):
    table, target, others = pool()
    found = ridge().fit(kind(table), target)
    for values in (found.predict(kind(others)), found.oof_, found.learner_oof_["ridge"]):
        assert type(values) is type(kind(others))
        assert values.dtype == dtype
    np.testing.assert_allclose(found.predict(kind(others)), ridge().fit(table, target).predict(others), rtol=1e-5)


def test_units_of_the_target_do_not_matter_to_relative_thresholds_and_ridge():
    table, target, others = pool()
    table = torch.cat([table, table[:, :1] + 0.05], 1)
    others = torch.cat([others, others[:, :1] + 0.05], 1)
    settings = {"tau_mse_mode": "relative", "interactions": False}
    want, found = ridge(**settings).fit(table, target), ridge(**settings).fit(1e-3 * table - 5, 1e-3 * target - 5)
    assert found.state_.retained == want.state_.retained == list(range(1, 7))
    np.testing.assert_allclose(found.predict(1e-3 * others - 5), 1e-3 * want.predict(others) - 5, rtol=1e-9)


def test_the_report_tells_what_was_removed():
    table, target, _ = pool()
    table = torch.cat([table, table[:, :1] + 0.01, torch.full((120, 1), 2.0, dtype=torch.float64)], 1)
    names = [*"abcdef", "copy", "flat"]
    report = ridge().fit(table, target, names=names).report_
    removed = {entry["name"]: entry for entry in report["removed"]}
    assert sorted([*report["selected"], *removed]) == sorted(names)
    assert removed["flat"]["reason"] == "variance"
    assert {"a", "copy"} & removed.keys()
    assert report["condition_before"] == float("inf")
    assert report["condition_after"] < 1e4
    assert report["risk"]["b"] == pytest.approx(float((table[:, 1] - target).square().mean().sqrt()))
