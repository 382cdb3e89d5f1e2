"""A LightningModule around any classification network."""

from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI, LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from lightning_weights.errors import check_number


class Classifier(LightningModule):
    """Train a network on batches of (inputs, class labels).

    Logs ``train/loss``, ``val/loss``, ``val/accuracy``, ``test/loss`` and ``test/accuracy``, the last four as means
    over all images of all processes, one per loader if there are several. ``validation_step`` and ``test_step`` return
    ``loss``, ``preds`` (logits) and ``target`` for callbacks.

    Hyper-parameters in checkpoints leave out objects: load with ``Classifier.load_from_checkpoint(path, network=...)``.

    Args:
        network: Module that turns inputs of shape (N, ...) into logits of shape (N, num_classes).
        num_classes: Number of classes, at least 2.
        loss: Module that turns logits and labels into a scalar. ``None``: cross-entropy.
        optimizer: Makes the optimizer from the parameters; an optimizer given to LightningCLI itself takes precedence.
            ``None``: SGD with learning rate 0.1.
        lr_scheduler: Makes the learning-rate scheduler, stepped once per epoch, from the optimizer. ``None``: none.

    Raises:
        ValueError: If ``num_classes`` is not a whole number from 2.

    Examples:
        >>> import torch
        >>> from lightning_weights.modules import MLP
        >>> model = Classifier(MLP(in_features=64), optimizer=torch.optim.SGD)
        >>> model(torch.zeros(2, 64)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int = 10,
        loss: nn.Module | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_number("num_classes", num_classes, low=2, whole=True)
        super().__init__()
        # by exclusion: a list of names would drop the class path that LightningCLI keeps among them and reads again
        self.save_hyperparameters(ignore=["network", "loss", "optimizer", "lr_scheduler"])
        self.network = network
        self.num_classes = num_classes
        self.loss = nn.CrossEntropyLoss() if loss is None else loss
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's logits, shape (N, num_classes), of inputs of shape (N, ...)."""
        return self.network(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        x, y = batch
        loss = self.loss(self(x), y)
        self.log("train/loss", loss, batch_size=len(y))
        return loss

    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Log ``val/loss`` and ``val/accuracy`` and return loss, logits and labels."""
        return self._evaluate("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Log ``test/loss`` and ``test/accuracy`` and return loss, logits and labels."""
        return self._evaluate("test", batch)

    def configure_optimizers(self) -> Any:
        """Return what ``optimizer`` and ``lr_scheduler`` make, in the form that LightningCLI gives them too."""
        # not a default of the argument: LightningCLI would mix its learning rate into whatever optimizer is chosen
        make = partial(torch.optim.SGD, lr=0.1) if self.optimizer is None else self.optimizer
        optimizer = make(self.parameters())
        scheduler = None if self.lr_scheduler is None else self.lr_scheduler(optimizer)
        return LightningCLI.configure_optimizers(self, optimizer, scheduler)

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, y = batch
        logits = self(x)
        loss = self.loss(logits, y)
        accuracy = multiclass_accuracy(logits, y, num_classes=self.num_classes, average="micro")
        # means rather than a metric object: one object would mix the loaders, and how many there are isn't known yet
        values = {f"{stage}/loss": loss, f"{stage}/accuracy": accuracy}
        self.log_dict(values, batch_size=len(y), sync_dist=True)
        return {"loss": loss, "preds": logits.detach(), "target": y}
