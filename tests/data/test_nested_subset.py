"""Subsets that lie inside each other: sizes, nesting, batches and refusals."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

from lightning_weights.data import NestedSubset
from lightning_weights.data.classification import BatchDataset
from lightning_weights.data.nested_subset import nested_size


@given(st.integers(1, 300), st.floats(0.05, 0.95), st.integers(0, 2**32), st.integers(0, 4))
def test_every_session_is_the_beginning_of_the_one_before(samples, rate, seed, session):
    size = math.floor(samples * rate**session)
    if size == 0:
        with pytest.raises(ValueError, match=f"session {session} is empty: rate="):
            NestedSubset(range(samples), rate, session, seed)
        return
    subset, whole = NestedSubset(range(samples), rate, session, seed), NestedSubset(range(samples), rate, 0, seed)
    assert len(subset) == size == nested_size(samples, rate, session)
    assert list(subset) == list(whole)[:size]
    assert sorted(whole) == list(range(samples))


def test_the_seed_is_all_that_decides_on_the_order():
    first = list(NestedSubset(range(50), seed=3))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert list(NestedSubset(range(50), seed=3)) == first
    assert torch.equal(state, torch.get_rng_state())
    assert list(NestedSubset(range(50), seed=4)) != first
    assert first != list(range(50))


def test_batches_of_data_that_serves_whole_ones():
    x = torch.arange(12)
    dataset = BatchDataset(x[:, None], x)
    subset = NestedSubset(dataset, 0.5, 1)
    loader = DataLoader(subset, batch_size=4, collate_fn=lambda batch: batch)
    served = torch.cat([y for _, y in loader])
    assert served.tolist() == list(NestedSubset(range(12)))[:6]


class Stream(IterableDataset):
    def __iter__(self):
        return iter([1, 2, 3])


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (Stream(), {}, "dataset is a Stream, of which no fixed part can be taken"),
        (object(), {}, "dataset is a object, of which no fixed part can be taken"),
        (range(8), {"rate": 1.0}, "rate is 1.0"),
        (range(8), {"rate": 0.0}, "rate is 0.0"),
        (range(8), {"session": 1.5}, "session is 1.5"),
        (range(8), {"seed": -1}, "seed is -1"),
        (range(8), {"session": 4}, "session 4 is empty: rate=0.5 leaves none of the 8 samples"),
    ],
)
def test_bad_arguments(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        NestedSubset(dataset, **options)
