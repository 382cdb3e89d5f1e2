"""Weights by inverse errors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.functional.regularized_stacking import inverse_rmse_weights


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6))
def test_weights_are_positive_sum_to_one_and_fall_with_the_error(errors):
    weights = inverse_rmse_weights(torch.tensor(errors, dtype=torch.float64)).numpy()
    assert (weights > 0).all()
    assert weights.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(weights * np.asarray(errors), (weights * errors)[0], rtol=1e-9)


def test_equal_errors_weigh_the_same():
    np.testing.assert_allclose(inverse_rmse_weights(torch.full((3,), 0.7)), 1 / 3)


@pytest.mark.parametrize("error", [0.0, -1.0, float("nan"), float("inf")])
def test_no_error_is_an_error(error):
    with pytest.raises(ValueError, match="not out-of-fold"):
        inverse_rmse_weights(torch.tensor([1.0, error]))
