"""Folds against scikit-learn's splitters."""

import numpy as np
import pytest
import torch
from sklearn.model_selection import GroupKFold, KFold

from lightning_weights.functional.regularized_stacking import contiguous_folds, fold_ids, inner_folds


def ids_of(splitter, count, groups=None):
    ids = np.empty(count, dtype=np.int64)
    for fold, (_, test) in enumerate(splitter.split(np.zeros((count, 1)), groups=groups)):
        ids[test] = fold
    return ids


@pytest.mark.parametrize(("count", "folds", "seed"), [(10, 3, 0), (103, 10, 42), (7, 7, 2**32 - 1), (50, 2, 7)])
def test_shuffled_folds_are_those_of_k_fold(count, folds, seed):
    want = ids_of(KFold(folds, shuffle=True, random_state=seed), count)
    np.testing.assert_array_equal(fold_ids(count, folds, seed), want)


def test_the_global_generator_is_left_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    fold_ids(20, 4, seed=1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize("kind", [np.asarray, list, torch.tensor])
def test_groups_are_those_of_group_k_fold(kind):
    groups = np.repeat(np.arange(13) ** 2, np.arange(13))[np.random.RandomState(0).permutation(78)]
    found = fold_ids(78, 4, seed=0, groups=kind(groups))
    np.testing.assert_array_equal(found, ids_of(GroupKFold(4), 78, groups))
    assert all(len(set(found[groups == group].tolist())) == 1 for group in set(groups))


def test_groups_may_be_names():
    assert fold_ids(4, 2, seed=0, groups=["b", "a", "b", "a"]).tolist() in ([0, 1, 0, 1], [1, 0, 1, 0])


@pytest.mark.parametrize(("count", "folds"), [(9, 3), (11, 3), (4, 4)])
def test_contiguous_folds_are_those_of_k_fold_without_shuffling(count, folds):
    np.testing.assert_array_equal(contiguous_folds(count, folds), ids_of(KFold(folds), count))


def test_inner_folds_are_counted_within_the_training_rows():
    train = torch.tensor([0, 2, 3, 5, 6, 9])
    found = inner_folds([train, torch.arange(10)], 10, 3)
    np.testing.assert_array_equal(found[train, 0], ids_of(KFold(3), 6))
    np.testing.assert_array_equal(found[:, 1], ids_of(KFold(3), 10))
    assert (np.delete(found[:, 0].numpy(), train) == -1).all()


def test_inner_folds_keep_groups_together():
    groups = torch.from_numpy(np.random.RandomState(0).permutation(np.repeat(np.arange(6), np.arange(2, 8))))
    train = (groups > 0).nonzero().squeeze(1)
    found = inner_folds([train], len(groups), 3, groups)[train, 0]
    assert all(len(found[groups[train] == group].unique()) == 1 for group in range(1, 6))
    np.testing.assert_array_equal(found, ids_of(GroupKFold(3), len(train), groups[train].numpy()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_rows": 3, "n_folds": 4, "seed": 0}, "n_folds is 4 with 3 rows"),
        ({"num_rows": 3, "n_folds": 1, "seed": 0}, "n_folds is 1; allowed is a whole number in"),
        ({"num_rows": 3, "n_folds": 2, "seed": -1}, "seed is -1"),
        ({"num_rows": 3, "n_folds": 2, "seed": 0, "groups": [1, 2]}, r"groups has shape \(2,\) with 3 rows"),
        ({"num_rows": 3, "n_folds": 3, "seed": 0, "groups": [1, 1, 2]}, "groups has 2 different values with 3 folds"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        fold_ids(**arguments)


def test_too_few_rows_for_inner_folds():
    with pytest.raises(ValueError, match="3 inner folds were asked for with 2 training rows"):
        inner_folds([torch.tensor([0, 1])], 5, 3)
