"""Molecules: their energies and forces, and new ones out of noise."""

import copy
from collections.abc import Callable, Sequence
from functools import cache

import torch
from _harness import Results, Settings
from _plots import looks
from _ponita_training import SIZES, adam, fit, number_of_parameters
from matplotlib.axes import Axes
from torch import Tensor

from lightning_weights.data import MoleculeEnergies
from lightning_weights.functional.evaluation_mode import evaluation_mode
from lightning_weights.modules import Ponita, PonitaDiffusion, PonitaPotential

MEANS, PNITA, PONITA = "mean of molecule", "PNITA", "PONITA"
NOISE, HELD_OUT = "normal noise", "held-out data"
BATCH, ELEMENTS, ROTATIONS = 8, 4, 5
GENERATED = ("CCO", "CC(=O)O", "CNC=O")  # ethanol, acetic acid, N-methylformamide
# wide enough to begin with noise in which no molecule is left
NOISES = {"noise_mean": -0.7, "noise_std": 1.3, "sigma_max": 5.0, "sigma_min": 0.01}
BINS, START, END = 44, 0.6, 5.0  # of the histogram of distances, in Å
PLACES = 1000


@cache
def conformers_of(smiles: tuple[str, ...] | None, seed: int, conformers: int, tested: int) -> MoleculeEnergies:
    """Make the conformers of a seed, which takes seconds."""
    counts = {"train_conformers": conformers, "val_conformers": 1, "test_conformers": tested}
    data = MoleculeEnergies(BATCH, smiles, **counts, seed=seed)
    data.setup()
    return data


def molecules(smiles: Sequence[str] | None, seed: int, conformers: int, tested: int = 20) -> MoleculeEnergies:
    """Return conformers of molecules, by default the data's own, whose order begins anew with every run."""
    return copy.deepcopy(conformers_of(None if smiles is None else tuple(smiles), seed, conformers, tested))


def predict_energies(
    name: str,
    settings: Settings,
    seed: int,
    epochs: int,
    conformers: int,
    smiles: Sequence[str] | None = None,
    tested: int = 20,
    grid: str = "fibonacci",
) -> dict[str, float]:
    """Train a potential, or take means, and measure mean absolute errors in kcal/mol and kcal/mol/Å."""
    data = molecules(smiles, seed, conformers, tested)
    batches = list(data.test_dataloader())
    predict, parameters = means_of_molecules(data), 0
    if name != MEANS:
        mode = "bundle" if name == PONITA else "position"
        network = Ponita(ELEMENTS, out_scalars=1, pooling="sum", mode=mode, grid=grid, **SIZES)
        rotations = ROTATIONS if name == PONITA else 0
        model = PonitaPotential(network, test_time_rotations=rotations, **adam(settings["lr"], epochs))
        fit(model, data, epochs)
        predict, parameters = model.predict, number_of_parameters(network)
    answers = [predict(batch) for batch in batches]
    energies = torch.cat([found - batch["y"] for (found, _), batch in zip(answers, batches, strict=True)])
    forces = torch.cat([found - batch["forces"] for (_, found), batch in zip(answers, batches, strict=True)])
    errors = {"energy": energies.abs().mean(), "force": forces.abs().mean()}
    return {**errors, "parameters": parameters, "score": -errors["force"]}


