"""How far PONITA is from turning with its input, against the number of orientations of its grid."""

from collections.abc import Mapping
from typing import Any

import torch
from _harness import Results, Settings
from _plots import COLOURS, MARKERS
from _ponita_training import SIZES
from matplotlib.axes import Axes
from torch import Tensor

from lightning_weights.functional.ponita import complete_edges
from lightning_weights.metrics import EquivarianceError
from lightning_weights.modules import Ponita

COUNTS = (4, 6, 8, 12, 16, 20, 32, 64)
SOLIDS = (4, 6, 8, 12, 20)
FEW, MANY = 8, 64  # which are compared
FIBONACCI, POINTS = "Fibonacci grid", "point cloud"
GRIDS: dict[str, Settings] = {
    FIBONACCI: {},
    "repulsion grid": {"grid": "repulsion"},
    "antipodal grid": {"grid": "antipodal"},
    "corners of a regular solid": {"grid": "platonic"},
    POINTS: {"mode": "pointcloud"},
}
GRAPHS, NODES = 16, 5


def random_points(graphs: int = GRAPHS, nodes: int = NODES) -> dict[str, Tensor]:
    """Return complete graphs of charged points with velocities."""
    batch = torch.arange(graphs * nodes) // nodes
    charges = torch.randint(0, 2, (len(batch), 1)).float() * 2 - 1
    pos, velocities = torch.randn(2, len(batch), 3)
    return {"x": charges, "pos": pos, "vec": velocities, "edge_index": complete_edges(batch), "batch": batch}


def vector_error(network: Any, batch: Mapping[str, Tensor]) -> float:
    """Return the relative error of the vectors under random rotations, in %."""
    metric = EquivarianceError()
    metric.update(network, batch)
    return 100 * float(metric.compute()["vectors"])


def sizes_of(settings: Settings) -> tuple[int, ...]:
    """Return the numbers of orientations to try; a point cloud has no grid."""
    if settings.get("mode") == "pointcloud":
        return (0,)
    if settings.get("grid") == "platonic":
        return SOLIDS
    return COUNTS[1:] if settings.get("grid") == "antipodal" else COUNTS  # two opposite pairs don't span space


def measure(name: str, settings: Settings, seed: int) -> dict[str, float]:
    """Measure untrained networks, with the same weights at every size, all on the same points."""
    batch, choice, found = random_points(), GRIDS[name], {}
    for size in sizes_of(choice):
        torch.manual_seed(seed)
        network = Ponita(1, 1, 0, 1, **{**SIZES, "num_orientations": size or 1, **choice})
        found[f"error_{size}"] = vector_error(network, batch)
    return {**found, "score": -min(found.values())}


def draw(axis: Axes, results: Results) -> None:
    """Draw one line per grid."""
    for number, (name, settings) in enumerate(GRIDS.items()):
        look = {"color": COLOURS[number], "label": name}
        sizes = sizes_of(settings)
        estimates = [results.estimate(f"error_{size}", name) for size in sizes]
        means = [estimate.mean for estimate in estimates]
        if len(sizes) == 1:
            axis.axhline(means[0], linestyle=":", **look)
        else:
            errors = [estimate.error for estimate in estimates]
            axis.errorbar(sizes, means, errors, marker=MARKERS[number], markersize=4, linewidth=1.2, **look)
    axis.set(xscale="log", yscale="log", xlabel="orientations", ylabel="relative error of vectors, %")
    axis.set(title="equivariance error, untrained")
    axis.set_xticks(COUNTS, [str(count) for count in COUNTS])
    axis.minorticks_off()
    axis.legend()
