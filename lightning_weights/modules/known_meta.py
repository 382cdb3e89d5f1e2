"""Meta-training of the network that predicts weights."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI, LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_weights.errors import check_number
from lightning_weights.modules.known import KNOWN


class KNOWNMeta(LightningModule):
    r"""Train a [`KNOWN`][lightning_weights.modules.KNOWN] to predict the next value in histories of weights.

    $$\min \; \mathbb{E}\,\bigl|\theta_0 + \delta(w) - \theta_{-1}\bigr|
    + \lambda_k \sum |\text{outer kernels}| + \lambda_b \sum |\text{outer biases}|$$

    Batches are (histories of shape (N, S), the newest value last; what followed, of shape (N,)), as
    [`TrajectoryDataModule`][lightning_weights.data.TrajectoryDataModule] makes them, as they are: not normalised.
    It logs ``train/loss``, ``train/error`` (the mean absolute error), ``val/error`` and, to compare with,
    ``val/persistence``, the error of no change, and ``val/linear``, that of one more step like the last one.

    Args:
        history: Number S of values that a history has.
        lr: Learning rate of Adam. An optimizer given to LightningCLI itself takes precedence.
        l1_kernel: λ_k: factor of the absolute weights of the first and the last layer of both streams.
        l1_bias: λ_b: factor of the absolute biases of the same layers.
        leaky_slope: Slope of the LeakyReLU below 0.
        optimizer: Makes another optimizer than Adam from the parameters.
        lr_scheduler: Makes the learning-rate scheduler, stepped once per epoch, from the optimizer. ``None``: none.

    Raises:
        ValueError: If a number is out of range.

    Source: Jang, Kim, Kim 2026, arXiv:2508.05059.

    Examples:
        >>> meta = KNOWNMeta(history=4)
        >>> meta(torch.zeros(3, 4)).shape, sum(param.numel() for param in meta.parameters())
        (torch.Size([3]), 9297)
    """

    def __init__(
        self,
        history: int = 5,
        lr: float = 1e-3,
        l1_kernel: float = 1e-6,
        l1_bias: float = 0.1,
        leaky_slope: float = 0.3,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        for name, value in (("lr", lr), ("l1_kernel", l1_kernel), ("l1_bias", l1_bias)):
            check_number(name, value, low=0.0)
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.known = KNOWN(history, leaky_slope)
        self.lr = lr
        self.l1_kernel = l1_kernel
        self.l1_bias = l1_bias
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler

    def forward(self, w: Tensor) -> Tensor:
        """Return the changes δ of shape (N,) that are predicted for histories of shape (N, S)."""
        return self.known(w)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean absolute error of a batch and the penalties."""
        histories, following = batch
        error = (histories[:, -1] + self(histories) - following).abs().mean()
        loss = error + self.known.penalty(self.l1_kernel, self.l1_bias)
        self.log_dict({"train/loss": loss, "train/error": error}, batch_size=len(following))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the errors of a batch."""
        histories, following = batch
        last = histories[:, -1]
        predictions = {
            "error": last + self(histories),
            "persistence": last,
            "linear": 2 * last - histories[:, -2],
        }
        values = {f"val/{name}": (value - following).abs().mean() for name, value in predictions.items()}
        self.log_dict(values, batch_size=len(following), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Return Adam, or what ``optimizer`` makes, and the scheduler."""
        params = self.parameters()
        optimizer = torch.optim.Adam(params, lr=self.lr) if self.optimizer is None else self.optimizer(params)
        scheduler = None if self.lr_scheduler is None else self.lr_scheduler(optimizer)
        return LightningCLI.configure_optimizers(self, optimizer, scheduler)
