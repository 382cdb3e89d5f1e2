"""Ids of samples: global, stable, and in whatever form a data set returns its samples."""

import pickle

import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    Subset,
    TensorDataset,
    default_collate,
    default_convert,
)

from lightning_weights.data import BatchDataset, CollateWithIds, IndexedDataset


class Dicts:
    """Samples whose value tells where they come from."""

    def __init__(self, first: int, size: int) -> None:
        self.first, self.size = first, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"value": self.first + index % self.size}


def served(dataset, **options):
    """Return pairs of id and value in the order of a loader."""
    return [pair for batch in DataLoader(dataset, batch_size=2, **options) for pair in pairs(batch)]


def pairs(batch):
    return list(zip(batch["sample_id"].tolist(), batch["value"].tolist(), strict=True))


def test_ids_are_global_through_concatenation():
    right, wrong = Dicts(100, 3), Dicts(200, 2)
    data = IndexedDataset(ConcatDataset([right, wrong]))
    assert served(data) == [(0, 100), (1, 101), (2, 102), (3, 200), (4, 201)]
    assert data[-1] == data[4] == {"value": 201, "sample_id": 4}
    apart = ConcatDataset([IndexedDataset(right), IndexedDataset(wrong, start=3)])
    assert served(apart) == served(data)


def test_ids_are_stable_through_shuffling_subsets_and_workers():
    data = IndexedDataset(ConcatDataset([Dicts(0, 4), Dicts(4, 3)]))
    for found in (served(data, shuffle=True), served(Subset(data, [6, 2, 5])), served(data, num_workers=1)):
        assert found
        assert all(sample == value for sample, value in found)


def test_two_processes_see_the_ids_of_the_whole():
    data = IndexedDataset(Dicts(0, 6))
    parts = [served(data, sampler=DistributedSampler(data, num_replicas=2, rank=rank, seed=3)) for rank in (0, 1)]
    assert sorted(value for part in parts for value in part) == [(i, i) for i in range(6)]


@pytest.mark.parametrize(
    ("dataset", "want"),
    [
        (TensorDataset(torch.tensor([5, 6, 7])), [torch.tensor([7, 5]), torch.tensor([2, 0])]),
        ([5, 6, 7], [torch.tensor([7, 5]), torch.tensor([2, 0])]),
        ([[5], [6], [7]], [torch.tensor([7, 5]), torch.tensor([2, 0])]),
    ],
    ids=["tuples", "numbers", "lists"],
)
def test_samples_that_are_no_dicts_get_the_id_as_their_last_part(dataset, want):
    data = IndexedDataset(dataset)
    batch = default_collate(data.__getitems__([2, 0]))
    assert all(map(torch.equal, batch, want))
    assert data[1][-1] == 1


def test_data_sets_that_return_whole_batches():
    data = IndexedDataset(BatchDataset(torch.tensor([[5.0], [6.0], [7.0]]), torch.tensor([0, 1, 1])))
    (x, y, ids), *_ = DataLoader(data, batch_size=2, sampler=[2, 0, 1], collate_fn=default_convert)
    assert (x.flatten().tolist(), y.tolist(), ids.tolist()) == ([7.0, 5.0], [1, 0], [2, 0])


def test_collating_with_a_function_that_knows_nothing_of_ids():
    collate = CollateWithIds(lambda samples: {"total": torch.tensor([sample.pop("value") for sample in samples])})
    data = IndexedDataset(Dicts(10, 3))
    batch = next(iter(DataLoader(data, batch_size=3, collate_fn=collate)))
    assert {name: value.tolist() for name, value in batch.items()} == {"total": [10, 11, 12], "sample_id": [0, 1, 2]}
    assert pickle.loads(pickle.dumps(CollateWithIds()))([data[2]])["sample_id"].tolist() == [2]
    with pytest.raises(ValueError, match="a sample has no 'sample_id'"):
        CollateWithIds()([{"value": 3}])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize("dataset", [Stream(), iter([1, 2]), {1, 2}], ids=["stream", "iterator", "set"])
def test_data_without_indices_is_refused(dataset):
    with pytest.raises(ValueError, match="which has no indices"):
        IndexedDataset(dataset)


def test_numbering_twice_is_refused():
    inner = IndexedDataset(Dicts(0, 3))
    for dataset in (inner, ConcatDataset([Dicts(0, 2), inner]), Subset(inner, [1])):
        with pytest.raises(ValueError, match="numbers its samples already"):
            IndexedDataset(dataset)
    with pytest.raises(ValueError, match=r"start is -1; allowed is a whole number in \[0, inf\)"):
        IndexedDataset(Dicts(0, 3), start=-1)
