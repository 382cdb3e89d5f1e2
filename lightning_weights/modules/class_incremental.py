"""A LightningModule whose classes arrive in groups."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI, LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_weights.errors import check_number
from lightning_weights.functional.weight_align import distillation_weight
from lightning_weights.kernels.distillation_loss import distillation_loss
from lightning_weights.modules.incremental_linear import IncrementalLinear


class ClassIncrementalModule(LightningModule):
    r"""Learn groups of classes in turn with one head, by cross-entropy and distillation from the model before.

    With the logits o of all C classes and ô of the frozen model that the step before left behind, which knows the first
    C_o, at temperature T:

    $$L = (1 - \lambda)\, L_{CE}(o, y) + \lambda \sum_{k < C_o} -\hat q_k \log q_k, \qquad
    q = \mathrm{softmax}(o_{<C_o} / T), \quad \hat q = \mathrm{softmax}(\hat o / T), \quad \lambda = C_o / C$$

    ``begin_step`` is called before each group, by ``runners.IncrementalRunner`` or by hand; a fit on an empty head
    begins the first by itself if the data module has ``num_new``. Checkpoints hold the frozen model too. Use
    ``callbacks.WeightAligning`` with it, which clips and aligns the head.

    Logs ``train/loss``, ``val/loss``, ``val/accuracy`` and, from the second group on, ``val/accuracy_old`` and
    ``val/accuracy_new``, the same for test.

    Args:
        backbone: Module that turns inputs of shape (N, ...) into non-negative features of shape (N, feature_dim).
        feature_dim: Number of features.
        temperature: T of the distillation.
        kd_weight: λ, at least 0 and below 1. ``auto``: the share of old classes.
        bias: Whether the head has a bias, which alignment leaves as it is.
        lr: Learning rate of SGD.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD.
        milestones: Epochs after which the learning rate falls.
        gamma: Factor by which it falls.
        optimizer: Makes another optimizer from the parameters; lr, momentum and weight_decay are not used then.
        lr_scheduler: Makes another scheduler from the optimizer; milestones and gamma are not used then.

    Raises:
        ValueError: If an argument is out of range.

    Source: Zhao, Xiao, Gan, Zhang, Xia, 2020, arXiv:1911.07053; as in its reproductions the distillation loss has no
    factor T².

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> model = ClassIncrementalModule(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), feature_dim=8)
        >>> model.begin_step(2)
        >>> model.begin_step(3)
        >>> model(torch.zeros(1, 4)).shape, model.num_old
        (torch.Size([1, 5]), 2)
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        temperature: float = 2.0,
        kd_weight: float | Literal["auto"] = "auto",
        bias: bool = False,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 2e-4,
        milestones: tuple[int, ...] = (100, 150, 200),
        gamma: float = 0.1,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_number("temperature", temperature, low=0.0, low_allowed=False)
        if kd_weight != "auto":
            check_number("kd_weight", kd_weight, low=0.0, high=1.0)
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay), ("gamma", gamma)):
            check_number(name, value, low=0.0)
        if isinstance(milestones, str) or not isinstance(milestones, Sequence):
            raise ValueError(f"milestones is {milestones!r}; allowed is a list of epochs, such as [100, 150]")
        milestones = list(milestones)
        for index, epoch in enumerate(milestones):
            check_number(f"milestones[{index}]", epoch, low=1, whole=True)
        super().__init__()
        self.save_hyperparameters(ignore=["backbone", "optimizer", "lr_scheduler"])
        self.backbone = backbone
        self.head = IncrementalLinear(feature_dim, bias=bias)
        self.temperature = temperature
        self.kd_weight = kd_weight
        self.sgd = partial(torch.optim.SGD, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.decay = partial(torch.optim.lr_scheduler.MultiStepLR, milestones=milestones, gamma=gamma)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.increments: list[int] = []
        self.accuracy_old, self.accuracy_new = MeanMetric(), MeanMetric()
        # in a tuple: not a submodule, so that it is neither trained nor wrapped nor counted
        self._teacher: tuple[nn.Module, ...] = ()

    @property
    def num_old(self) -> int:
        """Number of classes of earlier groups."""
        return sum(self.increments[:-1])

    def begin_step(self, num_new: int) -> None:
        """Freeze a copy of the model to learn from, and add classes to the head.

        The optimizer of the step before must not be used any more.

        Args:
            num_new: Number of classes that arrive, at least 1.

        Raises:
            ValueError: If it is not a whole number from 1.
        """
        check_number("num_new", num_new, low=1, whole=True)
        teacher = (self._frozen_copy(),) if self.increments else ()
        self.head.grow(num_new)
        self._teacher = teacher
        self.increments.append(num_new)

    def _frozen_copy(self) -> nn.Module:
        return copy.deepcopy(nn.Sequential(self.backbone, self.head)).eval().requires_grad_(False)

    def features(self, x: Tensor) -> Tensor:
        """Return the backbone's features, shape (N, feature_dim), of inputs of shape (N, ...)."""
        return self.backbone(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of all classes so far, shape (N, C), of inputs of shape (N, ...)."""
        return self.head(self.backbone(x))

    def setup(self, stage: str) -> None:
        """Begin the first group, if nobody did and the data module says how many classes it has."""
        if not self.increments and hasattr(self.trainer.datamodule, "num_new"):
            self.begin_step(self.trainer.datamodule.num_new)

    def on_fit_start(self) -> None:
        """Check that the head has one output per class, and take the frozen model along to the device."""
        data = self.trainer.datamodule
        classes = data.num_old + data.num_new if hasattr(data, "num_new") else self.head.out_features
        if not self.head.out_features or classes != self.head.out_features:
            raise ValueError(
                f"the head has {self.head.out_features} outputs for {classes} classes; call begin_step(n) once before "
                f"each group of n classes, and resume with the data of the same step"
            )
        for teacher in self._teacher:
            teacher.to(self.head.weight)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        x, y = batch
        logits = self(x)
        weight, teacher_logits = 0.0, logits[:, :0]
        if self._teacher:
            weight = self.kd_weight
            weight = distillation_weight(self.num_old, self.head.out_features) if weight == "auto" else weight
        if weight:
            with torch.no_grad():
                teacher_logits = self._teacher[0](x)
        loss = distillation_loss(logits, teacher_logits, y, weight=weight, temperature=self.temperature)
        self.log("train/loss", loss, batch_size=len(y))
        return loss

    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Log loss and accuracies and return loss, logits and labels."""
        return self._evaluate("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Log loss and accuracies and return loss, logits and labels."""
        return self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, y = batch
        logits = self(x)
        loss = nn.functional.cross_entropy(logits, y)
        correct = (logits.argmax(dim=1) == y).float()
        values = {f"{stage}/loss": loss, f"{stage}/accuracy": correct.mean()}
        self.log_dict(values, batch_size=len(y), sync_dist=True)
        if self.num_old:
            # objects rather than means: a batch may hold no old class at all
            for name, metric, part in (
                ("accuracy_old", self.accuracy_old, y < self.num_old),
                ("accuracy_new", self.accuracy_new, y >= self.num_old),
            ):
                metric.update(correct[part])
                self.log(f"{stage}/{name}", metric, on_step=False, on_epoch=True)
        return {"loss": loss, "preds": logits.detach(), "target": y}

    def configure_optimizers(self) -> Any:
        """Return a fresh optimizer and schedule, in the form that LightningCLI gives them too."""
        optimizer = (self.optimizer or self.sgd)(self.parameters())
        scheduler = (self.lr_scheduler or self.decay)(optimizer)
        return LightningCLI.configure_optimizers(self, optimizer, scheduler)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the groups and the frozen model to a checkpoint."""
        teacher = self._teacher[0].state_dict() if self._teacher else None
        checkpoint["class_incremental"] = {"increments": list(self.increments), "teacher": teacher}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the groups and the frozen model; the head takes its size when its weights are loaded."""
        saved = checkpoint["class_incremental"]
        teacher = ()
        if saved["teacher"] is not None:
            teacher = (self._frozen_copy(),)
            teacher[0].load_state_dict(saved["teacher"])
        self.increments, self._teacher = list(saved["increments"]), teacher
