"""Rows of the battery for generated weights."""

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_weights.errors import ShardedParameterError
from lightning_weights.modules import AdaptedBackbone, GeneratedLoRA
from tests.helpers.battery import Setup, Subject

_EXACT = ("lightning_weights.callbacks.ExactResume", {})


class LinearGenerator(nn.Module):
    """Makes matrices of rank 1 by a linear layer each: the least that a generator can be."""

    sizes = {"0": (4, 8), "2": (8, 2)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ModuleList([nn.Linear(4, inputs) for inputs, _ in self.sizes.values()])
        self.b = nn.ModuleList([nn.Linear(4, outputs) for _, outputs in self.sizes.values()])

    def forward(self, condition: Tensor, mask: Any = None) -> GeneratedLoRA:
        rows = condition.mean(1)
        pairs = [(a(rows).tanh()[:, None], b(rows).tanh()[:, :, None]) for a, b in zip(self.a, self.b, strict=True)]
        return GeneratedLoRA(dict(zip(self.sizes, pairs, strict=True)), 1.0)


class MemoryNetwork(nn.Module):
    """Classifies four numbers by a frozen network whose weights are generated from the same numbers."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        self.dropout, self.memory = nn.Dropout(dropout), AdaptedBackbone(backbone, LinearGenerator())

    def forward(self, x: Tensor) -> Tensor:
        return self.memory(self.dropout(x)[:, None], x)

    def memory_loss(self, batch: Any, change: Any = None) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.memory(x[:, None], x, change=change), y)


SUBJECTS: dict[str, Subject] = {
    "lightning_weights.callbacks.ConditionShuffleProbe": Subject(
        {"every_n_epochs": 3, "max_batches": 2}, wrong=("every_n_epochs", "each")
    ),
}

SETUPS: tuple[Setup, ...] = (
    Setup(
        "hy_wu",
        ("torch.optim.SGD", {"lr": 0.02, "momentum": 0.9}),
        (("lightning_weights.callbacks.ConditionShuffleProbe", {"every_n_epochs": 2, "max_batches": 1}), _EXACT),
        network=MemoryNetwork,
        refuses={"fsdp2": ShardedParameterError, "no matrices": MisconfigurationException},
        differs={"ddp": "every process shuffles and averages over its own part of a batch"},
    ),
)
