"""A LightningModule that trains a network with certified bounds and reports what is proved."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI, LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_weights.errors import check_choice, check_number
from lightning_weights.metrics.verified_error import VerifiedError
from lightning_weights.modules import _certified_fit as certified_fit
from lightning_weights.modules.certified_loss import CertifiedLoss, widened
from lightning_weights.modules.certifier import Certifier
from lightning_weights.modules.epsilon_schedule import EpsilonSchedule
from lightning_weights.modules.input_box import InputBox


class CertifiedClassifier(LightningModule):
    """Train a classifier whose robustness within an L∞ ball is proved, on batches of (raw inputs, class labels).

    Logs ``train/loss``, ``weights/ibp_warmup/*`` and per stage (``val``, ``test``), one of each per loader:

    - ``val/error``: share of samples that are classified wrongly,
    - ``val/verified_error``: share without a proof at ε_max, the number to compare and to monitor,
    - ``val/verified_error_current_eps``: the same at the ε that training is at.

    The forward pass takes raw inputs and normalises them. Checkpoints hold schedule and step: resuming with another
    schedule is refused. Load with ``CertifiedClassifier.load_from_checkpoint(path, net=..., schedule=...)``.

    Args:
        net: Network of supported layers (see `functional.intervals`) that turns normalised inputs into logits.
        num_classes: Number of classes K, at least 2.
        schedule: The radius ε as a function of the step, with ε_max.
        loss: The certified loss. ``None``: `CertifiedLoss` with its defaults.
        lr: Learning rate of the default optimizer, Adam.
        lr_milestones: Epochs after which the learning rate drops; none leaves it as it is.
        lr_gamma: Factor of every drop.
        mean: Mean per channel for normalising raw inputs. ``None``: 0.
        std: Standard deviation per channel for normalising raw inputs. ``None``: 1.
        input_range: Smallest and largest valid raw input, at which boxes are clipped.
        init: ``ibp`` initialises the weights at the start of a fresh fit so that widths keep their size, drawing from
            the global generator; ``keep`` leaves them.
        force_init: Whether ``ibp`` may overwrite a network that was trained or loaded before.
        optimizer: Makes the optimizer from the parameters; an optimizer given to LightningCLI itself takes precedence.
            ``None``: Adam with ``lr``, and the drops at ``lr_milestones``.
        lr_scheduler: Makes the learning-rate scheduler, stepped once per epoch, from the optimizer. ``None``: the drops
            at ``lr_milestones``.

    Raises:
        ValueError: If an argument is out of range; at the start of a fit, if ε would not reach ε_max, a resumed
            schedule differs, or a trained network would be initialised.

    Source: Shi, Wang, Zhang, Yi, Hsieh, 2021, arXiv:2103.17268.

    Examples:
        >>> import torch
        >>> from lightning_weights.modules import MLP
        >>> net = MLP(in_features=4, hidden=(8,), num_classes=3, batch_norm=True)
        >>> model = CertifiedClassifier(net, num_classes=3, schedule=EpsilonSchedule(max_eps=0.1))
        >>> model(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        schedule: EpsilonSchedule,
        loss: CertifiedLoss | None = None,
        lr: float = 5e-4,
        lr_milestones: list[int] | None = None,
        lr_gamma: float = 0.2,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        input_range: tuple[float, float] = (0.0, 1.0),
        init: Literal["ibp", "keep"] = "ibp",
        force_init: bool = False,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_number("num_classes", num_classes, low=2, whole=True)
        check_number("lr", lr, low=0.0, low_allowed=False)
        check_number("lr_gamma", lr_gamma, low=0.0, low_allowed=False)
        check_choice("init", init, ("ibp", "keep"))
        milestones = [] if lr_milestones is None else lr_milestones
        if not isinstance(milestones, Sequence) or isinstance(milestones, str):
            raise ValueError(f"lr_milestones is {lr_milestones!r}; allowed is a list of epochs or None")
        for index, epoch in enumerate(milestones):
            check_number(f"lr_milestones[{index}]", epoch, low=1, whole=True)
        super().__init__()
        # by exclusion, as in Classifier
        self.save_hyperparameters(ignore=["net", "schedule", "loss", "optimizer", "lr_scheduler"])
        self.net = net
        self.num_classes = num_classes
        self.certifier = Certifier(
            CertifiedLoss() if loss is None else loss, schedule, InputBox(mean, std, input_range)
        )
        self.lr = lr
        self.lr_milestones = list(milestones)
        self.lr_gamma = lr_gamma
        self.init = init
        self.force_init = force_init
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self._saved_progress: dict[str, Any] | None = None
        self._steps_per_epoch = 1
        self._last_step = -1
        self.errors = nn.ModuleList()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (N, num_classes), of raw inputs of shape (N, ...)."""
        return self.net(self.certifier.box.normalize(x))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep schedule and step."""
        checkpoint["certified_training"] = self.certifier.progress()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Set ε to what it was, so that evaluating a checkpoint does not report at ε = 0."""
        self._saved_progress = checkpoint["certified_training"]
        self.certifier.resume(self._saved_progress)

    def on_fit_start(self) -> None:
        """Check the run, and initialise the network if it is a fresh one."""
        certified_fit.prepare_fit(
            self.trainer, self.certifier, self.net, self.init, self.force_init, self._saved_progress
        )

    def on_train_start(self) -> None:
        """Check the run against the length of the data."""
        self._steps_per_epoch = certified_fit.start_training(self.trainer, self.certifier, self._saved_progress)
        self._last_step = self.trainer.global_step

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set ε for the step that the batch belongs to."""
        certified_fit.start_batch(self.trainer, self.certifier, self.net, self._steps_per_epoch)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the certified loss of a batch."""
        x, y = self._checked(batch)
        loss = self.certifier.loss(self.net, x, y)
        self.log("train/loss", loss, batch_size=len(y))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log what the loss saw, after real steps only."""
        if self.trainer.global_step != self._last_step:
            self._last_step = self.trainer.global_step
            certified_fit.log_progress(self.trainer, self, self.certifier)

    def on_train_end(self) -> None:
        """Notice a ramp that was not finished."""
        certified_fit.finish_training(self.trainer, self.certifier)

    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Log the errors and return logits, labels and margins at ε_max."""
        return self._evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Log the errors and return logits, labels and margins at ε_max."""
        return self._evaluate("test", batch, dataloader_idx)

    def configure_optimizers(self) -> Any:
        """Return what ``optimizer`` and ``lr_scheduler`` make, in the form that LightningCLI gives them too."""
        # not a default of the argument: LightningCLI would mix its learning rate into whatever optimizer is chosen
        make = partial(torch.optim.Adam, lr=self.lr) if self.optimizer is None else self.optimizer
        optimizer = make(self.parameters())
        if self.lr_scheduler is not None:
            scheduler: Any = self.lr_scheduler(optimizer)
        elif self.optimizer is None and self.lr_milestones:
            scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, self.lr_milestones, self.lr_gamma)
        else:
            scheduler = None
        return LightningCLI.configure_optimizers(self, optimizer, scheduler)

    def _checked(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = batch
        if y.min() < 0 or y.max() >= self.num_classes:
            raise ValueError(
                f"labels go from {y.min()} to {y.max()}; allowed are 0 to {self.num_classes - 1}, as num_classes is "
                f"{self.num_classes}"
            )
        return x, y

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor], loader: int) -> dict[str, Tensor]:
        x, y = self._checked(batch)
        certifier = self.certifier
        logits = self(widened(x))
        bounds = certifier.margins(self.net, x, y)
        current = bounds if certifier.at_max_eps else certifier.margins(self.net, x, y, certifier.eps)
        margins = {"error": point_margins(logits, y), "verified_error": bounds, "verified_error_current_eps": current}
        while len(self.errors) <= loader:  # how many loaders there are isn't known earlier
            self.errors.append(nn.ModuleDict({name: VerifiedError() for name in margins}).to(self.device))
        for name, values in margins.items():
            metric = self.errors[loader][name]
            metric.update(values)
            attribute = f"errors.{loader}.{name}"
            self.log(f"{stage}/{name}", metric, metric_attribute=attribute, batch_size=len(y))
        return {"preds": logits, "target": y, "margin_lb": bounds}


def point_margins(logits: Tensor, y: Tensor) -> Tensor:
    """Return the margins of the true class over the best of the others, shape (N, 1)."""
    own = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], -torch.inf)
    return own.float() - others.amax(dim=1, keepdim=True).float()
