"""A LightningModule that trains a classification network against adversarial inputs."""

from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI, LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from lightning_weights.errors import check_number
from lightning_weights.functional.attacks import pgd_attack
from lightning_weights.modules.trades_loss import TradesLoss

EVALUATION_SEED = 0  # of the attack's random start: evaluating takes nothing from the generator of training


class RobustClassifier(LightningModule):
    """Train a network with TRADES on batches of (inputs, class labels), and evaluate it under attack.

    Logs ``train/loss`` and, as means over all images of all processes, ``val/loss``, ``val/accuracy``,
    ``val/adversarial_accuracy`` and the same for ``test``. Adversarial accuracy is that under projected gradient ascent
    of the cross-entropy inside the box of ``adversary``, with steps of ε / 4. ``validation_step`` and ``test_step``
    return ``loss``, ``preds`` (logits of clean inputs) and ``target``.

    Hyper-parameters in checkpoints leave out objects: load with
    ``RobustClassifier.load_from_checkpoint(path, network=...)``.

    Args:
        network: Module that turns inputs of shape (N, channels, ...) into logits of shape (N, num_classes).
        num_classes: Number of classes, at least 2.
        adversary: Loss with its attack. ``None``: TRADES with the paper's numbers for inputs from 0 to 1.
        attack_steps: Steps of the attack in evaluation, from 0.
        attack_restarts: Most number of attempts per input in evaluation, from 1.
        optimizer: Makes the optimizer from the parameters; an optimizer given to LightningCLI itself takes precedence.
            ``None``: SGD with learning rate 0.1 and Nesterov momentum 0.9, and no weight decay, as TSCNC wants it.
        lr_scheduler: Makes the learning-rate scheduler, stepped once per epoch, from the optimizer. ``None``: none.

    Raises:
        ValueError: If a number is out of range.

    Source: Feng et al. 2025, arXiv:2503.20454, with the loss of Zhang et al. 2019, arXiv:1901.08573.

    Examples:
        >>> from lightning_weights.modules import MLP
        >>> model = RobustClassifier(MLP(in_features=64), adversary=TradesLoss(epsilon=0.1, step_size=0.05, steps=4))
        >>> model(torch.zeros(2, 64)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int = 10,
        adversary: TradesLoss | None = None,
        attack_steps: int = 10,
        attack_restarts: int = 1,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_number("num_classes", num_classes, low=2, whole=True)
        check_number("attack_steps", attack_steps, low=0, whole=True)
        check_number("attack_restarts", attack_restarts, low=1, whole=True)
        super().__init__()
        self.save_hyperparameters(ignore=["network", "adversary", "optimizer", "lr_scheduler"])
        self.network = network
        self.num_classes = num_classes
        self.adversary = TradesLoss() if adversary is None else adversary
        self.attack_steps = attack_steps
        self.attack_restarts = attack_restarts
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's logits, shape (N, num_classes), of inputs of shape (N, channels, ...)."""
        return self.network(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the robust loss of a batch."""
        x, y = batch
        loss = self.adversary(self.network, x, y)
        self.log("train/loss", loss, batch_size=len(y))
        return loss

    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Log the three values of ``val`` and return loss, logits and labels."""
        return self._evaluate("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Log the three values of ``test`` and return loss, logits and labels."""
        return self._evaluate("test", batch)

    def configure_optimizers(self) -> Any:
        """Return what ``optimizer`` and ``lr_scheduler`` make, in the form that LightningCLI gives them too."""
        default = partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True)
        optimizer = (default if self.optimizer is None else self.optimizer)(self.parameters())
        scheduler = None if self.lr_scheduler is None else self.lr_scheduler(optimizer)
        return LightningCLI.configure_optimizers(self, optimizer, scheduler)

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, y = batch
        epsilon = self.adversary.epsilon
        logits = self(x)
        attacked = pgd_attack(
            self.network,
            x,
            y,
            epsilon=epsilon,
            step_size=[size / 4 for size in epsilon] if isinstance(epsilon, list) else epsilon / 4,
            steps=self.attack_steps,
            restarts=self.attack_restarts,
            clip_min=self.adversary.clip_min,
            clip_max=self.adversary.clip_max,
            generator=torch.Generator().manual_seed(EVALUATION_SEED),
        )
        loss = nn.functional.cross_entropy(logits, y)
        values = {f"{stage}/loss": loss}
        for name, scores in (("accuracy", logits), ("adversarial_accuracy", self(attacked))):
            accuracy = multiclass_accuracy(scores, y, num_classes=self.num_classes, average="micro")
            values[f"{stage}/{name}"] = accuracy
        self.log_dict(values, batch_size=len(y), sync_dist=True)
        return {"loss": loss, "preds": logits.detach(), "target": y}
