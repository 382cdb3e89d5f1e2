"""Where charged particles will be: one run of a network."""

from functools import partial
from pathlib import Path

import torch
from _harness import Settings
from _ponita_equivariance import vector_error
from _ponita_networks import ConstantVelocity, PositionsOnly, egnn, tensor_products
from _ponita_training import SIZES, adam, fit, number_of_parameters

from lightning_weights.data import NBody
from lightning_weights.functional.evaluation_mode import evaluation_mode
from lightning_weights.modules import Ponita, PonitaDynamics

STAY, CONSTANT, LINEAR, EGNN = "no motion", "constant velocity", "fitted velocity", "EGNN"
PRODUCTS, PNITA, PONITA = "tensor products, l ≤ 1", "PNITA", "PONITA"
BASELINES = (STAY, CONSTANT, LINEAR)
NETWORKS = {
    EGNN: partial(egnn, hidden=48, layers=3),
    PRODUCTS: partial(tensor_products, channels=28, lmax=1, layers=3),
    PNITA: partial(PositionsOnly, hidden=32, layers=3),
    PONITA: partial(Ponita, 1, 1, 0, 1, **SIZES),
}
BATCH, ROTATIONS = 50, 5


def predict_particles(
    name: str, settings: Settings, seed: int, folder: Path, epochs: int, systems: int
) -> dict[str, float]:
    """Train a network, if there is something to train, and measure."""
    data = NBody(BATCH, systems, BATCH, systems, folder=str(folder), seed=seed)
    network = NETWORKS[name]() if name in NETWORKS else ConstantVelocity()
    model = PonitaDynamics(network, **adam(settings.get("lr", 1.0), epochs))
    if name in NETWORKS:
        fit(model, data, epochs)
    elif name == STAY:
        network.factor.zero_()
    elif name == LINEAR:
        batches = list(data.train_dataloader())
        moved = torch.cat([batch["y"] - batch["pos"] for batch in batches])
        network.fit(torch.cat([batch["vec"][:, 0] for batch in batches]), moved)
    found = {"mse": squared_error(model, data), "parameters": number_of_parameters(network)}
    if name == PONITA:
        found["averaged"] = squared_error(model, data, ROTATIONS)
        found["turned"] = vector_error(network, next(iter(data.test_dataloader())))
    return {"score": -found["mse"], **found}


@torch.no_grad()
def squared_error(model: PonitaDynamics, data: NBody, rotations: int = 0) -> float:
    """Return the mean squared error of the test systems' coordinates, in 10⁻³."""
    model.test_time_rotations, squares, count = rotations, 0.0, 0
    with evaluation_mode(model):
        for batch in data.test_dataloader():
            squares += float((model.predict_step(batch, 0) - batch["y"]).square().sum())
            count += batch["y"].numel()
    return 1e3 * squares / count