def means_of_molecules(data: MoleculeEnergies) -> Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]]:
    """Return a prediction that knows molecules by their numbers of atoms of each type."""
    energies: dict[tuple[int, ...], list[float]] = {}
    known = whole(data.train_dataloader())
    for formula, energy in zip(formulas(known["x"], known["batch"]), known["y"].tolist(), strict=True):
        energies.setdefault(formula, []).append(energy)
    means = {formula: sum(values) / len(values) for formula, values in energies.items()}

    def predict(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        found = [means[formula] for formula in formulas(batch["x"], batch["batch"])]
        return torch.tensor(found), torch.zeros_like(batch["forces"])

    return predict


def formulas(types: Tensor, batch: Tensor) -> list[tuple[int, ...]]:
    """Return how many atoms of each type every molecule has, from one-hot types."""
    counts = types.new_zeros(int(batch[-1]) + 1, types.shape[1]).index_add(0, batch, types)
    return [tuple(row) for row in counts.int().tolist()]


def generate_molecules(
    name: str, settings: Settings, seed: int, epochs: int, conformers: int, steps: int
) -> dict[str, float]:
    """Train a diffusion model, or take noise or other data, and compare with the training data."""
    data = molecules(GENERATED, seed, conformers)
    known, test = whole(data.train_dataloader()), whole(data.test_dataloader())
    pos, types, batch = test["pos"], test["x"], test["batch"]
    parameters = 0
    if name == NOISE:
        pos = torch.randn_like(pos) * centred(known).std()
        types = known["x"][torch.randint(len(known["x"]), (len(pos),))]
    elif name == PONITA:
        network = Ponita(ELEMENTS, 0, ELEMENTS, 1, conditioning_dim=1, random_grid="always", **SIZES)
        model = PonitaDiffusion(network, steps=steps, **NOISES, **adam(settings["lr"], epochs))
        fit(model, data, epochs)
        with torch.no_grad(), evaluation_mode(model):
            samples = model.sample(batch.bincount().tolist(), torch.Generator().manual_seed(seed))
        pos, types = samples.pos, torch.nn.functional.one_hot(samples.types, ELEMENTS).float()
        parameters = number_of_parameters(network)
    found = {"pos": pos, "x": types, "batch": batch}
    measured = compare(found, known)
    return {**measured, "parameters": parameters, "score": -measured["nearest"]}


def compare(found: dict[str, Tensor], known: dict[str, Tensor]) -> dict[str, float]:
    """Return how far distances are from those of the data in Å, their histogram, and the share of valid molecules.

    Valid is a molecule with the formula of one of the data's whose atoms have their nearest neighbours as far away as
    atoms of that element have in the data.
    """
    every, near = distances(found), nearest(found)
    measured = {"distances": wasserstein(every, distances(known)), "nearest": wasserstein(near, nearest(known))}
    ranges = [nearest(known)[known["x"][:, element] > 0].aminmax() for element in range(ELEMENTS)]
    low, high = (found["x"] @ torch.stack(ends) for ends in zip(*ranges, strict=True))
    strange = torch.zeros(int(found["batch"][-1]) + 1).index_add(
        0, found["batch"], ((near < low) | (near > high)).float()
    )
    seen = set(formulas(known["x"], known["batch"]))
    right = torch.tensor([formula in seen for formula in formulas(found["x"], found["batch"])])
    measured["formula"] = 100 * float(right.float().mean())
    measured["valid"] = 100 * float((right & (strange == 0)).float().mean())
    histogram = every.histc(BINS, START, END) / len(every) * BINS / (END - START)
    return measured | {f"density_{number}": value for number, value in enumerate(histogram.tolist())}


def draw_distances(axis: Axes, results: Results) -> None:
    """Draw the histograms of distances, means over seeds."""
    step = (END - START) / BINS
    places = [START + step * (number + 0.5) for number in range(BINS)]
    for method, look in looks(results, (NOISE, HELD_OUT)).items():
        means = [results.estimate(f"density_{number}", method).mean for number in range(BINS)]
        axis.plot(places, means, label=method, linewidth=1.3, **{**look, "marker": ""})
    axis.set(title="generated molecules", xlabel="distance between two atoms, Å", ylabel="density")
    axis.legend()


def whole(loader: torch.utils.data.DataLoader) -> dict[str, Tensor]:
    """Return all graphs of a loader as one batch."""
    dataset = loader.dataset
    return dataset.__getitems__(list(range(len(dataset))))


def centred(data: dict[str, Tensor]) -> Tensor:
    """Return positions around the centres of their molecules."""
    sizes = data["batch"].bincount()
    sums = torch.zeros(len(sizes), 3).index_add(0, data["batch"], data["pos"])
    return data["pos"] - (sums / sizes[:, None])[data["batch"]]


def distances(data: dict[str, Tensor]) -> Tensor:
    """Return the distances between the atoms of each molecule."""
    return torch.cat([torch.pdist(part) for part in data["pos"].split(data["batch"].bincount().tolist())])


def nearest(data: dict[str, Tensor]) -> Tensor:
    """Return the distance of every atom to the nearest one of its molecule."""
    parts = data["pos"].split(data["batch"].bincount().tolist())
    return torch.cat([torch.cdist(part, part).fill_diagonal_(torch.inf).amin(1) for part in parts])


def wasserstein(first: Tensor, second: Tensor) -> float:
    """Return the mean difference of the quantiles of two sets of numbers, in Å."""
    places = (torch.arange(PLACES) + 0.5) / PLACES
    return float((first.quantile(places) - second.quantile(places)).abs().mean())
