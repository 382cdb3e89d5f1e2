"""A small vision transformer, its data and fits of it, for the tests of OFQ and what goes with it."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.modules import Classifier, CompactViT
from tests.helpers.tasks import make_trainer

NOISE = (
    "ignore:.*(LeafSpec|num_workers|logging interval|GPU|checkpoint|worker|looks untrained|times as wide|"
    "no `val_dataloader`).*"
)
CLASSES = 3


def vit(optimizer: Any = None, dropout: float = 0.0, root: Any = Classifier) -> Any:
    """Return a classifier of images of 4 x 4 pixels with one block, always with the same weights."""
    torch.manual_seed(0)
    network = CompactViT(4, 2, 1, width=8, depth=1, heads=2, mlp_ratio=2.0, num_classes=CLASSES, dropout=dropout)
    return root(network, CLASSES, optimizer=adamw if optimizer is None else optimizer)


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=0.01, weight_decay=0.1)


def images(size: int = 24, batch_size: int = 8, shuffle: bool = False, device: Any = None) -> DataLoader:
    """Return random images with labels in turn."""
    x = torch.randn(size, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, torch.arange(size) % CLASSES), batch_size=batch_size, shuffle=shuffle)


def fit(model: Any, callbacks: list[Any], epochs: int = 2, ckpt: Any = None, data: Any = None, **options: Any) -> Any:
    """Train and return the Trainer."""
    torch.manual_seed(1)
    trainer = make_trainer(callbacks, max_epochs=epochs, **options)
    trainer.fit(model, images() if data is None else data, ckpt_path=ckpt)
    return trainer


def latents(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of all parameters."""
    return {name: param.detach().clone() for name, param in module.named_parameters()}
