import csv
import sys
from pathlib import Path

import _ponita_equivariance
import _ponita_molecules
import _ponita_networks
import _ponita_training
import ponita
import pytest
import torch

from lightning_weights.functional.ponita import random_rotations
from lightning_weights.modules import Ponita

TINY = {
    "particles": {"epochs": 1, "systems": 8},
    "equivariance": {},
    "generation": {"epochs": 1, "conformers": 2, "steps": 2},
    "molecule": {"epochs": 1, "conformers": 2, "smiles": ["O"], "tested": 2},
    "molecules": {"epochs": 1, "conformers": 2, "tested": 2},
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two molecules, few orientations, one epoch, and particles that begin to move."""
    monkeypatch.setitem(ponita.SCALES, "default", TINY)
    for name, size in {"hidden_dim": 8, "num_layers": 1, "num_orientations": 4}.items():
        monkeypatch.setitem(_ponita_training.SIZES, name, size)
    monkeypatch.setattr(_ponita_equivariance, "COUNTS", (4, 8))
    monkeypatch.setattr(_ponita_equivariance, "FEW", 4)
    monkeypatch.setattr(_ponita_equivariance, "MANY", 8)
    monkeypatch.setattr(_ponita_equivariance, "SOLIDS", (4,))
    monkeypatch.setattr(ponita.particles, "NBody", brief(ponita.particles.NBody, input_steps=0))
    monkeypatch.setattr(sys.modules["lightning_weights.data.molecule_energies"], "SMILES", ("NC=O", "O"))
    monkeypatch.setattr(_ponita_molecules, "GENERATED", ("NC=O",))
    _ponita_molecules.conformers_of.cache_clear()


def brief(data: type, **options: object) -> object:
    return lambda *arguments, **others: data(*arguments, **{**others, **options})


def run(out: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> tuple[dict[str, dict[str, str]], set[str]]:
    """Run the script with one seed and return its runs by method, and the figures that it drew."""
    monkeypatch.setattr(ponita, "find_spec", lambda name: None)  # compiling tensor products takes seconds
    monkeypatch.setattr("sys.argv", ["ponita.py", "--seeds", "1", "--workers", "1", "--out", str(out), *options])
    ponita.main()
    with (out / "runs.csv").open(encoding="utf-8") as file:
        return {row["method"]: row for row in csv.DictReader(file)}, {path.name for path in out.glob("*.png")}


def test_script_runs_its_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: None) -> None:
    pytest.importorskip("rdkit", reason="molecules need rdkit")
    rows, figures = run(tmp_path, monkeypatch)
    names = {f"{task}: {name}" for task in ponita.DEFAULT_TASKS for name in ponita.METHODS[task]}
    assert rows.keys() == names - {f"particles: {ponita.particles.PRODUCTS}"}
    errors = [float(rows[f"particles: {name}"]["mse"]) for name in ponita.particles.BASELINES]
    assert errors[0] > errors[1], "particles move about as they did"
    assert float(rows[f"equivariance: {_ponita_equivariance.POINTS}"]["error_0"]) < 1e-3
    assert figures == {"ponita.png", "ponita_equivariance.png"}
    assert all((tmp_path / task / "report.md").exists() for task in ponita.DEFAULT_TASKS)


def test_script_runs_other_tasks_if_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: None
) -> None:
    pytest.importorskip("rdkit", reason="molecules need rdkit")
    tasks = ("molecules", "generation")
    rows, figures = run(tmp_path, monkeypatch, "--tasks", *tasks)
    assert rows.keys() == {f"{task}: {name}" for task in tasks for name in ponita.METHODS[task]}
    assert float(rows[f"generation: {_ponita_molecules.HELD_OUT}"]["formula"]) == 100
    assert figures == {"ponita.png"}
    assert all((tmp_path / task / "report.md").exists() for task in tasks)


@pytest.mark.parametrize("make", [_ponita_networks.egnn, _ponita_networks.PositionsOnly])
def test_rivals_turn_with_their_input(make) -> None:
    torch.manual_seed(0)
    batch, network = _ponita_equivariance.random_points(2, 5), make(8, 2)
    rotation = random_rotations(1, 3)[0].float()
    turned = {**batch, "pos": batch["pos"] @ rotation.mT, "vec": batch["vec"] @ rotation.mT}
    answers = [
        network(b["x"], b["pos"], None, b["batch"], b["vec"][:, None], None).vectors.detach() for b in (batch, turned)
    ]
    torch.testing.assert_close(answers[1], answers[0] @ rotation.mT, rtol=1e-4, atol=1e-5)
    assert answers[0].shape == (10, 1, 3)
    assert answers[0].std() > 0


def test_fitted_velocities_are_least_squares() -> None:
    velocities, displacements = torch.randn(2, 50, 3)
    network = _ponita_networks.ConstantVelocity()
    network.fit(velocities, displacements)
    best = torch.linalg.lstsq(velocities.reshape(-1, 1), displacements.reshape(-1, 1)).solution
    assert float(network.factor) == pytest.approx(float(best))


def test_distances_are_compared_by_quantiles() -> None:
    first = torch.rand(500)
    assert _ponita_molecules.wasserstein(first, first + 0.25) == pytest.approx(0.25, abs=1e-5)
    assert _ponita_molecules.wasserstein(first, first.flip(0)) == 0


def test_validity_asks_for_formula_and_neighbours() -> None:
    water = torch.tensor([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    types = torch.tensor([[0.0, 0, 0, 1], [1, 0, 0, 0], [1, 0, 0, 0]])
    carbon = torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0]])  # elements that no molecule of the data has
    known = {"pos": torch.cat([water, torch.eye(3)[:2] * 9]), "x": torch.cat([types, carbon])}
    known["batch"] = torch.tensor([0, 0, 0, 1, 1])
    stretched, wrong = 1.5 * water, types.roll(1, 1)
    found = {"pos": torch.cat([water, stretched, water]), "x": torch.cat([types, types, wrong])}
    found["batch"] = torch.arange(9) // 3
    measured = _ponita_molecules.compare(found, known)
    assert measured["valid"] == pytest.approx(100 / 3)
    assert measured["formula"] == pytest.approx(200 / 3)


def test_means_of_molecules_know_the_formula() -> None:
    pytest.importorskip("rdkit", reason="molecules need rdkit")
    data = _ponita_molecules.MoleculeEnergies(4, ["O", "N"], None, 3, 1, 1)
    predict = _ponita_molecules.means_of_molecules(data)
    known = _ponita_molecules.whole(data.train_dataloader())
    energies, forces = predict(_ponita_molecules.whole(data.test_dataloader()))
    torch.testing.assert_close(energies, torch.stack([known["y"][:3].mean(), known["y"][3:].mean()]))
    assert not forces.any()


def test_scales_have_the_same_tasks_and_networks_are_about_as_large() -> None:
    assert all(scale.keys() == ponita.METHODS.keys() for scale in ponita.SCALES.values())
    networks = [make() for name, make in ponita.particles.NETWORKS.items() if name != ponita.particles.PRODUCTS]
    sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
    assert max(sizes) < 2 * min(sizes)
    assert isinstance(networks[-1], Ponita)
