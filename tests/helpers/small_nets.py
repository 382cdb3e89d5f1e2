"""A small classifier with three layers to gate, condition and prune, and its data."""

from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.modules import MLP, Classifier


def classifier(
    lr: float = 0.05,
    weight_decay: float = 0.0,
    classes: int = 3,
    hidden: tuple[int, ...] = (8, 6),
    batch_norm: bool = True,
) -> Classifier:
    """Return a classifier of four numbers, always with the same weights, trained with SGD."""
    torch.manual_seed(0)

    def optimizer(params: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=lr, weight_decay=weight_decay)

    return Classifier(MLP(4, hidden, classes, batch_norm=batch_norm), classes, optimizer=optimizer)


def loader(classes: int = 3, size: int = 16, batch_size: int = 8) -> DataLoader:
    """Return random inputs with labels in turn."""
    x = torch.randn(size, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, torch.arange(size) % classes), batch_size=batch_size)
