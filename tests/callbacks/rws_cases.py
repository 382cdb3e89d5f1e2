"""Modules whose steps keep what they computed, and signature files for their networks."""

import importlib
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.modules import patched
from tests.helpers.tiny import ROOTS
from tests.modules.signature_cases import signature_of


def images(count=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 1, 4, 4, generator=generator), torch.arange(count) % 3)


def make_module(network, root=ROOTS[0], **overrides):
    """Return a classifier of `root` that keeps what each of its steps computed."""
    parents = (_Module, importlib.import_module(root).LightningModule)
    return type("Module", parents, overrides)(network)


class _Module:
    def __init__(self, network) -> None:
        super().__init__()
        self.net = network
        self.seen: dict[str, list[torch.Tensor]] = {"train": [], "validate": [], "test": [], "predict": []}
        self.keys: list[set[str]] = []

    def forward(self, x):
        return self.net(x)

    def _step(self, stage: str, batch: Any) -> torch.Tensor:
        logits = self(batch[0])
        self.seen[stage].append(logits.detach().clone())
        return nn.functional.cross_entropy(logits, batch[1])

    def training_step(self, batch, batch_idx):
        return self._step("train", batch)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self._step("validate", batch))

    def test_step(self, batch, batch_idx):
        self._step("test", batch)

    def predict_step(self, batch, batch_idx):
        self._step("predict", batch)

    def train_dataloader(self):
        return DataLoader(images(), batch_size=4, shuffle=True)

    def val_dataloader(self):
        return DataLoader(images(seed=1), batch_size=4)

    test_dataloader = predict_dataloader = val_dataloader

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def save_signatures(folder, network, levels=16, count=1):
    """Save signatures of a network and return their paths."""
    paths = [str(folder / f"{i}.safetensors") for i in range(count)]
    for i, path in enumerate(paths):
        signature_of(network, i, levels, f"corruption {i}").save(path)
    return paths


def expected_logits(network, stage_data, signatures, scales=1.0):
    """Return what a patched network computes."""
    with torch.no_grad(), patched(network.eval(), signatures, scales):
        return [network(x) for x, _ in stage_data]
