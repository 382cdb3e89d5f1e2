"""Meta-features against numpy."""

import numpy as np
import pytest
import torch

from lightning_weights.functional.regularized_stacking import meta_feature_names, meta_features


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_statistics_are_numpys(count):
    table = np.random.RandomState(count).randn(30, count)
    mean, std, median, length = table.mean(1), table.std(1), np.median(table, 1), np.ptp(table, 1)
    want = np.column_stack([table, mean, std, median, length, mean * std, length * std])
    np.testing.assert_allclose(meta_features(torch.from_numpy(table)), want, atol=1e-14)


def test_the_median_of_an_even_number_is_the_middle_of_two():
    table = torch.tensor([[4.0, 1.0, 2.0, 10.0]])
    assert meta_features(table)[0, 6] == 3.0
    assert table.median() == 2.0  # what torch.median would have taken


@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("interactions", [False, True])
def test_width_and_names(statistics, interactions):
    found = meta_features(torch.randn(7, 3), statistics, interactions)
    names = meta_feature_names(["a", "b", "c"], statistics, interactions)
    assert found.shape == (7, 3 + 4 * statistics + 2 * interactions)
    assert len(names) == found.shape[1]
    whole = meta_feature_names(["a", "b", "c"])
    np.testing.assert_array_equal(found, meta_features_again(found[:, :3])[:, [whole.index(name) for name in names]])


def meta_features_again(table):
    return meta_features(table, True, True)


def test_the_mean_is_a_combination_of_the_columns():
    found = meta_features(torch.randn(40, 5, dtype=torch.float64))
    assert torch.linalg.matrix_rank(found[:, :6]) == 5


def test_any_leading_dimensions():
    table = torch.randn(2, 3, 4)
    np.testing.assert_array_equal(meta_features(table).flatten(0, 1), meta_features(table.flatten(0, 1)))
