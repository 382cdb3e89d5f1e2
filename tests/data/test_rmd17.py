"""rMD17 out of files in its format: geometries, splits, units, and what may be wrong with files."""

import re

import numpy as np
import pytest
import torch

from lightning_weights.data import RMD17
from lightning_weights.data import rmd17 as module
from tests.helpers.fake_molecules import NUMBERS, write_rmd17


def parts(data):
    """Return all of each part as one batch."""
    data.batch_size = 100_000
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    return [next(iter(loader)) for loader in loaders]


def listed(folder, part, split=1):
    return np.loadtxt(folder / "splits" / f"index_{part}_0{split}.csv").astype(int)


@pytest.mark.parametrize("test", ["rest", "file"])
def test_geometries_are_those_of_the_published_lists(tmp_path, test):
    arrays = write_rmd17(tmp_path, split=3)
    train, held = np.split(listed(tmp_path, "train", 3), [950])
    rest = np.setdiff1d(np.arange(1300), listed(tmp_path, "train", 3))
    chosen = (train, held, rest if test == "rest" else listed(tmp_path, "test", 3))
    batches = parts(RMD17(str(tmp_path), "ethanol", split=3, test=test, shuffle=False))
    for batch, numbers in zip(batches, chosen, strict=True):
        assert np.array_equal(batch["pos"].numpy(), arrays["coords"][numbers].reshape(-1, 3).astype("f4"))
        assert np.array_equal(batch["forces"].numpy(), arrays["forces"][numbers].reshape(-1, 3).astype("f4"))
        assert np.array_equal(batch["y"].numpy(), arrays["energies"][numbers])
        assert batch["batch"].tolist() == np.arange(len(numbers)).repeat(4).tolist()
    columns = batches[0]["x"][:4]
    assert (columns @ torch.tensor([1.0, 6.0, 7.0, 8.0])).tolist() == NUMBERS.tolist()
    assert (batches[0]["y"].dtype, batches[0]["pos"].dtype) == (torch.float64, torch.float32)


def test_split_0_takes_geometries_at_equal_distances(tmp_path, monkeypatch):
    assert module.FRAMES == 100_000
    monkeypatch.setattr(module, "FRAMES", 10_000)
    energies = write_rmd17(tmp_path, frames=10_050)["energies"]
    numbers = [np.flatnonzero(np.isin(energies, batch["y"])) for batch in parts(RMD17(str(tmp_path), "ethanol", 0))]
    assert [len(part) for part in numbers] == [95, 5, 9900]
    assert np.array_equal(numbers[1], np.arange(0, 10_000, 2000))
    assert np.array_equal(np.union1d(numbers[0], numbers[1]), np.arange(0, 10_000, 100))
    assert np.array_equal(np.sort(np.concatenate(numbers)), np.arange(10_000))


def test_units_change_energies_and_forces_alone(tmp_path):
    write_rmd17(tmp_path)
    plain, changed = (parts(RMD17(str(tmp_path), "ethanol", unit=unit))[2] for unit in ("kcal/mol", "meV"))
    for name, factor in (("y", 43.3641), ("forces", 43.3641), ("pos", 1.0)):
        assert torch.allclose(changed[name], plain[name] * factor, rtol=1e-6)


def test_files_may_lie_in_the_folder_itself(tmp_path):
    write_rmd17(tmp_path)
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in [*(tmp_path / "npz_data").iterdir(), *(tmp_path / "splits").iterdir()]:
        path.rename(flat / path.name)
    assert len(parts(RMD17(str(flat), "ethanol"))[0]["y"]) == 950


@pytest.mark.parametrize(
    "name", ["npz_data/rmd17_ethanol.npz", "splits/index_train_01.csv", "splits/index_test_01.csv"]
)
def test_missing_files_are_named_with_their_source(tmp_path, name):
    write_rmd17(tmp_path)
    (tmp_path / name).unlink()
    message = rf"RMD17 finds no {re.escape(name)} in folder='{tmp_path}'.*https://"
    with pytest.raises(FileNotFoundError, match=message):
        RMD17(str(tmp_path), "ethanol", test="file").setup()


def _write(path, **changes):
    with np.load(path) as archive:
        arrays = {**archive, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"<html>"), "is no archive of numpy's arrays"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "is no archive of numpy's arrays"),
        (lambda path: _write(path, forces=None), "has no arrays ['forces']"),
        (
            lambda path: _write(path, forces=np.zeros((3, 4, 3))),
            "forces of shape (3, 4, 3) for 1300 energies and 4 atoms",
        ),
        (lambda path: _write(path, nuclear_charges=np.array([6, 8, 1, 16])), "has atoms with the atomic numbers [16]"),
    ],
)
def test_archives_of_another_kind_are_named(tmp_path, spoil, message):
    write_rmd17(tmp_path)
    path = tmp_path / "npz_data" / "rmd17_ethanol.npz"
    spoil(path)
    with pytest.raises(ValueError, match=re.escape(f"{path} ") + ".*" + re.escape(message)):
        RMD17(str(tmp_path), "ethanol").setup()


@pytest.mark.parametrize("text", ["a\nb\n", "", "1\n1\n", "-1\n", "5\n1300\n", ("1\n" * 2000), "0\n1\n"])
def test_lists_of_another_kind_are_named(tmp_path, text):
    write_rmd17(tmp_path)
    path = tmp_path / "splits" / "index_train_01.csv"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=re.escape(f"{path} ") + "(is no list of numbers|lists .* geometries; allowed)"
    ):
        RMD17(str(tmp_path), "ethanol").setup()


def test_lists_that_overlap_are_told(tmp_path):
    write_rmd17(tmp_path)
    (tmp_path / "splits" / "index_test_01.csv").write_text("".join(f"{n}\n" for n in listed(tmp_path, "train")[:7]))
    with pytest.raises(ValueError, match=r"^7 geometries are both in index_train_01\.csv and in index_test_01\.csv"):
        RMD17(str(tmp_path), "ethanol", test="file").setup()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"molecule": "water"}, "molecule is 'water'; allowed are 'aspirin', 'azobenzene'"),
        ({"split": 6}, "split is 6; allowed is a whole number in [0, 6)"),
        ({"unit": "eV"}, "unit is 'eV'; allowed are 'kcal/mol', 'meV'"),
        ({"test": "all"}, "test is 'all'; allowed are 'rest', 'file'"),
        ({"split": 0, "test": "file"}, "test is 'file', but split"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RMD17("folder", **arguments)
