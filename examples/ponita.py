"""Does a network on positions and orientations beat invariant and tensor networks, and how equivariant is it?

Tasks, each with test data of its own:

- particles: where 5 charged particles will be. EGNN with velocities, a network of e3nn's tensor products (if e3nn is
  installed), PNITA with vectors weighted by its scalars, since it has none, and PONITA, all for as many epochs.
- molecule: energies and forces of the force field MMFF94 for ethanol. PNITA, PONITA, the mean of the molecule.
- equivariance: the error of untrained networks on random rotations, against the number of orientations.
- molecules: as molecule, for 8 molecules at once. Not among the default tasks, as are the following.
- generation: molecules out of noise. Distances between atoms against those of the data.
- digits: superpixels of handwritten digits.

    python examples/ponita.py                           # two seeds
    python examples/ponita.py --seeds 3 --tasks particles molecules generation equivariance
    python examples/ponita.py --tasks digits --scale long
    python examples/ponita.py --tune                    # learning rates of every network, on another seed

All networks have the same optimizer and schedule, and learning rates from the same grid.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import _ponita_equivariance as equivariance
import _ponita_molecules as molecules
import _ponita_particles as particles
from _grid import tune
from _harness import Column, Results, Settings, arguments, conclude, run_all
from _plots import draw_bars, plot
from _ponita_digits import classify_digits
from matplotlib.axes import Axes

PNITA, PONITA = "PNITA", "PONITA"
GRID = (4e-3, 8e-3, 1.6e-2)
FIRST_TUNING_SEED = 100
# learning rates of --tune; those of one molecule are the ones of eight
METHODS: dict[str, dict[str, Settings]] = {
    "particles": {
        **{name: {} for name in particles.BASELINES},
        particles.EGNN: {"lr": 8e-3},
        particles.PRODUCTS: {"lr": 1.6e-2},
        PNITA: {"lr": 1.6e-2},
        PONITA: {"lr": 8e-3},
    },
    "molecule": {molecules.MEANS: {}, PNITA: {"lr": 8e-3}, PONITA: {"lr": 8e-3}},
    "molecules": {molecules.MEANS: {}, PNITA: {"lr": 8e-3}, PONITA: {"lr": 8e-3}},
    "generation": {molecules.NOISE: {}, molecules.HELD_OUT: {}, PONITA: {"lr": 8e-3}},
    "equivariance": {name: {} for name in equivariance.GRIDS},
    "digits": {PNITA: {"lr": 8e-3}, PONITA: {"lr": 8e-3}},
}
# corners of a cube: a third of the Fibonacci grid's error under rotations
ETHANOL = {"smiles": ["CCO"], "tested": 50, "grid": "platonic"}
SCALES: dict[str, dict[str, dict[str, Any]]] = {
    "default": {
        "particles": {"epochs": 30, "systems": 1000},
        "molecule": {"epochs": 10, "conformers": 400, **ETHANOL},
        "molecules": {"epochs": 8, "conformers": 50},
        "generation": {"epochs": 12, "conformers": 130, "steps": 20},
        "equivariance": {},
        "digits": {"epochs": 16},
    },
    "long": {
        "particles": {"epochs": 100, "systems": 3000},
        "molecule": {"epochs": 100, "conformers": 950, **ETHANOL},
        "molecules": {"epochs": 60, "conformers": 100},
        "generation": {"epochs": 60, "conformers": 260, "steps": 40},
        "equivariance": {},
        "digits": {"epochs": 30},
    },
}
DEFAULT_TASKS = ["particles", "molecule", "equivariance"]


def train_one(settings: Settings, seed: int, folder: Path, scale: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Do one run of one task."""
    task, _, name = settings["method"].partition(": ")
    settings = {**METHODS[task][name], **settings}
    runs = {
        "particles": partial(particles.predict_particles, folder=folder),
        "molecule": molecules.predict_energies,
        "molecules": molecules.predict_energies,
        "generation": molecules.generate_molecules,
        "equivariance": equivariance.measure,
        "digits": classify_digits,
    }
    return runs[task](name, settings, seed, **scale[task])


