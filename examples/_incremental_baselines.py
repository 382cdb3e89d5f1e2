"""What class-incremental learning is compared with: BiC's bias layers and iCaRL's nearest mean; and what both need."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_weights.data import BatchDataset, ClassIncremental
from lightning_weights.functional.weight_align import class_mean, mean_norms, nearest_mean
from lightning_weights.modules import ClassIncrementalModule

HELD_OUT = 0.1  # of a class's exemplars, for BiC's second stage


class BiasLayers(nn.Module):
    """Scale and shift the logits of groups of classes, each group with two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[tuple[int, int, Tensor]] = []

    def forward(self, logits: Tensor) -> Tensor:
        parts, done = [], 0
        for start, end, (scale, shift) in self.groups:
            parts += [logits[:, done:start], logits[:, start:end] * scale + shift]
            done = end
        return torch.cat([*parts, logits[:, done:]], dim=1)


class BiC(ClassIncrementalModule):
    """A class-incremental module whose logits pass through bias layers, in the frozen copy too."""

    def __init__(self, backbone: nn.Module, feature_dim: int, **options: Any) -> None:
        super().__init__(backbone, feature_dim, **options)
        self.bias_layers = BiasLayers()

    def forward(self, x: Tensor) -> Tensor:
        return self.bias_layers(super().forward(x))

    def _frozen_copy(self) -> nn.Module:
        copied = super()._frozen_copy()
        layers = BiasLayers()
        layers.groups = list(self.bias_layers.groups)
        return nn.Sequential(copied, layers)


class JudgedByNearestMean(ClassIncremental):
    """Classify as iCaRL does, too (Rebuffi et al., 2017, arXiv:1611.07725): by the nearest mean of exemplars.

    `nearest` lists the accuracies of `module` after every step, once the memory holds the step's classes.
    """

    module: ClassIncrementalModule
    nearest: list[dict[str, float]]

    def remember(self, features: Tensor) -> None:
        super().remember(features)
        means = []
        for label in self.memory.classes:
            kept = self.memory.exemplars(label)
            exemplars = BatchDataset(kept, torch.full((len(kept),), label))
            means.append(class_mean(predictions(self.module, self.module.features, exemplars)[0]))
        features, targets = predictions(self.module, self.module.features, self.val_dataloader().dataset)
        self.nearest.append(accuracies(nearest_mean(features, torch.stack(means)), targets, self.num_old))


class BalancedHoldout(JudgedByNearestMean):
    """Keep equally many samples of every class, old and new, out of training."""

    def split(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return what is trained on and what is held out, inputs and labels each."""
        x, y = self.new_samples()
        if not self.num_old:
            return (x, y), (x[:0], y[:0])
        old_x, old_y = self.memory.tensors()
        x, y = torch.cat([old_x, x]), torch.cat([old_y, y])
        count = max(1, round(HELD_OUT * len(self.memory) / self.num_old))
        held = torch.zeros(len(y), dtype=torch.bool)
        for label in range(self.num_old + self.num_new):
            # the least important exemplars of an old class, any samples of a new one
            held[(y == label).nonzero()[-count:, 0]] = True
        return (x[~held], y[~held]), (x[held], y[held])

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        (x, y), _ = self.split()
        return self._loader(BatchDataset(x, y, self.augment, self._order), self._order, self.shuffle)


class FitBiasLayer(Callback):
    """The second stage of BiC (Wu et al., 2019, arXiv:1905.13260): two numbers for the new classes, all else frozen."""

    def __init__(self, steps: int = 200, lr: float = 0.01) -> None:
        self.steps, self.lr = steps, lr

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = trainer.datamodule
        if not data.num_old:
            return
        _, (x, y) = data.split()
        logits = predictions(pl_module, pl_module, BatchDataset(x, y))[0]
        numbers = torch.tensor([1.0, 0.0], requires_grad=True)
        layer = BiasLayers()
        layer.groups = [(data.num_old, data.num_old + data.num_new, numbers)]
        optimizer = torch.optim.Adam([numbers], lr=self.lr)
        with torch.enable_grad():
            for _ in range(self.steps):
                optimizer.zero_grad()
                nn.functional.cross_entropy(layer(logits), y).backward()
                optimizer.step()
        group = layer.groups[0]
        pl_module.bias_layers.groups.append((*group[:2], numbers.detach()))


class Probe(Callback):
    """Measure the network at the end of every step, before the callbacks after this one change it.

    `rows` lists accuracy on all, on old and on new classes, and the γ that aligning would multiply by.
    """

    def __init__(self, data: ClassIncremental, rows: list[dict[str, float]]) -> None:
        self.data, self.rows = data, rows

    def __deepcopy__(self, memo: dict[int, Any]) -> "Probe":
        return self  # the runner copies callbacks for every step, and this one collects over all

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        test = self.data.val_dataloader().dataset
        logits, targets = predictions(pl_module, pl_module, test)
        row = accuracies(logits.argmax(dim=1), targets, self.data.num_old)
        if self.data.num_old:
            old, new = mean_norms(pl_module.head.weight, self.data.num_old)
            row["gamma"] = old / new
        self.rows.append(row)


def predictions(module: LightningModule, apply: Any, dataset: Any) -> tuple[Tensor, Tensor]:
    """Return what `apply`, a part of the module, makes of a data set in eval mode, and its labels."""
    training = module.training
    module.eval()
    x, targets = dataset.__getitems__(range(len(dataset)))
    with torch.no_grad():
        outputs = apply(x)
    module.train(training)
    return outputs, targets


def accuracies(labels: Tensor, targets: Tensor, num_old: int) -> dict[str, float]:
    """Return accuracy on all classes, on old and on new ones, in percent."""
    right = 100 * (labels == targets).double()
    parts = {"all": right, "old": right[targets < num_old], "new": right[targets >= num_old]}
    return {name: part.mean().item() for name, part in parts.items() if len(part)}
