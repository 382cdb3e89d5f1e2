"""Loaders on a part of their data: what they keep, and which can't be put there."""

import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_weights.callbacks._nested_loaders import check_loaders, on_subset
from lightning_weights.data import NestedSubset

DATA = TensorDataset(torch.arange(20))
PREFIX = list(NestedSubset(range(20), 0.5, 1, 3))


def served(loader):
    return [batch[0].tolist() for batch in loader]


def flat(batches):
    return [index for batch in batches for index in batch]


def half(loader):
    return on_subset(loader, 0.5, 1, 3)


class Named(DataLoader):
    """A loader of a user, with arguments of its own."""

    def __init__(self, name):
        super().__init__(DATA, batch_size=4, collate_fn=lambda samples: [torch.stack([x for (x,) in samples])])
        self.name = name


def test_the_whole_data_has_its_own_loader():
    loader = DataLoader(DATA)
    assert on_subset(loader, 0.5, 0, 3) is loader


def test_order_batches_and_last_batch_are_those_of_the_loader():
    assert served(half(DataLoader(DATA, batch_size=4))) == [PREFIX[:4], PREFIX[4:8], PREFIX[8:]]
    assert served(half(DataLoader(DATA, batch_size=4, drop_last=True))) == [PREFIX[:4], PREFIX[4:8]]
    sampler = BatchSampler(SequentialSampler(DATA), 7, drop_last=True)
    assert served(half(DataLoader(DATA, batch_sampler=sampler))) == [PREFIX[:7]]
    assert served(half(DataLoader(DATA, batch_size=None))) == PREFIX


def test_shuffling_draws_from_the_loader_s_generator():
    generator = torch.Generator().manual_seed(0)
    loader = half(DataLoader(DATA, batch_size=4, shuffle=True, generator=generator))
    assert isinstance(loader.sampler, RandomSampler)
    assert loader.generator is loader.sampler.generator is generator
    first, second = (flat(served(loader)) for _ in range(2))
    assert sorted(first) == sorted(second) == sorted(PREFIX)
    assert first != second


@pytest.mark.parametrize("rank", [0, 1])
def test_a_distributed_sampler_stays_one(rank):
    sampler = DistributedSampler(DATA, num_replicas=2, rank=rank, shuffle=False)
    assert flat(served(half(DataLoader(DATA, batch_size=4, sampler=sampler)))) == PREFIX[rank::2]
    shuffled = DistributedSampler(DATA, num_replicas=2, rank=rank, seed=5, drop_last=True)
    twin = half(DataLoader(DATA, sampler=shuffled)).sampler
    assert (twin.shuffle, twin.seed, twin.drop_last, len(twin)) == (True, 5, True, 5)


def test_loaders_of_other_classes_keep_class_and_attributes():
    loader = Named("mine")
    twin = half(loader)
    assert (type(twin), twin.name) == (Named, "mine")
    assert served(twin)[0] == PREFIX[:4]
    assert len(loader.dataset) == 20


def test_several_loaders_keep_their_places():
    loaders = {"a": DataLoader(DATA, batch_size=5), "b": [DataLoader(DATA, batch_size=2)]}
    cut = half(loaders)
    assert (len(cut["a"]), len(cut["b"][0])) == (2, 5)
    combined = CombinedLoader(loaders, "min_size")
    assert len(list(half(combined))) == 2
    assert len(list(combined)) == 4
    assert check_loaders(combined, 0.5, 2, 0, 1, 0) == [20, 20]


class Backwards(Sampler):
    def __iter__(self):
        return iter(range(19, -1, -1))

    def __len__(self):
        return 20


class Batches(BatchSampler):
    pass


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([1, 2], "the training data comes from a int"),
        (DataLoader(DATA, sampler=Backwards()), "has a Backwards, which knows the whole data only"),
        (DataLoader(DATA, sampler=WeightedRandomSampler([1.0] * 20, 20)), "has a WeightedRandomSampler"),
        (DataLoader(DATA, batch_sampler=Batches(Backwards(), 2, False)), "has a Batches that makes batches"),
    ],
)
def test_what_can_not_be_cut_is_told(loader, message):
    with pytest.raises(ValueError, match=message):
        check_loaders(loader, 0.5, 2, 0, 1, 0)


@pytest.mark.parametrize(
    ("options", "processes", "classes", "message"),
    [
        ({"batch_size": 6}, 1, 0, "session 2 is empty: rate=0.5 leaves 5 of 20 samples, fewer than a batch of 6"),
        ({"batch_size": 4, "drop_last": True}, 2, 0, "session 2 is empty: .* fewer than a batch of 8"),
        ({"batch_size": 4}, 1, 10, "session 2 is empty: .* fewer than the 10 classes"),
    ],
)
def test_a_session_without_enough_samples_is_named(options, processes, classes, message):
    with pytest.raises(ValueError, match=message):
        check_loaders(DataLoader(DATA, **options), 0.5, 3, 0, processes, classes)
    assert check_loaders(DataLoader(DATA, batch_size=4), 0.5, 3, 0, 2, 5) == [20]