def of_task(results: Results, task: str) -> Results:
    """Return the runs of one task, under short names."""
    prefix = f"{task}: "
    runs = [run for run in results.runs if run.method.startswith(prefix)]
    return Results([replace(run, method=run.method.removeprefix(prefix)) for run in runs])


def comparison(results: Results, metric: str, others: list[str], spec: str) -> list[tuple[str, bool]]:
    """Return criteria that PONITA's error is smaller than others', by more than two standard errors."""
    found = []
    for other in others:
        if other in results.methods:
            gain = results.difference(metric, PONITA, other)
            found.append(
                (f"{metric} smaller than that of {other}: {gain:{spec}}", gain.mean < 0 and not gain.within_noise())
            )
    return found


def report_particles(results: Results, out: Path) -> None:
    columns = [Column("mse", "squared error, 10⁻³", ".2f"), Column("parameters", "parameters", ".0f")]
    averaged, turned = results.estimate("averaged", PONITA), results.estimate("turned", PONITA)
    notes = [
        f"{PONITA}, mean over {particles.ROTATIONS} rotations: {averaged:.2f}; its relative error under rotations, "
        f"trained: {turned:.1f} %"
    ]
    others = [particles.LINEAR, particles.EGNN, particles.PRODUCTS, PNITA]
    conclude(results, columns, comparison(results, "mse", others, "+.2f"), out, notes=notes,
             claim="better than all other networks at where charged particles will be")  # fmt: skip


def report_molecules(results: Results, out: Path) -> None:
    columns = [
        Column("energy", "energy, kcal/mol", ".2f"),
        Column("force", "forces, kcal/mol/Å", ".2f"),
        Column("parameters", "parameters", ".0f"),
    ]
    criteria = [
        found
        for metric in ("energy", "force")
        for found in comparison(results, metric, [molecules.MEANS, PNITA], "+.2f")
    ]
    conclude(results, columns, criteria, out, claim="better energies and forces than without orientations")


def report_generation(results: Results, out: Path) -> None:
    columns = [
        Column("distances", "all distances, Å from the data's", ".3f"),
        Column("nearest", "nearest ones, Å from the data's", ".3f"),
        Column("formula", "formula of the data's, %", ".0f"),
        Column("valid", "valid, %", ".0f"),
    ]
    criteria = []
    for metric in ("distances", "nearest"):
        noise, own = (results.estimate(metric, name) for name in (molecules.NOISE, PONITA))
        held = own.mean <= noise.mean / 4
        criteria.append((f"{metric} 4 times closer to the data's than noise is: {own:.3f} and {noise:.3f} Å", held))
    valid = results.estimate("valid", PONITA)
    criteria.append((f"at least half of the molecules are valid: {valid:.0f} %", valid.mean >= 50))
    notes = [
        "distances between atoms: mean difference of quantiles to those of the training data\n"
        "valid: the formula of a molecule of the data, and every atom's nearest neighbour as far away as in the data"
    ]
    conclude(results, columns, criteria, out, notes=notes, claim="generated molecules look like those of the data")


def report_equivariance(results: Results, out: Path) -> None:
    lines = []
    for name, settings in equivariance.GRIDS.items():
        sizes = equivariance.sizes_of(settings)
        found = [f"{size or 'none'}: {results.estimate(f'error_{size}', name):.2g}" for size in sizes]
        lines.append(f"{name}, error in % by orientations: " + ", ".join(found))
    sizes = (equivariance.FEW, equivariance.MANY)
    few, many = (results.estimate(f"error_{size}", equivariance.FIBONACCI) for size in sizes)
    cloud = results.estimate("error_0", equivariance.POINTS)
    criteria = [
        (f"{sizes[1]} orientations: at most a tenth of the error of {sizes[0]}: {few:.2g} % and {many:.2g} %",
         many.mean <= few.mean / 10),
        (f"a point cloud is equivariant to rounding, below 0.001 %: {cloud:.2g} %", cloud.mean < 1e-3),
    ]  # fmt: skip
    exact = Results([replace(run, metrics={**run.metrics, "smallest": smallest(run.metrics)}) for run in results.runs])
    columns = [Column("smallest", "smallest error, %", ".2g")]
    conclude(exact, columns, criteria, out, claim="equivariant up to the grid, and exactly without", notes=lines)


