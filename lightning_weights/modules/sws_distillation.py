"""A LightningModule that trains an auxiliary network on a teacher's answers."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI, LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional._safetensors import safetensors
from lightning_weights.functional.learngene_sws import check_alpha, sws_loss
from lightning_weights.modules._logits import logits_of
from lightning_weights.modules.learngene import PURPOSE, extract_learngene


class SWSDistillation(LightningModule):
    r"""Train a student, such as an auxiliary network of shared stages, on batches of (inputs, labels) and a teacher.

    $$L = (1 - \alpha) \operatorname{CE}(z, y) + \alpha L_\text{KD}, \qquad
    L_\text{soft} = \frac{\tau^2}{B C} \sum p (\log p - \log q), \quad
    L_\text{hard} = \operatorname{CE}(z, \operatorname{argmax} z_T)$$

    The teacher is in evaluation mode and gets no gradients; it is in no state dict, no checkpoint and among no
    parameters, and follows the student to its device and type. It sees the very inputs that the student sees, mixed and
    augmented as they are. Either may return logits, a tuple that begins with them, or an output with ``logits``.

    Logs ``train/loss``, and as means over all images of all processes ``val/loss`` (cross-entropy), ``val/accuracy``,
    ``val/agreement`` (how often student and teacher answer alike) and the same for ``test``. ``validation_step`` and
    ``test_step`` return ``loss``, ``preds`` (logits) and ``target``.

    Hyper-parameters in checkpoints leave out objects: load with
    ``SWSDistillation.load_from_checkpoint(path, student=..., teacher=...)``.

    Args:
        student: Network that turns inputs of shape (B, ...) into logits of shape (B, num_classes).
        teacher: Trained network that does the same; frozen here. ``None``: there is none, and α has to be 0.
        num_classes: Number of classes, at least 2.
        kind: ``soft`` for the teacher's probabilities, ``hard`` for its answers.
        alpha: α in [0, 1]; with 1 labels are not looked at.
        tau: Temperature τ > 0 of soft distillation.
        reduction: Whether soft distillation is divided by the number of logits (``numel``) or by that of images
            (``batch``), which is ``num_classes`` times as much. fp16 needs the latter, or a loss scaler.
        label_smoothing: What labels give up to all classes in the cross-entropy, at least 0 and below 1.
        teacher_checkpoint: Lightning checkpoint of the module in which the teacher was trained; its weights are loaded.
        save_to: File that the student's learngene is written to at the end of a fit, except with ``fast_dev_run``.
        optimizer: Makes the optimizer from the parameters; an optimizer given to LightningCLI itself takes precedence.
            ``None``: AdamW with learning rate 5e-4 and weight decay 0.05.
        lr_scheduler: Makes the learning-rate scheduler, stepped once per epoch, from the optimizer. ``None``: none.

    Raises:
        ValueError: If a number or choice is not allowed, there is no teacher where one is needed, it shares weights
            with the student or is not in its checkpoint; at the start of a fit, if there is no learngene to write; in
            training, if the two differ in classes or return something else than logits.

    Source: Xia et al. 2024, arXiv:2404.16897.

    Examples:
        >>> from lightning_weights.modules import MLP, CompactViT
        >>> student = CompactViT(depth=5, repeats=[2, 1, 2])
        >>> model = SWSDistillation(student, teacher=MLP(64))
        >>> model(torch.zeros(2, 64)).shape, any("teacher" in key for key in model.state_dict())
        (torch.Size([2, 10]), False)
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        num_classes: int = 10,
        kind: Literal["soft", "hard"] = "soft",
        alpha: float = 1.0,
        tau: float = 1.0,
        reduction: Literal["numel", "batch"] = "numel",
        label_smoothing: float = 0.1,
        teacher_checkpoint: str | None = None,
        save_to: str | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_number("num_classes", num_classes, low=2, whole=True)
        check_choice("kind", kind, ("soft", "hard"))
        check_alpha(alpha)
        check_number("tau", tau, low=0.0, low_allowed=False)
        check_choice("reduction", reduction, ("numel", "batch"))
        check_number("label_smoothing", label_smoothing, low=0.0, high=1.0)
        if teacher is None and (alpha > 0.0 or teacher_checkpoint is not None):
            raise ValueError(
                f"teacher is None, but alpha is {alpha} and teacher_checkpoint {teacher_checkpoint!r}; give a teacher, "
                f"or learn from labels alone with alpha=0"
            )
        if teacher is not None:
            _prepare(teacher, student, teacher_checkpoint)
        super().__init__()
        self.save_hyperparameters(ignore=["student", "teacher", "optimizer", "lr_scheduler"])
        self.student = student
        self._teacher = (teacher,)  # a tuple hides it from nn.Module
        self.save_to = save_to
        self.num_classes = num_classes
        self.loss = partial(
            sws_loss, kind=kind, alpha=alpha, tau=tau, reduction=reduction, label_smoothing=label_smoothing
        )
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler

    @property
    def teacher(self) -> nn.Module | None:
        """The teacher, if there is one."""
        return self._teacher[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return the student's logits, shape (B, num_classes), of inputs of shape (B, ...)."""
        return logits_of(self.student(x), "student")

    @torch.no_grad()
    def teach(self, x: Tensor) -> Tensor:
        """Return the teacher's logits, shape (B, num_classes), of inputs of shape (B, ...).

        Raises:
            ValueError: If there is no teacher, or it returns no logits.
        """
        if self.teacher is None:
            raise ValueError("teacher is None, and nobody else can teach; give one to the constructor")
        teacher, like = self.teacher.eval(), next(self.student.parameters())
        mine = next((param for param in teacher.parameters() if param.is_floating_point()), like)
        if (mine.device, mine.dtype) != (like.device, like.dtype):
            with torch.inference_mode(mode=False):  # what is moved in a validation has to be of use later
                teacher.to(device=like.device, dtype=like.dtype)
        return logits_of(teacher(x), "teacher")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        x, y = batch
        logits = self(x)
        loss = self.loss(logits, logits.detach() if self.teacher is None else self.teach(x), y)
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

    def on_fit_start(self) -> None:
        """Find out now, not after the last epoch, whether there will be a learngene to write."""
        if self.save_to is not None:
            safetensors("hf", PURPOSE)
            extract_learngene(self)

    def on_train_end(self) -> None:
        """Write the learngene, except in a trial run (``fast_dev_run``)."""
        if self.save_to is not None and not self.trainer.fast_dev_run:
            learngene = extract_learngene(self)
            if self.trainer.is_global_zero:
                learngene.save(self.save_to)

    def configure_optimizers(self) -> Any:
        """Return what ``optimizer`` and ``lr_scheduler`` make, in the form that LightningCLI gives them too."""
        default = partial(torch.optim.AdamW, lr=5e-4, weight_decay=0.05)
        optimizer = (default if self.optimizer is None else self.optimizer)(self.parameters())
        scheduler = None if self.lr_scheduler is None else self.lr_scheduler(optimizer)
        return LightningCLI.configure_optimizers(self, optimizer, scheduler)

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, y = batch
        logits = self(x)
        loss = nn.functional.cross_entropy(logits, y)
        values = {
            f"{stage}/loss": loss,
            f"{stage}/accuracy": multiclass_accuracy(logits, y, num_classes=self.num_classes, average="micro"),
        }
        if self.teacher is not None:
            values[f"{stage}/agreement"] = (logits.argmax(1) == self.teach(x).argmax(1)).float().mean()
        self.log_dict(values, batch_size=len(y), sync_dist=True)
        return {"loss": loss, "preds": logits.detach(), "target": y}


def _prepare(teacher: nn.Module, student: nn.Module, checkpoint: str | None) -> None:
    """Load and freeze a teacher."""
    if {id(param) for param in student.parameters()} & {id(param) for param in teacher.parameters()}:
        raise ValueError(
            "teacher shares parameters with the student, which would be frozen with it; give a copy: "
            "copy.deepcopy(network)"
        )
    if checkpoint is not None:
        if not Path(checkpoint).is_file():
            raise ValueError(f"teacher_checkpoint is {checkpoint!r}, which is not there; train the teacher first")
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        saved = saved.get("state_dict", saved)
        names = list(teacher.state_dict())
        prefixes = [key.removesuffix(names[0]) for key in saved if f".{key}".endswith(f".{names[0]}")]
        whole = [prefix for prefix in prefixes if all(f"{prefix}{name}" in saved for name in names)]
        if len(whole) != 1:
            raise ValueError(
                f"teacher_checkpoint is {checkpoint!r}, in which {len(whole)} networks have all tensors of the "
                f"teacher, {names[0]} and {len(names) - 1} more; allowed is one. Its tensors are {', '.join(saved)}"
            )
        teacher.load_state_dict({name: saved[f"{whole[0]}{name}"] for name in names})
    teacher.eval().requires_grad_(False)
