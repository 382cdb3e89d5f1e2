"""Runs of a sweep as the columns of one matrix."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.data import OutOfFold
from lightning_weights.modules import MLP, Regressor
from lightning_weights.runners import CrossFit, cross_fit
from tests.helpers.battery import NOISE

pytestmark = pytest.mark.filterwarnings(NOISE, "ignore:.*barebones.*")

NAMES = ["a", "b", "c", "d"]


def test_a_sweep_becomes_a_matrix(tmp_path):
    folders = {name: tmp_path / name for name in NAMES}
    for number, folder in enumerate(folders.values()):
        OutOfFold.of(torch.arange(6), number + torch.arange(6.0), torch.ones(6, 1)).save(folder / "oof.pt")
        OutOfFold.of(torch.arange(2), number + torch.arange(2.0)).save(folder / "test.pt")
    found = CrossFit.read(folders)
    assert found.names == NAMES
    assert torch.equal(found.predictions, (torch.arange(6.0)[:, None] + torch.arange(4.0)).double())
    assert torch.equal(found.test, (torch.arange(2.0)[:, None] + torch.arange(4.0)).double())
    assert torch.equal(found.targets, torch.ones(6))
    assert found.folders == [str(tmp_path / name) for name in NAMES]
    (folders["a"] / "test.pt").unlink()
    assert CrossFit.read(folders).test is None
    OutOfFold.of(torch.arange(5), torch.rand(5)).save(folders["c"] / "oof.pt")
    with pytest.raises(ValueError, match=r"c has predictions of 5 rows and a of 6"):
        CrossFit.read(folders)
    OutOfFold.of(torch.arange(6), torch.rand(6, 2)).save(folders["c"] / "oof.pt")
    with pytest.raises(ValueError, match=r"c has 2 outputs and a 1"):
        CrossFit.read(folders)
    with pytest.raises(ValueError, match=r"folders is empty"):
        CrossFit.read({})
    with pytest.raises(ValueError, match=r"oof\.pt is not there"):
        CrossFit.read({"there": Path("nowhere")})


def test_several_outputs_are_a_third_dimension(tmp_path):
    rows = torch.rand(2, 6, 3)
    for number, name in enumerate("ab"):
        OutOfFold.of(torch.arange(6), rows[number], torch.zeros(6, 3)).save(tmp_path / name / "oof.pt")
    found = CrossFit.read({name: tmp_path / name for name in "ab"})
    assert torch.equal(found.predictions, rows.transpose(0, 1).double())
    assert found.targets.shape == (6, 3)


def test_configurations_and_seeds_begin_with_weights_of_their_own(tmp_path):
    begun: list[float] = []

    def make() -> Regressor:
        module = Regressor(MLP(2, (), num_classes=1))
        begun.append(module.network.head.weight[0, 0].item())
        return module

    loader = DataLoader(TensorDataset(torch.rand(8, 2), torch.rand(8)), batch_size=4)
    quick = {"max_epochs": 0, "barebones": True, "accelerator": "cpu"}
    found = cross_fit({"x": make, "y": make}, loader, quick, str(tmp_path), seeds=[0, 1], n_folds=2)
    assert found.names == ["x, seed 0", "x, seed 1", "y, seed 0", "y, seed 1"]
    assert found.predictions.shape == (8, 4)
    assert begun[:4] == begun[4:]
    assert len(set(begun)) == 4
    assert Path(found.folders[1]) == tmp_path / "x" / "seed_1"
    with pytest.raises(ValueError, match="nothing to train"):
        cross_fit({}, loader)
    for seeds, options, told in (
        ([5, -1], {}, "seeds is -1"),
        ([5, 5], {}, r"seeds is \[5, 5\]; allowed are different ones"),
        ([5], {"seed": 3}, "seed is 3; those of folds follow from seeds"),
    ):
        with pytest.raises(ValueError, match=told):
            cross_fit({"z": make}, loader, quick, str(tmp_path), seeds, **options)
    assert not (tmp_path / "z").exists(), "nothing is trained before all is checked"
