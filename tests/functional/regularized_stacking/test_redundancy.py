"""Selection of columns against the rule, pair by pair."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.functional.regularized_stacking import condition_number, select_columns


def pool(seed, rows=80, families=4, copies=3, spread=0.1, offset=0.0):
    """Return predictions of some families of similar models, and the target."""
    random = np.random.RandomState(seed)
    target = random.randn(rows) + offset
    centres = target[:, None] + random.randn(rows, families)
    table = np.repeat(centres, copies, axis=1) + spread * random.randn(rows, families * copies)
    return torch.from_numpy(table[:, random.permutation(table.shape[1])]), torch.from_numpy(target)


def by_the_rule(table, target, tau_corr, tau_mse, tau_var):
    """The published rule with numpy's functions, one pair after the other."""
    table, target = table.numpy(), target.numpy()
    kept = []
    for k in np.argsort(np.sqrt(((table - target[:, None]) ** 2).mean(0)), kind="stable"):
        near = (
            np.corrcoef(table[:, k], table[:, j])[0, 1] >= tau_corr
            and ((table[:, k] - table[:, j]) ** 2).mean() <= tau_mse
            for j in kept
        )
        if not any(near):
            kept.append(int(k))
    return sorted(k for k in kept if table[:, k].var() >= tau_var)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.5, 1.0), st.floats(0.0, 0.1), st.sampled_from([0.0, 1e3, 1e6]))
def test_kept_columns_are_those_of_the_rule(seed, tau_corr, tau_mse, offset):
    table, target = pool(seed, offset=offset)
    found = select_columns(table, target, tau_corr, tau_mse, tau_var=0.01)
    assert found.columns.tolist() == by_the_rule(table, target, tau_corr, tau_mse, 0.01)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 1.0), st.floats(0.0, 3.0))
def test_no_kept_pair_is_near_the_best_is_kept_and_the_condition_never_rises(seed, tau_corr, tau_mse):
    table, target = pool(seed)
    found = select_columns(table, target, tau_corr, tau_mse)
    kept = found.columns.tolist()
    correlation = np.corrcoef(table[:, kept].T).reshape(len(kept), len(kept))
    distance = ((table[:, kept, None] - table[:, None, kept]) ** 2).mean(0).numpy()
    near = (correlation >= tau_corr) & (distance <= tau_mse)
    np.fill_diagonal(near, False)
    assert not near.any()
    assert int(found.risk.argmin()) in kept
    assert found.condition_after <= found.condition_before * (1 + 1e-9)
    np.testing.assert_allclose(found.condition_before, np.linalg.cond(np.corrcoef(table.T)), rtol=1e-6)
    np.testing.assert_allclose(found.condition_after, np.linalg.cond(correlation), rtol=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 11))
def test_permuted_columns_give_permuted_selections(seed, shift):
    table, target = pool(seed)
    order = torch.from_numpy(np.random.RandomState(shift).permutation(table.shape[1]))
    want = select_columns(table, target).columns.tolist()
    assert sorted(order[select_columns(table[:, order], target).columns].tolist()) == want


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_an_exact_copy_is_dropped_in_favour_of_the_first(offset):
    table, target = pool(0, copies=1, offset=offset)
    for position in (0, 2):
        twice = torch.cat([table, table[:, [position]]], 1)
        for tau_corr, tau_mse in ((0.95, 0.01), (1.0, 0.0)):
            found = select_columns(twice, target, tau_corr, tau_mse)
            assert found.columns.tolist() == [0, 1, 2, 3]
            removal = found.removed[0]
            assert removal[:6] == (4, "redundant", position, 1.0, 0.0, 0.0)


def test_pairs_at_a_threshold_are_decided_by_the_columns_themselves():
    """A squared difference of 1e-6 beside a variance of 1e12 is lost in a Gram matrix."""
    base = torch.from_numpy(np.random.RandomState(0).randn(50) * 1e6)
    table = torch.stack([base, base + 1e-3 * torch.arange(50).remainder(2).mul(2).sub(1)], 1)
    target = base + torch.from_numpy(np.random.RandomState(1).randn(50))
    distance = float((table[:, 0] - table[:, 1]).square().mean())
    assert len(select_columns(table, target, 0.95, distance * 1.001).columns) == 1
    assert len(select_columns(table, target, 0.95, distance * 0.999).columns) == 2


