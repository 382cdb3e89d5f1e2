"""A LightningModule around any regression network."""

from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI, LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.modules._batch_inputs import inputs_of


class Regressor(LightningModule):
    r"""Train a network on batches of (inputs, numbers), by their mean squared error.

    $$f(x) = \mu + \sigma\,n(x), \qquad L = \frac{1}{B} \sum_i \frac{(f(x_i) - y_i)^2}{\sigma^2}$$

    Logs ``train/loss``, ``val/loss`` and ``test/loss``, and ``val/mse`` and ``test/mse`` in the units of the targets,
    as means over all samples of all processes. ``validation_step`` and ``test_step`` return ``loss``, ``preds`` and
    ``target``; ``predict_step`` takes the batches that training takes.

    Hyper-parameters in checkpoints leave out objects: load with ``Regressor.load_from_checkpoint(path, network=...)``.

    Args:
        network: Module n that turns inputs of shape (N, ...) into numbers of shape (N, outputs) or (N,).
        mean: μ, about the targets' mean.
        std: σ, about their standard deviation.
        optimizer: Makes the optimizer from the parameters; an optimizer given to LightningCLI itself takes precedence.
            ``None``: Adam with learning rate 0.01.
        lr_scheduler: Makes the learning-rate scheduler, stepped once per epoch, from the optimizer. ``None``: none.

    Raises:
        ValueError: If ``mean`` is not a finite number, or ``std`` not one above 0.

    Examples:
        >>> import torch
        >>> from lightning_weights.modules import MLP
        >>> model = Regressor(MLP(in_features=10, hidden=(16,), num_classes=1), mean=62.0, std=19.0)
        >>> model(torch.zeros(2, 10)).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        network: nn.Module,
        mean: float = 0.0,
        std: float = 1.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_number("mean", mean, low=-torch.inf, low_allowed=False)
        check_number("std", std, low=0.0, low_allowed=False)
        super().__init__()
        # by exclusion: a list of names would drop the class path that LightningCLI keeps among them and reads again
        self.save_hyperparameters(ignore=["network", "optimizer", "lr_scheduler"])
        self.network = network
        self.mean = mean
        self.std = std
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler

    def forward(self, x: Tensor) -> Tensor:
        """Return predictions of shape (N, outputs) or (N,), in the units of the targets."""
        return self.network(x) * self.std + self.mean

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss = nn.functional.mse_loss(*self._predict(batch)) / self.std**2
        self.log("train/loss", loss, batch_size=len(batch[1]))
        return loss

    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Log ``val/loss`` and ``val/mse`` and return loss, predictions and targets."""
        return self._evaluate("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Log ``test/loss`` and ``test/mse`` and return loss, predictions and targets."""
        return self._evaluate("test", batch)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the predictions of a batch, which may be inputs alone."""
        return self(inputs_of(batch))

    def configure_optimizers(self) -> Any:
        """Return what ``optimizer`` and ``lr_scheduler`` make, in the form that LightningCLI gives them too."""
        # not a default of the argument: LightningCLI would mix its learning rate into whatever optimizer is chosen
        make = partial(torch.optim.Adam, lr=0.01) if self.optimizer is None else self.optimizer
        optimizer = make(self.parameters())
        scheduler = None if self.lr_scheduler is None else self.lr_scheduler(optimizer)
        return LightningCLI.configure_optimizers(self, optimizer, scheduler)

    def _predict(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = batch
        found = self(x)
        if found.numel() != y.numel():
            raise ValueError(
                f"the network gives predictions of shape {tuple(found.shape)} for targets of shape {tuple(y.shape)}; "
                f"as many are needed, such as (N, 1) for (N,)"
            )
        return found, y.reshape(found.shape).to(found.dtype)

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        found, y = self._predict(batch)
        mse = nn.functional.mse_loss(found, y)
        loss = mse / self.std**2
        self.log_dict({f"{stage}/loss": loss, f"{stage}/mse": mse}, batch_size=len(y), sync_dist=True)
        return {"loss": loss, "preds": found.detach(), "target": y}
