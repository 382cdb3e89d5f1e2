"""A tiny module for either Lightning root that draws from every random generator."""

import importlib
import random
from typing import Any

import numpy as np
import torch
from torch import nn
from torchmetrics import MeanMetric

ROOTS = ("lightning.pytorch", "pytorch_lightning")


def tiny_module(root: str, **overrides: Any) -> Any:
    """Return a fresh module of `root`'s LightningModule.

    Its step uses dropout, python's and numpy's generator. `seen` lists the losses of batches, validations and epochs.

    Args:
        root: `"lightning.pytorch"` or `"pytorch_lightning"`.
        overrides: Methods and attributes that replace or add to those of the class; `plateau=True` adds a
            `ReduceLROnPlateau` on `plateau_monitor`, `normalized=False` leaves batch normalization out.
    """
    module_class = importlib.import_module(root).LightningModule
    return type("Tiny", (_Tiny, module_class), overrides)()


class _Tiny:
    plateau = False
    plateau_monitor = "val_loss"
    normalized = True

    def __init__(self) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(8) if self.normalized else nn.Identity()
        self.net = nn.Sequential(nn.Linear(4, 8), norm, nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2))
        self.mean = MeanMetric()
        self.seen: list[tuple[str, float, float]] = []

    def loss(self, batch: Any) -> torch.Tensor:
        x = torch.cat(list(batch.values())) if isinstance(batch, dict) else batch
        return (self.net(x) - x[:, :2]).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch) * (1 + 0.1 * random.gauss(0, 1) + 0.1 * float(np.random.standard_normal()))
        self.seen.append(("train", batch_idx, loss.item()))
        self.mean(loss.detach())
        self.log("train_loss", loss, on_step=True, on_epoch=True, batch_size=4)
        self.log("train_mean", self.mean)
        return loss

    def on_train_epoch_end(self) -> None:
        metrics = self.trainer.callback_metrics
        self.seen.append(("epoch", metrics["train_loss_epoch"].item(), metrics["train_mean"].item()))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = self.loss(batch)
        if not self.trainer.sanity_checking:
            self.seen.append(("val", batch_idx, loss.item()))
        self.log("val_loss", loss, batch_size=4)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        if not self.plateau:
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)]
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": self.plateau_monitor}}