def test_both_conditions_are_needed_and_correlation_has_a_sign():
    target = torch.arange(8.0, dtype=torch.float64)
    far, opposite = target + 5, 7 - target
    table = torch.stack([target + 0.01, far, opposite], 1)
    assert select_columns(table, target, tau_mse=100.0).columns.tolist() == [0, 2]
    assert select_columns(table, target, tau_mse=1.0).columns.tolist() == [0, 1, 2]


def test_a_correlation_above_one_keeps_all():
    table, target = pool(0)
    assert len(select_columns(table, target, tau_corr=1.01, tau_mse=1e9).columns) == table.shape[1]


def test_removed_columns_say_why():
    table, target = pool(3, offset=2.0)
    table[:, 5] = 2.0 + 1e-3 * table[:, 5]
    found = select_columns(table, target, 0.9, 0.5)
    assert sorted([*found.columns.tolist(), *(removal.column for removal in found.removed)]) == list(range(12))
    reasons = {removal.reason for removal in found.removed}
    assert reasons == {"redundant", "variance"}
    for removal in found.removed:
        column = table[:, removal.column]
        assert removal.variance == pytest.approx(float(column.var(correction=0)))
        if removal.reason == "variance":
            assert removal.column == 5
            assert removal.alternative is None
            continue
        other = table[:, removal.alternative]
        assert removal.correlation == pytest.approx(np.corrcoef(column, other)[0, 1])
        assert removal.mse == pytest.approx(float((column - other).square().mean()))
        risk = [float((values - target).square().mean().sqrt()) for values in (column, other)]
        assert removal.risk_difference == pytest.approx(risk[0] - risk[1])
        assert removal.risk_difference >= 0


@pytest.mark.parametrize("value", [0.1, 1e8 / 3])
def test_a_constant_column_is_near_none_and_makes_the_condition_infinite(value):
    table, target = pool(0, copies=1)
    table = torch.cat([table, torch.full((80, 2), value, dtype=torch.float64)], 1)
    found = select_columns(table, target, tau_corr=0.0, tau_mse=0.0)
    assert [removal.column for removal in found.removed] == [4, 5]
    assert all(removal.reason == "variance" and removal.variance == 0.0 for removal in found.removed)
    assert math.isinf(found.condition_before)
    assert math.isfinite(found.condition_after)
    kept = select_columns(table, target, tau_corr=0.0, tau_mse=0.0, tau_var=0.0)
    assert len(kept.columns) == 6
    assert math.isinf(kept.condition_after)


def test_nothing_left_is_an_error_with_advice():
    table, target = pool(0)
    with pytest.raises(ValueError, match=r"tau_var is 0\.01 \(absolute\).*tau_mse_mode='relative'"):
        select_columns(table / 100, target / 100)
    assert len(select_columns(table / 100, target / 100, tau_mse_mode="relative").columns) > 0


@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0.0), (50.0, -7.0)])
def test_relative_thresholds_do_not_depend_on_units(scale, shift):
    table, target = pool(5)
    want = select_columns(table, target, 0.9, 0.02, "relative")
    found = select_columns(scale * table + shift, scale * target + shift, 0.9, 0.02, "relative")
    assert found.columns.tolist() == want.columns.tolist()
    assert len(select_columns(scale * table + shift, scale * target + shift, 0.9, 0.02, tau_var=0.0).columns) != len(
        want.columns
    )


def test_condition_numbers():
    assert condition_number(torch.eye(3)) == 1.0
    assert condition_number(torch.ones(1, 1)) == 1.0
    assert math.isinf(condition_number(torch.full((2, 2), math.nan)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tau_corr": -0.1}, "tau_corr is -0.1"),
        ({"tau_mse": -1.0}, "tau_mse is -1.0"),
        ({"tau_var": math.nan}, "tau_var is nan"),
        ({"tau_mse_mode": "rel"}, "tau_mse_mode is 'rel'; allowed are 'absolute', 'relative'"),
    ],
)
def test_bad_input(arguments, message):
    table, target = pool(0)
    with pytest.raises(ValueError, match=message):
        select_columns(table, target, **arguments)
