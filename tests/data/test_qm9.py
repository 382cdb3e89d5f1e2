"""QM9 out of a file in its format: molecules, the split, and what may be wrong with the file."""

import re

import numpy as np
import pytest
import torch

from lightning_weights.data import QM9
from tests.helpers.fake_molecules import write_qm9

SMALL = {"train_size": 12, "val_size": 3, "shuffle": False, "batch_size": 100}


@pytest.mark.parametrize(("target", "seed"), [("mu", 42), ("Cv", 7)])
def test_molecules_are_dealt_out_by_the_permutation(tmp_path, target, seed):
    arrays = write_qm9(tmp_path)
    data = QM9(str(tmp_path), target, **SMALL, split_seed=seed)
    order = np.random.RandomState(seed).permutation(20)
    starts = np.cumsum(arrays["N"]) - arrays["N"]
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    for loader, chosen in zip(loaders, np.split(order, [12, 15]), strict=True):
        (batch,) = loader
        rows = np.concatenate([np.arange(starts[n], starts[n] + arrays["N"][n]) for n in chosen])
        assert np.array_equal(batch["y"].numpy(), arrays[target][chosen].astype("f4"))
        assert np.array_equal(batch["pos"].numpy(), arrays["R"][rows].astype("f4"))
        assert (batch["x"] @ torch.tensor([1.0, 6.0, 7.0, 8.0, 9.0])).tolist() == arrays["Z"][rows].tolist()
        assert batch["batch"].bincount().tolist() == arrays["N"][chosen].tolist()


def test_the_papers_sizes_are_the_default():
    data = QM9("folder")
    assert (data.train_size, data.val_size, data.split_seed) == (110_000, 10_000, 42)


def test_a_missing_file_is_named_with_its_source(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"QM9 finds no qm9_eV\.npz in folder='{tmp_path}'.*https://"):
        QM9(str(tmp_path)).setup()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mu": None}, "has no arrays ['mu']"),
        ({"Z": np.ones(3, dtype=int)}, "has 3 atomic numbers"),
        ({"mu": np.ones(3)}, "3 values of mu for 20 molecules"),
        ({"R": np.ones((4, 2))}, "positions of shape (4, 2)"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, changes, message):
    arrays = {**write_qm9(tmp_path), **changes}
    np.savez(tmp_path / "qm9_eV.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "qm9_eV.npz")) + ".*" + re.escape(message)):
        QM9(str(tmp_path), **SMALL).setup()


def test_too_few_molecules_are_told(tmp_path):
    write_qm9(tmp_path)
    with pytest.raises(ValueError, match=r"^train_size is 15 and val_size 5; allowed are together fewer than the 20"):
        QM9(str(tmp_path), train_size=15, val_size=5).setup()


@pytest.mark.parametrize(
    ("name", "value"), [("target", "u0"), ("train_size", 0), ("val_size", 0.1), ("split_seed", -1), ("batch_size", 0)]
)
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}; allowed ")):
        QM9("folder", **{name: value})
