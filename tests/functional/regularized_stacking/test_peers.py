"""Greedy selection and non-negative least squares against plain ways to do the same."""

import sys

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from lightning_weights.errors import MissingDependencyError
from lightning_weights.functional.regularized_stacking import greedy_selection, nnls_stack


def pool(seed, rows=60, models=7):
    random = np.random.RandomState(seed)
    target = random.randn(rows)
    return torch.from_numpy(target[:, None] + random.randn(rows, models)), torch.from_numpy(target)


@pytest.mark.parametrize("seed", range(3))
def test_greedy_selection_is_that_over_the_rows(seed):
    table, target = pool(seed)
    taken, errors = [], []
    for _ in range(20):
        averages = [table[:, [*taken, k]].mean(1) for k in range(table.shape[1])]
        costs = [float((average - target).square().mean()) for average in averages]
        taken.append(int(np.argmin(costs)))
        errors.append(min(costs))
    length = int(np.argmin(errors)) + 1
    want = np.bincount(taken[:length], minlength=table.shape[1]) / length
    np.testing.assert_allclose(greedy_selection(table, target, rounds=20), want)


def test_ties_go_to_the_first_and_one_round_takes_the_best():
    table, target = pool(0)
    best = int((table - target[:, None]).square().mean(0).argmin())
    assert greedy_selection(table, target, rounds=1).nonzero().item() == best
    twice = torch.cat([table, table], 1)
    assert not greedy_selection(twice, target).chunk(2)[1].any()


@pytest.mark.parametrize("rows", [60, 5])
def test_non_negative_least_squares_is_scipys_over_the_rows(rows):
    table, target = pool(1, rows)
    table[:, 2] *= -1
    want, _ = nnls(table.numpy(), target.numpy())
    found = nnls_stack(table.float(), target)
    np.testing.assert_allclose(table @ found, table.numpy() @ want, atol=1e-5)
    assert float(found.min()) == 0.0


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingDependencyError, match="pip install scipy"):
        nnls_stack(*pool(0))


def test_bad_input():
    with pytest.raises(ValueError, match="rounds is 0"):
        greedy_selection(*pool(0), rounds=0)
