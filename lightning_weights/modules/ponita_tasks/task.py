"""What the LightningModules around `Ponita` share: steps, logs, optimizers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI, LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.modules.ponita import GraphInputs, Ponita, PonitaOutput, graph_inputs
from lightning_weights.modules.ponita_tasks.rotation_average import averaged_over_rotations
from lightning_weights.modules.ponita_tasks.standardization import Standardization, in_order

OBJECTS = ["network", "optimizer", "lr_scheduler"]  # arguments that are no hyper-parameters of a checkpoint


class Measured(NamedTuple):
    """What a batch gives.

    Attributes:
        values: The loss and other means to log, each with the number of things it is a mean over.
        preds: Predictions.
        target: Targets.
    """

    values: dict[str, tuple[Tensor, int]]
    preds: Any
    target: Any


class PonitaTask(LightningModule, ABC):
    """Train a network on batches of graphs; a base class with what all tasks do alike.

    Args:
        network: The network.
        optimizer: Makes the optimizer from groups of parameters, see `linear_decay_groups`.
        lr_scheduler: Makes the learning-rate scheduler, stepped once per epoch, from the optimizer.
    """

    default_optimizer: ClassVar[Any] = partial(torch.optim.Adam, lr=5e-4, weight_decay=1e-10)

    def __init__(
        self, network: nn.Module, optimizer: OptimizerCallable | None, lr_scheduler: LRSchedulerCallable | None
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler

    def configure_optimizers(self) -> Any:
        """Return what ``optimizer`` and ``lr_scheduler`` make, in the form that LightningCLI gives them too."""
        make = type(self).default_optimizer if self.optimizer is None else self.optimizer
        optimizer = make(linear_decay_groups(self))
        scheduler = None if self.lr_scheduler is None else self.lr_scheduler(optimizer)
        return LightningCLI.configure_optimizers(self, optimizer, scheduler)

    @abstractmethod
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""

    def _trained(self, measured: Measured) -> Tensor:
        """Log the loss of a training batch and return it."""
        loss, size = measured.values["loss"]
        self.log("train/loss", loss, batch_size=size)
        return loss

    def _evaluated(self, stage: str, measured: Measured) -> dict[str, Any]:
        """Log all values of a batch of another stage and return loss, predictions and targets."""
        for name, (value, size) in measured.values.items():
            self.log(f"{stage}/{name}", value, batch_size=size, sync_dist=True)
        return {"loss": measured.values["loss"][0], "preds": measured.preds, "target": measured.target}


class PredictionTask(PonitaTask):
    """A task whose network answers for every batch; a base class, whose subclasses say what to make of the answer.

    Args:
        network: Is called as ``network(scalars, pos, edge_index, batch, vectors, condition)`` and returns ``scalars``
            and ``vectors``.
        test_time_rotations: Number of random rotations that answers are averaged over in testing and prediction; 0 for
            one answer as it is.
        optimizer: As in the base class.
        lr_scheduler: As in the base class.

    Raises:
        ValueError: If ``test_time_rotations`` is not a whole number from 0.
    """

    def __init__(
        self,
        network: nn.Module,
        test_time_rotations: int,
        optimizer: OptimizerCallable | None,
        lr_scheduler: LRSchedulerCallable | None,
    ) -> None:
        check_number("test_time_rotations", test_time_rotations, low=0, whole=True)
        super().__init__(network, optimizer, lr_scheduler)
        self.test_time_rotations = test_time_rotations

    def forward(self, batch: Any) -> Any:
        """Return predictions for a batch of graphs, in data units.

        Args:
            batch: The graphs, see `graph_inputs`.
        """
        return self._predictions(batch, self._answer(graph_inputs(batch), 0))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        return self._trained(self._measure(batch, rotations=0))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Log the values of ``val`` and return loss, predictions and targets."""
        return self._evaluated("val", self._measure(batch, rotations=0))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Log the values of ``test`` and return loss, predictions and targets."""
        return self._evaluated("test", self._measure(batch, self.test_time_rotations))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Return predictions, averaged over ``test_time_rotations``."""
        return self._predictions(batch, self._answer(graph_inputs(batch), self.test_time_rotations))

    def _answer(self, inputs: GraphInputs, rotations: int) -> PonitaOutput:
        return averaged_over_rotations(self._respond, inputs, rotations)

    def _respond(self, inputs: GraphInputs) -> PonitaOutput:
        return self.network(*inputs)

    @abstractmethod
    def _predictions(self, batch: Any, answer: PonitaOutput) -> Any:
        """Make predictions of what the network says."""

    @abstractmethod
    def _measure(self, batch: Any, rotations: int) -> Measured:
        """Compare what the network says with targets."""


class StandardizedTask(PredictionTask):
    """A task whose targets are standardized; a base class, whose subclasses make the attribute."""

    standardization: Standardization

    def on_train_start(self) -> None:
        """Find shift and scale, unless they are known."""
        if not bool(self.standardization.known):
            with torch.random.fork_rng(devices=[]):  # datasets may draw
                self.standardize(in_order(self.trainer.train_dataloader))

    @abstractmethod
    def standardize(self, batches: Iterable[Any]) -> None:
        """Find shift and scale, and keep them; a fit does so by itself with its training data, once.

        Args:
            batches: Batches of the training data.

        Raises:
            ValueError: If the targets have no scale.
        """


def linear_decay_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer: its weight decay for weights of linear layers, none for the rest.

    Args:
        module: A network.

    Returns:
        One or two groups, to be given to an optimizer with the decay of the weights.

    Examples:
        >>> groups = linear_decay_groups(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
        >>> optimizer = torch.optim.Adam(groups, weight_decay=1e-10)
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        [(1, 1e-10), (3, 0.0)]
    """
    decayed = {id(part.weight) for part in module.modules() if isinstance(part, nn.Linear)}
    trained = [param for param in module.parameters() if param.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [param for param in trained if id(param) in decayed]},
        {"params": [param for param in trained if id(param) not in decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def target_of(batch: Any, name: str) -> Tensor:
    """Return a target of a batch.

    Args:
        batch: A mapping, or an object with attributes.
        name: What it is called there.

    Raises:
        ValueError: If there is none.
    """
    target = batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None)
    if not isinstance(target, Tensor):
        raise ValueError(f"the batch, a {type(batch).__name__}, has no tensor {name!r}, which is to be predicted")
    return target


def check_shape(name: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    """Check the shape of a target or an answer.

    Args:
        name: What it is called, for the message.
        tensor: The tensor.
        wanted: Its shape.

    Raises:
        ValueError: If it has another one.
    """
    if tensor.shape != wanted:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; allowed is {wanted}")


def check_network(network: nn.Module, **wanted: tuple[Any, ...]) -> None:
    """Check that a `Ponita` predicts what a task needs; other networks are taken as they are.

    Args:
        network: The network.
        **wanted: Allowed values of its arguments.

    Raises:
        ValueError: If it has another one.
    """
    if isinstance(network, Ponita):
        for name, allowed in wanted.items():
            if getattr(network, name) not in allowed:
                choices = " or ".join(map(repr, allowed))
                raise ValueError(f"the network has {name}={getattr(network, name)!r}; allowed is {choices} here")
