"""Rows of the battery for equivariant networks."""

from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_weights.errors import ShardedParameterError
from lightning_weights.modules import EnergyForces, Ponita, PonitaPotential
from tests.helpers.battery import Setup, Subject

SUBJECTS: dict[str, Subject] = {
    "lightning_weights.callbacks.CalibrateOnFirstBatch": Subject({}, wrong=None),
    "lightning_weights.callbacks.RotateBatch": Subject(
        {"fields": ["0"], "per_graph": True}, wrong=("per_graph", "sometimes")
    ),
}


class Pairs(nn.Module):
    """Classify the four inputs of a sample as two points of the plane."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.ponita = Ponita(1, out_scalars=2, dim=2, hidden_dim=4, num_layers=1, num_orientations=3, pooling="sum")

    def forward(self, x: Tensor) -> Tensor:
        batch = torch.arange(len(x), device=x.device).repeat_interleave(2)
        scalars = self.dropout(torch.ones(2 * len(x), 1, device=x.device, dtype=x.dtype))
        return self.ponita(scalars, x.reshape(-1, 2), None, batch).scalars


SETUPS: tuple[Setup, ...] = (
    Setup(
        "ponita",
        ("torch.optim.SGD", {"lr": 0.05, "momentum": 0.9}),
        (
            ("lightning_weights.callbacks.CalibrateOnFirstBatch", {}),
            ("lightning_weights.callbacks.RotateBatch", {"fields": ["0"]}),
            ("lightning_weights.callbacks.ExactResume", {}),
        ),
        network=Pairs,
        refuses={"fsdp2": ShardedParameterError, "no matrices": MisconfigurationException},
        differs=dict.fromkeys(("accumulation", "ddp"), "rotations are drawn and layers calibrated batch by batch"),
        rounding=1e-5,
    ),
)


class Springs(nn.Module):
    """A potential of two points of the plane, whose energy tells classes apart."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        sizes = {"hidden_dim": 4, "num_layers": 1, "num_orientations": 3}
        network = Ponita(1, dim=2, pooling="sum", random_grid="off", **sizes)
        self.potential = PonitaPotential(network)

    def energy_forces(self, x: Tensor) -> EnergyForces:
        batch = torch.arange(len(x), device=x.device).repeat_interleave(2)
        scalars = self.dropout(torch.ones(2 * len(x), 1, device=x.device))
        return self.potential({"x": scalars, "pos": x.reshape(-1, 2), "batch": batch})

    def forward(self, x: Tensor) -> Tensor:
        energies = self.energy_forces(x).energies
        return torch.stack([energies, -energies], dim=1)


def with_forces(module: Any, x: Tensor, y: Tensor) -> Tensor:
    """Return a loss of energies and of their gradients."""
    energies, forces = module.net.energy_forces(x)
    size = forces.square().mean()
    module.log("weights/ponita/forces", size, sync_dist=True)
    return nn.functional.cross_entropy(torch.stack([energies, -energies], dim=1), y) + size


class Opposites(Pairs):
    """The same with opposite orientations, whose grid stays as it is."""

    def __init__(self, dropout: float) -> None:
        super().__init__(dropout)
        sizes = {"hidden_dim": 4, "num_layers": 1, "num_orientations": 4}
        self.ponita = Ponita(1, out_scalars=2, dim=2, pooling="sum", random_grid="off", **sizes)


def logged_cross_entropy(module: Any, x: Tensor, y: Tensor) -> Tensor:
    """Return the loss of the classes, and log it."""
    loss = nn.functional.cross_entropy(module(x), y)
    module.log("weights/ponita/loss", loss, sync_dist=True)
    return loss


# Nothing is drawn: two processes have to find what one finds.
VARIANTS: tuple[Setup, ...] = (
    Setup(
        "ponita_opposites",
        ("torch.optim.SGD", {"lr": 0.05, "momentum": 0.9}),
        (("lightning_weights.callbacks.ExactResume", {}),),
        network=Opposites,
        loss=logged_cross_entropy,
    ),
    Setup(
        "ponita_forces",
        ("torch.optim.SGD", {"lr": 0.05, "momentum": 0.9}),
        (("lightning_weights.callbacks.ExactResume", {}),),
        network=Springs,
        loss=with_forces,
        refuses={"fsdp2": ShardedParameterError},
    ),
)
