"""One row per sample."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_weights.functional.indexed_rows import missing_numbers, unique_rows


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(0, 100))
def test_rows_are_those_of_a_dictionary(numbers, seed):
    values = torch.randn(10, 2, generator=torch.Generator().manual_seed(seed))
    indices = torch.tensor(numbers, dtype=torch.int64)
    found, rows = unique_rows(indices, values[indices])
    assert found.tolist() == sorted(set(numbers))
    assert torch.equal(rows, values[found])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_no_contradiction_and_another_value_is_one(dtype):
    eps = torch.finfo(dtype).eps
    rows = torch.tensor([[100.0, 0.0], [100.0 * (1 + 2 * eps), 0.0], [5.0, 1.0]], dtype=dtype)
    indices = torch.tensor([7, 7, 3])
    assert torch.equal(unique_rows(indices, rows)[1], rows[[2, 0]])
    with pytest.raises(ValueError, match=r"the targets of sample 7 contradict each other"):
        unique_rows(torch.tensor([7, 3, 7]), rows, "targets")
    rows[1, 0] = torch.nan
    with pytest.raises(ValueError, match="contradict"):
        unique_rows(indices, rows)
    rows[0, 0] = torch.nan
    assert len(unique_rows(indices, rows)[0]) == 2


def test_whole_numbers_and_single_values_are_compared_too():
    labels = torch.tensor([1, 2, 1])
    assert unique_rows(torch.tensor([0, 1, 0]), labels)[1].tolist() == [1, 2]
    with pytest.raises(ValueError, match="contradict"):
        unique_rows(torch.tensor([0, 1, 1]), labels)


def test_missing_numbers():
    assert missing_numbers(torch.tensor([0, 2]), torch.arange(4)).tolist() == [1, 3]
