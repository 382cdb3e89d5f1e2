"""MNIST-1D against the package that makes it."""

import random
import re
import sys

import numpy as np
import pytest
import torch
from mnist1d.data import get_dataset_args, make_dataset

from lightning_weights.data import MNIST1D
from lightning_weights.errors import MissingDependencyError


def test_the_default_is_the_published_data_set(monkeypatch):
    """Asked for with the package's own arguments; its first hundred signals stand for 5000, which take seconds."""
    few, given = get_dataset_args(), []
    few.num_samples = 100
    published = make_dataset(few)
    monkeypatch.setattr("mnist1d.data.make_dataset", lambda arguments: given.append(arguments) or published)
    parts = MNIST1D().tensors()
    assert [vars(arguments) for arguments in given] == [vars(get_dataset_args())]
    assert given[0].num_samples == 5000
    for part, name in zip(parts, ("x", "y", "x_test", "y_test"), strict=True):
        assert np.array_equal(part.squeeze(1).numpy() if "x" in name else part.numpy(), published[name].astype("f4"))
    assert [tuple(part.shape) for part in parts] == [(80, 1, 40), (80,), (20, 1, 40), (20,)]
    assert (parts[0].dtype, parts[1].dtype) == (torch.float32, torch.int64)


def test_signals_are_those_of_the_package():
    few = get_dataset_args()
    few.num_samples = 50
    assert np.array_equal(MNIST1D(num_samples=50).tensors()[0].squeeze(1).numpy(), make_dataset(few)["x"].astype("f4"))


def test_the_seed_decides_and_global_generators_stay():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first, second, other = (MNIST1D(num_samples=50, seed=seed).tensors() for seed in (1, 1, 2))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("num_samples", [50, 150])
def test_every_class_and_both_parts_get_their_share(num_samples):
    _, train_y, _, test_y = MNIST1D(num_samples=num_samples).tensors()
    assert (len(train_y), len(test_y)) == (num_samples * 4 // 5, num_samples // 5)
    assert torch.cat([train_y, test_y]).bincount().tolist() == [num_samples // 10] * 10


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (60, "num_samples is 60; allowed is a multiple of 50"),
        (0, "num_samples is 0; allowed is a whole number in [50, inf)"),
        (None, "num_samples is None; allowed is a whole number in [50, inf)"),
    ],
)
def test_bad_numbers_of_samples(value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MNIST1D(num_samples=value)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mnist1d.data", None)
    with pytest.raises(MissingDependencyError, match=r"MNIST1D needs the package 'mnist1d'.*extra 'mnist1d'"):
        MNIST1D().setup()