def smallest(metrics: Mapping[str, float]) -> float:
    """Return the error with most orientations."""
    return min(value for name, value in metrics.items() if name.startswith("error_"))


def report_digits(results: Results, out: Path) -> None:
    columns = [Column("accuracy", "accuracy, %"), Column("parameters", "parameters", ".0f")]
    gain = results.difference("accuracy", PONITA, PNITA)
    criteria = [(f"more accurate than {PNITA}: {gain:+.1f}", gain.mean > 0 and not gain.within_noise())]
    conclude(results, columns, criteria, out, claim="digits are told apart better with orientations")


REPORTS = {
    "particles": report_particles,
    "molecule": report_molecules,
    "molecules": report_molecules,
    "generation": report_generation,
    "equivariance": report_equivariance,
    "digits": report_digits,
}


def draw_particles(axis: Axes, results: Results) -> None:
    draw_bars(axis, results, "mse", particles.BASELINES, ".1f")
    axis.set(title="charged particles", xlabel="squared error, 10⁻³", xscale="log")


def draw_forces(axis: Axes, results: Results, title: str) -> None:
    draw_bars(axis, results, "force", (molecules.MEANS,), ".1f")
    axis.set(title=title, xlabel="absolute error, kcal/mol/Å")


PANELS = {
    "particles": draw_particles,
    "molecule": partial(draw_forces, title="forces of ethanol"),
    "molecules": partial(draw_forces, title="forces of eight molecules"),
    "generation": molecules.draw_distances,
}


def draw(results: Results, tasks: list[str], out: Path) -> None:
    """Draw what the trained networks can do, a panel per task, and the error against the number of orientations."""
    panels = [task for task in PANELS if task in tasks]
    if panels:
        with plot(out / "ponita.png", widths=(4.0,) * len(panels)) as axes:
            for task, axis in zip(panels, axes, strict=True):
                PANELS[task](axis, of_task(results, task))
    if "equivariance" in tasks:
        with plot(out / "ponita_equivariance.png", widths=(5.2,)) as (axis,):
            equivariance.draw(axis, of_task(results, "equivariance"))


def main() -> None:
    parser = arguments("ponita", "PONITA against other equivariant networks, on six tasks.", seeds=2)
    parser.add_argument("--tasks", nargs="+", choices=list(METHODS), default=DEFAULT_TASKS, help="%(default)s")
    parser.add_argument("--scale", choices=list(SCALES), default="default", help="how long (%(default)s)")
    parser.add_argument("--tune", action="store_true", help="try learning rates, on seeds from 100 on")
    options = parser.parse_args()
    scale = SCALES[options.scale]
    run = partial(train_one, folder=options.out / "data", scale=scale)
    shared = {"resume": options.resume, "workers": options.workers, "common": scale}
    methods = {
        f"{task}: {name}": {"method": f"{task}: {name}", **settings}
        for task in options.tasks
        for name, settings in METHODS[task].items()
        if name != particles.PRODUCTS or find_spec("e3nn") is not None
    }
    if options.tune:
        grid = {name: {"lr": GRID} for name, settings in methods.items() if "lr" in settings}
        seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + options.seeds)
        tune(grid, seeds, run, options.out, best="score", **shared)
        return
    results = run_all(methods, range(options.seeds), run, options.out, watch="score", **shared)
    draw(results, options.tasks, options.out)
    for task in options.tasks:
        print(f"\n{task}")
        REPORTS[task](of_task(results, task), options.out / task)


if __name__ == "__main__":
    main()
