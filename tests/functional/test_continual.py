"""Accuracy summaries against numpy loops over the definitions, and their algebra."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_weights.functional.continual import average_accuracy, backward_transfer, forgetting

SUMMARIES = (average_accuracy, forgetting, backward_transfer)


def expected(matrix, after):
    """Compute the three summaries entry by entry, as the papers write them."""
    earlier = range(after)
    average = np.mean([matrix[after, j] for j in range(after + 1)])
    if after == 0:
        return average, 0.0, 0.0
    fallen = [max(matrix[i, j] for i in earlier if not math.isnan(matrix[i, j])) - matrix[after, j] for j in earlier]
    return average, np.mean(fallen), np.mean([matrix[after, j] - matrix[j, j] for j in earlier])


@st.composite
def matrices(draw):
    """Draw a matrix that is full, or lower-triangular with NaN above the diagonal."""
    tasks = draw(st.integers(1, 6))
    cells = st.floats(0, 1, width=32)
    rows = draw(st.lists(st.lists(cells, min_size=tasks, max_size=tasks), min_size=tasks, max_size=tasks))
    matrix = np.array(rows)
    if draw(st.booleans()):
        matrix[np.triu_indices(tasks, k=1)] = np.nan
    return matrix


@given(matrices(), st.data())
def test_definitions(matrix, data):
    after = data.draw(st.integers(0, len(matrix) - 1))
    for summary, value in zip(SUMMARIES, expected(matrix, after), strict=True):
        result = summary(torch.from_numpy(matrix), after)
        assert result.shape == ()
        assert result.dtype == torch.float64
        assert result.item() == pytest.approx(value, abs=1e-12)


@given(matrices())
def test_forgetting_is_at_least_minus_backward_transfer(matrix):
    matrix = torch.from_numpy(matrix)
    assert forgetting(matrix) >= -backward_transfer(matrix) - 1e-12


@given(matrices(), st.floats(0.1, 100))
def test_unit_is_that_of_the_matrix(matrix, unit):
    matrix = torch.from_numpy(matrix)
    for summary in SUMMARIES:
        torch.testing.assert_close(summary(matrix * unit), summary(matrix) * unit, rtol=1e-9, atol=1e-9)


def test_by_hand():
    matrix = torch.tensor([[0.9, 0.1, 0.2], [0.95, 0.8, 0.3], [0.5, 0.6, 0.7]])
    assert average_accuracy(matrix).item() == pytest.approx(0.6)
    assert forgetting(matrix).item() == pytest.approx((0.45 + 0.2) / 2)
    assert backward_transfer(matrix).item() == pytest.approx((-0.4 - 0.2) / 2)
    assert average_accuracy(matrix, after=1).item() == pytest.approx(0.875)
    assert forgetting(matrix, after=1).item() == pytest.approx(-0.05)
    assert backward_transfer(matrix, after=1).item() == pytest.approx(0.05)


def test_later_rows_and_columns_do_not_count():
    matrix = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    changed = matrix.clone()
    changed[2:] = 7.0
    changed[:, 2:] = 7.0
    for summary in SUMMARIES:
        assert summary(matrix, after=1) == summary(changed, after=1)


def test_default_is_the_last_evaluated_row():
    matrix = torch.full((3, 3), torch.nan)
    matrix[0, 0], matrix[1, :2] = 0.75, torch.tensor([0.5, 1.0])
    assert average_accuracy(matrix) == 0.75
    assert forgetting(matrix) == 0.25
    assert backward_transfer(matrix) == -0.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_single_task(dtype):
    matrix = torch.tensor([[0.5]], dtype=dtype)
    assert [summary(matrix).item() for summary in SUMMARIES] == [0.5, 0.0, 0.0]
    assert {summary(matrix).dtype for summary in SUMMARIES} == {dtype}


@pytest.mark.parametrize("summary", SUMMARIES)
@pytest.mark.parametrize(
    ("matrix", "after", "message"),
    [
        (torch.rand(2, 3), None, r"`matrix` has shape \(2, 3\)"),
        (torch.rand(4), None, r"`matrix` has shape \(4,\)"),
        (torch.rand(0, 0), None, r"`matrix` has shape \(0, 0\)"),
        (torch.ones(2, 2, dtype=torch.int64), None, r"`matrix` has dtype torch.int64"),
        (torch.full((2, 2), torch.nan), None, "`matrix` holds only NaN"),
        (torch.rand(2, 2), 2, "`after` is 2: expected a task from 0 to 1"),
        (torch.rand(2, 2), -1, "`after` is -1"),
        (
            torch.tensor([[0.5, 0.5], [torch.nan, 0.5]]),
            None,
            r"no accuracy on the tasks \[0\] after training on task 1",
        ),
    ],
)
def test_bad_input(summary, matrix, after, message):
    with pytest.raises(ValueError, match=message):
        summary(matrix, after)


def test_earlier_accuracies_are_needed():
    nan = torch.nan
    never = torch.tensor([[nan, 0.1], [0.5, 0.5]])
    with pytest.raises(ValueError, match=r"no accuracy on the tasks \[0\] before training on task 1"):
        forgetting(never)
    with pytest.raises(ValueError, match=r"no accuracy on the tasks \[0\] right after training on each"):
        backward_transfer(never)
    before = torch.tensor([[0.9, 0.75, nan], [0.9, nan, nan], [0.5, 0.5, 0.5]])
    assert forgetting(before).item() == pytest.approx((0.4 + 0.25) / 2)
