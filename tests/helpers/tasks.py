"""A stream of tiny tasks and a Trainer that leaves nothing behind."""

import importlib
import warnings
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.callbacks import CLASSPPhases
from lightning_weights.modules import MLP, Classifier
from lightning_weights.optimizers import CLASSP


def tiny_tasks(root: str = "lightning.pytorch", num_tasks: int = 3, shuffle: bool = False) -> Any:
    """Return a data module of `root` with `num_tasks` two-class tasks of 16 samples in batches of 4."""
    return type("TinyTasks", (_TinyTasks, importlib.import_module(root).LightningDataModule), {})(num_tasks, shuffle)


class _TinyTasks:
    def __init__(self, num_tasks: int, shuffle: bool) -> None:
        super().__init__()
        self.num_tasks, self.shuffle, self.task = num_tasks, shuffle, 0
        self.served: list[int] = []
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(num_tasks, 16, 4, generator=generator)
        self.sets = [TensorDataset(x, (x[:, task % 4] > 0).long()) for task, x in enumerate(inputs)]

    def train_dataloader(self) -> Any:
        self.served.append(self.task)
        return DataLoader(self.sets[self.task], batch_size=4, shuffle=self.shuffle)

    def val_dataloader(self) -> Any:
        return [DataLoader(task, batch_size=8) for task in self.sets]


def tiny_classifier(seed: int = 0, **classp: Any) -> Classifier:
    """Return a small classifier trained with CLASSP."""
    torch.manual_seed(seed)
    return Classifier(
        MLP(in_features=4, hidden=(8,), num_classes=2, dropout=0.2),
        num_classes=2,
        optimizer=lambda params: CLASSP(params, **classp),
    )


def make_trainer(callbacks: list[Any], root: str = "lightning.pytorch", **options: Any) -> Any:
    """Return a quiet Trainer."""
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(root).Trainer(callbacks=callbacks, **{**defaults, **options})


def accumulators(trainer: Any) -> list[torch.Tensor]:
    """Return CLASSP's accumulators, in the order of the parameters."""
    return [state["grad_sum"] for state in trainer.optimizers[0].state.values()]


def protecting_phases(**options: Any) -> CLASSPPhases:
    """Return phases that switch with the second task."""
    return CLASSPPhases(**{"first_threshold": 0.0, "later_threshold": 1e-4, "unit": "task", **options})
