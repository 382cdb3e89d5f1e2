"""How the behaviour battery trains, and how it looks at what a run leaves behind."""

import importlib
import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from tests.helpers.tasks import make_trainer, tiny_tasks
from tests.helpers.tiny import ROOTS

NOISE = "ignore:.*(LeafSpec|num_workers|logging interval|GPU|checkpoint|worker|CLASSP compares).*"


def locate(path: str) -> Any:
    """Import `package.module.Name`."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def two_layers(dropout: float) -> nn.Module:
    """Return a network with 4 inputs and 2 classes."""
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(dropout), nn.ReLU(), nn.Linear(8, 2))


@dataclass(frozen=True)
class Subject:
    """How to build one public optimizer or callback.

    Args:
        arguments: Constructor arguments other than the defaults, as yaml gives them.
        wrong: An argument and a value of a wrong type for it; None for classes without arguments.
    """

    arguments: Mapping[str, Any]
    wrong: tuple[str, Any] | None


def cross_entropy(module: Any, x: Tensor, y: Tensor) -> Tensor:
    """Return what a module of any project would train on."""
    return nn.functional.cross_entropy(module(x), y)


@dataclass(frozen=True)
class Setup:
    """A tiny training run in which the parts of one method work together.

    Args:
        name: Name of the run in test ids.
        optimizer: Class path and arguments.
        callbacks: Class paths and arguments.
        epochs: Length, in epochs of four batches; the data has three tasks.
        network: Makes the network from a dropout rate.
        loss: Turns the module, inputs and labels into the training loss.
        refuses: Names of the situations that the method refuses, with the error: `fsdp2`, `no matrices`.
        differs: Names of the situations in which other numbers are right, with the reason: `accumulation`, `bf16`,
            `ddp`.
        strategies: Arguments of the strategies, `ddp` and `fsdp2`.
        rounding: By how much a compiled run may differ, where the compiler sums in another order.
    """

    name: str
    optimizer: tuple[str, Mapping[str, Any]]
    callbacks: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    epochs: int = 3
    network: Callable[[float], nn.Module] = two_layers
    loss: Callable[[Any, Tensor, Tensor], Tensor] = cross_entropy
    refuses: Mapping[str, type[Exception]] = field(default_factory=dict)
    differs: Mapping[str, str] = field(default_factory=dict)
    strategies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rounding: float = 0.0

    def skip_where_it_differs(self, situation: str) -> None:
        """End a test that compares numbers which need not be equal."""
        if situation in self.differs:
            pytest.skip(self.differs[situation])

    def make_optimizer(self, params: Iterable[Any]) -> torch.optim.Optimizer:
        """Build the optimizer."""
        path, arguments = self.optimizer
        return locate(path)(params, **arguments)

    def make_callbacks(self) -> list[Any]:
        """Build the callbacks."""
        return [locate(path)(**arguments) for path, arguments in self.callbacks]

    def make_network(self, dropout: float = 0.0) -> nn.Module:
        """Build the network, always with the same weights and without moving the global generator."""
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return self.network(dropout)


def small_module(row: Setup, root: str = ROOTS[0], **overrides: Any) -> Any:
    """Return a classifier of `root`'s LightningModule.

    Args:
        row: What it trains.
        root: `"lightning.pytorch"` or `"pytorch_lightning"`.
        overrides: Methods and attributes of the class: `dropout`, `built_in` (the hook that makes the network),
            `automatic_optimization`.
    """
    module_class = importlib.import_module(root).LightningModule
    return type("Small", (_Small, module_class), overrides)(row)


class _Small:
    dropout = 0.0
    built_in = "__init__"

    def __init__(self, row: Setup) -> None:
        super().__init__()
        self.row = row
        self._build("__init__")

    def setup(self, stage: str) -> None:
        self._build("setup")

    def configure_model(self) -> None:
        self._build("configure_model")
        if getattr(self, "_device_mesh", None) is not None:
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def _build(self, place: str) -> None:
        if place == self.built_in and not hasattr(self, "net"):
            self.net = self.row.make_network(self.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.row.loss(self, x, y)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        x, y = batch
        return {"preds": self(x), "target": y}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.row.make_optimizer(self.parameters())


def tasks(root: str = ROOTS[0], batch_size: int = 4, shuffle: bool = False) -> Any:
    """Return `tiny_tasks` in batches of any size, but for validation: a task at once, since batches cost the time."""

    def train_dataloader(self: Any) -> DataLoader:
        return DataLoader(self.sets[self.task], batch_size=batch_size, shuffle=self.shuffle)

    def val_dataloader(self: Any) -> list[DataLoader]:
        return [DataLoader(task, batch_size=len(task)) for task in self.sets]

    loaders = {"train_dataloader": train_dataloader, "val_dataloader": val_dataloader}
    return type("Tasks", (type(tiny_tasks(root)),), loaders)(3, shuffle)


def train(
    row: Setup,
    module: Any = None,
    *,
    root: str = ROOTS[0],
    data: Any = None,
    callbacks: list[Any] | None = None,
    extra: Iterable[Any] = (),
    ckpt: Any = None,
    seed: int = 1,
    **options: Any,
) -> dict[str, Any]:
    """Train a row's setup and return what it left behind.

    Args:
        row: What to train.
        module: The module; by default a fresh `small_module`.
        root: Root of the Trainer and the defaults.
        data: The data module; by default `tasks` in order.
        callbacks: Instead of the row's own.
        extra: More callbacks, last in the list.
        ckpt: Checkpoint to resume from.
        seed: Seed of all generators; resumed runs take another one, so that nothing is equal by accident.
        options: Arguments of the Trainer.
    """
    torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
    callbacks = row.make_callbacks() if callbacks is None else callbacks
    trainer = make_trainer([*callbacks, *extra], root, **{"max_epochs": row.epochs, **options})
    trainer.fit(
        small_module(row, root) if module is None else module,
        datamodule=tasks(root) if data is None else data,
        ckpt_path=ckpt,
        weights_only=None if ckpt is None else True,
    )
    return outcome(trainer)


def outcome(trainer: Any) -> dict[str, Any]:
    """Return weights, optimizer and callback states, the method's logged values and the counters, flat and copied."""
    ours = [callback for callback in trainer.callbacks if type(callback).__module__.startswith("lightning_weights")]
    logged = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("weights/")}
    parts = {
        "weights": trainer.lightning_module.state_dict(),
        "optimizer": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "callbacks": {callback.state_key: callback.state_dict() for callback in ours},
        "logged": logged,
        "counts": [trainer.global_step, trainer.current_epoch],
    }
    return flat(parts)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return nested dicts and lists as one dict; tensors are copied and sharded ones gathered."""
    if isinstance(value, Mapping):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{name}.{key}").items()}
    if isinstance(value, (list, tuple)):
        return flat(dict(enumerate(value)), name)
    if isinstance(value, Tensor):
        value = value.full_tensor() if hasattr(value, "full_tensor") else value
        return {name: value.detach().clone()}
    return {name: value}


def differing(a: Mapping[str, Any], b: Mapping[str, Any], tolerance: float = 0.0) -> list[str]:
    """Name the entries of two flat dicts that differ in any bit, or by more than an absolute and relative tolerance."""
    lone = [f"{name} is only in one" for name in sorted(a.keys() ^ b.keys())]
    return lone + [name for name in a.keys() & b.keys() if not _alike(a[name], b[name], tolerance)]


def _alike(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, float) and isinstance(b, float) and tolerance:
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
    if not isinstance(a, Tensor):
        return a == b
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if tolerance:
        return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


class SaveAt(Callback):
    """Saves when `hook` is called for the `count`-th time."""

    def __init__(self, hook: str, count: int, path: Any) -> None:
        self.count, self.path = count, path
        setattr(self, hook, self._called)

    def _called(self, trainer: Any, *args: Any) -> None:
        self.count -= 1
        if self.count == 0:
            trainer.save_checkpoint(self.path)
