"""Gram matrices of folds against the rows themselves."""

import numpy as np
import pytest
import torch

from lightning_weights.functional.regularized_stacking import fold_grams, fold_ids, held_out_mse, inner_folds
from tests.functional.regularized_stacking.stacking_cases import design

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def sets_of(features, target, outer=4, inner=3):
    ids, rows = fold_ids(len(target), outer, seed=0), torch.arange(len(target))
    train = [*(rows[ids != fold] for fold in range(outer)), rows]
    return train, inner_folds(train, len(target), inner)


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_every_set_is_standardised_and_every_inner_fold_centred(offset):
    features, target = design()
    features, target = features + offset, target + offset
    train, folds = sets_of(features, target)
    found = fold_grams(features, target, folds)
    for index, rows in enumerate(train):
        x, y = features[rows].numpy(), target[rows].numpy()
        mean, scale = x.mean(0), x.std(0)
        np.testing.assert_allclose(found.mean[index], mean, rtol=1e-12)
        np.testing.assert_allclose(found.scale[index], scale, rtol=1e-9)
        np.testing.assert_allclose(found.target_mean[index], y.mean(), rtol=1e-12)
        z = (x - mean) / scale
        np.testing.assert_allclose(found.whole.gram[index], z.T @ z, rtol=1e-9, atol=1e-7)
        np.testing.assert_allclose(found.whole.moments[index], z.T @ (y - y.mean()), rtol=1e-9, atol=1e-7)
        for fold in range(3):
            held = (folds[rows, index] == fold).numpy()
            own_mean, own_y = z[~held].mean(0), y[~held].mean()
            for part, chosen in ((found.inner, ~held), (found.held, held)):
                a, b = z[chosen] - own_mean, y[chosen] - own_y
                np.testing.assert_allclose(part.gram[index, fold], a.T @ a, rtol=1e-8, atol=1e-7)
                np.testing.assert_allclose(part.moments[index, fold], a.T @ b, rtol=1e-8, atol=1e-7)
                np.testing.assert_allclose(part.power[index, fold], b @ b, **CLOSE)
                assert part.rows[index, fold] == chosen.sum()


def test_errors_of_held_out_rows_come_from_their_gram_matrix():
    features, target = design(1)
    _, folds = sets_of(features, target)
    found = fold_grams(features, target, folds)
    weights = torch.randn(5, 3, 2, features.shape[1], dtype=torch.float64)
    errors = held_out_mse(found.held, weights)
    z = (features - found.mean[-1]) / found.scale[-1]
    held = folds[:, -1] == 1
    rest = held.logical_not()
    predicted = target[rest].mean() + (z[held] - z[rest].mean(0)) @ weights[-1, 1].T
    np.testing.assert_allclose(errors[-1, 1], (predicted - target[held, None]).square().mean(0), rtol=1e-9)


def test_constant_columns_weigh_nothing():
    features, target = design(2)
    features[:, 1] = 0.1  # its mean is not 0.1 in every bit
    features[:, 2] = (torch.arange(len(target)) == 7).double()  # constant without row 7
    folds = torch.stack([torch.arange(len(target)) % 3] * 2, 1)
    folds[7, 0] = -1
    found = fold_grams(features, target, folds)
    for part in (found.whole, found.inner, found.held):
        assert not part.gram[..., 1, :].any()
        assert not part.gram[0, ..., 2, :].any()
        assert not part.moments[..., 1].any()
    assert found.scale[:, 1].tolist() == [1.0, 1.0]
    assert found.scale[0, 2] == 1.0
    assert found.whole.gram[1, 2, 2] == pytest.approx(len(target))


def test_the_order_of_the_rows_and_many_cells_change_nothing():
    features, target = design(3, rows=700)
    folds = torch.from_numpy(np.random.RandomState(0).randint(0, 3, (700, 6)))  # hardly two rows in one cell
    want = fold_grams(features, target, folds)
    order = torch.randperm(700)
    found = fold_grams(features[order], target[order], folds[order])
    np.testing.assert_allclose(found.whole.gram, want.whole.gram, **CLOSE)
    np.testing.assert_allclose(found.held.gram, want.held.gram, **CLOSE)
    z = (features - want.mean[2]) / want.scale[2]
    np.testing.assert_allclose(found.whole.gram[2], z.T @ z, **CLOSE)
