"""Conformers with a force field's energies and forces, against rdkit alone and finite differences."""

import re
import sys

import numpy as np
import pytest
import torch

from lightning_weights.data import MoleculeEnergies
from lightning_weights.data._mmff import conformers
from lightning_weights.errors import MissingDependencyError

pytest.importorskip("rdkit")
from rdkit import Chem
from rdkit.Chem import AllChem

SMALL = {"train_conformers": 4, "val_conformers": 2, "test_conformers": 3, "shuffle": False, "batch_size": 100}


def parts(data):
    return [next(iter(loader)) for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]


def energy_function(smiles):
    """Return MMFF94's energy as a function of positions, on a molecule that rdkit makes anew."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(molecule, randomSeed=7)
    field = AllChem.MMFFGetMoleculeForceField(molecule, AllChem.MMFFGetMoleculeProperties(molecule))
    return lambda pos: field.CalcEnergy(pos.flatten().tolist())


@pytest.mark.parametrize("smiles", ["CCO", "c1ccccc1", "CNC=O", "CC[NH3+]"])
def test_forces_are_finite_differences_of_the_energy(smiles):
    made, energy, h = conformers(smiles, 2, 0.05, 3, "a test"), energy_function(smiles), 1e-4
    for pos, value, forces in zip(made.pos, made.energies, made.forces, strict=True):
        assert energy(pos) == pytest.approx(value.item(), rel=1e-12)
        shifts = h * torch.eye(pos.numel(), dtype=torch.float64).reshape(-1, *pos.shape)
        slopes = [(energy(pos + shift) - energy(pos - shift)) / (2 * h) for shift in shifts]
        assert forces.flatten().tolist() == pytest.approx([-slope for slope in slopes], rel=1e-5, abs=1e-4)
        assert torch.allclose(forces.sum(0), torch.zeros(3, dtype=torch.float64), atol=1e-8)


def test_noise_makes_the_forces():
    still, near, far = (conformers("CCO", 20, noise, 0, "a test") for noise in (0.0, 0.01, 0.03))
    sizes = [made.forces.square().mean().sqrt().item() for made in (still, near, far)]
    assert sizes[0] < 0.01
    assert sizes[2] / sizes[1] == pytest.approx(3, rel=0.2)
    assert 20 < sizes[2] < 60
    relaxed = [torch.pdist(made.pos[0]) for made in (still, near)]
    assert 0.001 < (relaxed[0] - relaxed[1]).abs().max() < 0.1


def test_conformers_are_turned_at_random():
    axes = torch.stack([torch.linalg.svd(pos)[2][0] for pos in conformers("c1ccccc1", 150, 0.0, 0, "a test").pos])
    spread = torch.linalg.eigvalsh(axes.T @ axes / len(axes))  # of an axis of the molecule over all directions
    assert spread.min() > 0.2
    assert spread.max() < 0.47


def test_batches_hold_the_conformers_molecule_by_molecule():
    smiles = ["CCO", "O"]
    batches = parts(MoleculeEnergies(smiles=smiles, **SMALL))
    for batch, count in zip(batches, (4, 2, 3), strict=True):
        assert batch["batch"].bincount().tolist() == [9] * count + [3] * count
        numbers = (batch["x"] @ torch.tensor([1.0, 6.0, 7.0, 8.0])).split(batch["batch"].bincount().tolist())
        for graph, (types, pos) in enumerate(zip(numbers, batch["pos"].split([len(n) for n in numbers]), strict=True)):
            assert types.tolist() == ([6, 6, 8] + [1] * 6 if graph < count else [8, 1, 1])
            expected = energy_function(smiles[graph >= count])(pos.double())
            assert batch["y"][graph].item() == pytest.approx(expected, rel=1e-4, abs=1e-3)
        assert batch["forces"].shape == batch["pos"].shape
        assert {values.dtype for name, values in batch.items() if name != "batch"} == {torch.float32}
    energies = torch.cat([batch["y"] for batch in batches])
    assert len(energies.unique()) == len(energies)  # no conformer is in two parts


def test_the_test_may_have_molecules_of_its_own():
    train, val, test = parts(MoleculeEnergies(smiles=["CO"], test_smiles=["CCC", "O"], **SMALL))
    assert train["batch"].bincount().tolist() == [6] * 4
    assert val["batch"].bincount().tolist() == [6] * 2
    assert test["batch"].bincount().tolist() == [11] * 3 + [3] * 3


def test_the_seed_decides_and_global_generators_stay():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = (parts(MoleculeEnergies(smiles=["CCO"], **SMALL, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert all(torch.equal(a[name], b[name]) for a, b in zip(first, again, strict=True) for name in a)
    assert not torch.allclose(first[0]["y"], other[0]["y"])


def test_default_molecules_have_the_default_types():
    batches = parts(MoleculeEnergies(train_conformers=1, val_conformers=1, test_conformers=1, batch_size=100))
    assert batches[0]["batch"].bincount().sum() == 9 + 10 + 8 + 10 + 10 + 9 + 12 + 12
    assert batches[0]["x"].sum(0).bool().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"smiles": "CCO"}, "smiles is 'CCO'; allowed is a list of names such as ['CCO'] or None"),
        ({"smiles": []}, "smiles is [] and test_smiles None; allowed are lists that aren't empty"),
        ({"test_smiles": []}, "allowed are lists that aren't empty"),
        ({"train_conformers": 0}, "train_conformers is 0; allowed is a whole number in [1, inf)"),
        ({"noise": -0.1}, "noise is -0.1; allowed is a finite number in [0.0, inf)"),
        ({"atom_types": "CHO"}, "atom_types is 'CHO'; allowed is a list of atomic numbers"),
        ({"atom_types": [1, 0]}, "atom_types[1] is 0; allowed is a whole number in [1, 119)"),
        ({"atom_types": [1, 6, 1]}, "atom_types is [1, 6, 1]; allowed is every atomic number once"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MoleculeEnergies(**arguments)


@pytest.mark.parametrize(
    ("smiles", "message"),
    [
        (["CCO", "C(("], "smiles has 'C(('; allowed is what rdkit can read as a molecule"),
        ([""], "smiles has ''; allowed is what rdkit can read as a molecule"),
        (["[Pt]"], "smiles has '[Pt]', with atoms that the force field MMFF94 doesn't know"),
        (["CF"], "has atoms with the atomic numbers [9]; allowed are those of atom_types, [1, 6, 7, 8]"),
        (["OCC", "CCO"], "smiles and test_smiles name a molecule more than once: ['CCO', 'OCC']"),
    ],
)
def test_bad_molecules(smiles, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MoleculeEnergies(smiles=smiles, **SMALL).setup()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(MissingDependencyError, match=r"MoleculeEnergies needs the package 'rdkit'.*extra 'chem'"):
        MoleculeEnergies().setup()
