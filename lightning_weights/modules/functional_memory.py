"""A LightningModule that trains a generator of LoRA matrices on the loss of a frozen backbone."""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI, LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_weights.errors import LightningWeightsWarning, check_number
from lightning_weights.modules.adapted_backbone import FROZEN, AdaptedBackbone, Change
from lightning_weights.modules.generated_lora import GeneratedLoRA
from lightning_weights.modules.lora_files import export_lora

PARTS = ("condition", "inputs", "target", "task")


class MemoryBatch(NamedTuple):
    """What a batch holds.

    Attributes:
        condition: What the condition encoder takes.
        inputs: A tensor, several as a tuple or list, or a mapping: the arguments of the backbone.
        target: What the loss compares with; ``None`` if the backbone computes its loss itself.
        condition_mask: Which tokens of the condition count.
        size: Number of samples.

    Examples:
        >>> MemoryBatch(torch.zeros(2, 1, 3), torch.zeros(2, 4), torch.zeros(2), None, 2).size
        2
    """

    condition: Any
    inputs: Any
    target: Any
    condition_mask: Tensor | None
    size: int


class FunctionalMemory(LightningModule):
    r"""Train a generator that gives every sample weights of its own, by the downstream loss alone.

    $$\min_\varphi \; \mathbb{E}\; \ell\bigl(f_{W_0 + \Delta W(g_\varphi(c))}(x),\, y\bigr)$$

    Where tasks pull in opposite directions, one set of fine-tuned weights is a compromise. Here the backbone stands
    still, and what is learned is the map from a condition to weights: nothing is optimised at test time, and no
    collection of trained adapters is needed before.

    A batch is a tuple ``(condition, inputs, target)``, or with labels of tasks as a fourth entry, which
    `ConditionShuffleProbe` reads, or a mapping with these names (``task``, ``target`` and ``condition_mask`` may be
    left out). Inputs are a tensor, a tuple or list of arguments, or a mapping of arguments by name.

    Logs ``train/loss``, ``val/loss`` and ``test/loss``. Checkpoints hold the generator and the fingerprint of the
    backbone; loading into another backbone is refused. A finished memory is ``module.memory``.

    Args:
        backbone: Network to adapt; it is frozen.
        generator: Makes the matrices, as of `AdaptedBackbone`: a `WeightGenerator`, or a module with ``sizes`` and the
            same result.
        condition_encoder: As of `AdaptedBackbone`: a frozen module, ``backbone`` or ``None``.
        loss_fn: Loss of outputs and target, a mean over samples. ``None``: the backbone's own, in its result's
            ``loss``.
        lr: Learning rate, if no optimizer is given.
        condition_dropout: Probability with which a condition is replaced by zeros in training.
        optimizer: Makes the optimizer from the generator's parameters. ``None``: AdamW with ``lr``.
        lr_scheduler: Makes the learning-rate scheduler from the optimizer; it is stepped after every optimizer step.
            ``None``: none.

    Raises:
        ValueError: If an argument is out of range, or generator and backbone don't fit.

    Source: Wu et al. 2026, arXiv:2603.07236. The code for training is not published: loss and optimizer are inferred.

    Examples:
        >>> from lightning_weights.modules import WeightGenerator
        >>> backbone = nn.Sequential(nn.Linear(4, 3))
        >>> generator = WeightGenerator({"0": (4, 3)}, num_layers=1, cond_dim=5, prefix="")
        >>> module = FunctionalMemory(backbone, generator, loss_fn=nn.MSELoss())
        >>> batch = torch.randn(2, 6, 5), torch.randn(2, 4), torch.randn(2, 3)
        >>> module.memory_loss(batch).shape
        torch.Size([])
    """

    def __init__(
        self,
        backbone: nn.Module,
        generator: nn.Module,
        condition_encoder: nn.Module | Literal["backbone"] | None = None,
        loss_fn: nn.Module | None = None,
        lr: float = 1e-4,
        condition_dropout: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_number("lr", lr, low=0.0)
        super().__init__()
        # by exclusion: a list of names would drop the class path that LightningCLI keeps among them and reads again
        objects = ["backbone", "generator", "condition_encoder", "loss_fn", "optimizer", "lr_scheduler"]
        self.save_hyperparameters(ignore=objects)
        self.memory = AdaptedBackbone(backbone, generator, condition_encoder, condition_dropout)
        self.loss_fn = loss_fn
        self.lr = lr
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler

    def forward(self, condition: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the backbone with the matrices of its condition, see ``AdaptedBackbone``."""
        return self.memory(condition, *args, **kwargs)

    def memory_loss(self, batch: Any, change: Change | None = None) -> Tensor:
        """Return the loss of a batch.

        Args:
            batch: A batch as of the class.
            change: Changes the matrices before they are used, to see what they are worth.
        """
        parts = split_batch(batch)
        args, kwargs = _arguments(parts.inputs)
        outputs = self.memory(parts.condition, *args, condition_mask=parts.condition_mask, change=change, **kwargs)
        if self.loss_fn is not None:
            return self.loss_fn(outputs, parts.target)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
        if loss is None:
            raise ValueError("loss_fn is None, but the backbone's result has no loss; give one, or labels as inputs")
        return loss

    def on_fit_start(self) -> None:
        """Say so where more than the generator requires gradients.

        Warns:
            LightningWeightsWarning: If parameters of backbone or encoder do.
        """
        named = self.memory.named_parameters()
        if left := [name for name, param in named if param.requires_grad and name.startswith(FROZEN)]:
            warnings.warn(
                f"{len(left)} parameters of backbone and encoder require gradients, such as {left[0]}, but only the "
                f"generator is optimized and saved; freeze them with requires_grad_(False)",
                LightningWeightsWarning,
                stacklevel=2,
            )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss = self.memory_loss(batch)
        self.log("train/loss", loss, batch_size=split_batch(batch).size, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Log ``val/loss`` and return the loss."""
        return self._evaluate("val", batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Log ``test/loss`` and return the loss."""
        return self._evaluate("test", batch)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Return the adapted backbone's outputs."""
        parts = split_batch(batch)
        args, kwargs = _arguments(parts.inputs)
        return self.memory(parts.condition, *args, condition_mask=parts.condition_mask, **kwargs)

    def _evaluate(self, stage: str, batch: Any) -> dict[str, Tensor]:
        loss = self.memory_loss(batch)
        self.log(f"{stage}/loss", loss, batch_size=split_batch(batch).size, sync_dist=True)
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        """Return what ``optimizer`` and ``lr_scheduler`` make of the generator's parameters."""
        make = partial(torch.optim.AdamW, lr=self.lr) if self.optimizer is None else self.optimizer
        optimizer = make([param for param in self.memory.generator.parameters() if param.requires_grad])
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        if hasattr(scheduler, "monitor"):
            return LightningCLI.configure_optimizers(self, optimizer, scheduler)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @torch.no_grad()
    def adapters(self, batch: Any) -> GeneratedLoRA:
        """Return the matrices for every sample of a batch.

        Args:
            batch: A batch as of the class.
        """
        parts = split_batch(batch)
        return self.memory.adapters(parts.condition, parts.condition_mask)

    def export_lora(self, batch: Any, folder: str, index: int = 0, base_model: str | None = None) -> None:
        """Write the matrices of one sample as an ordinary LoRA that peft reads.

        Args:
            batch: A batch as of the class.
            folder: Where the files go.
            index: Number of the sample.
            base_model: Name or path of the backbone, for peft.
        """
        export_lora(self.adapters(batch), index, folder, base_model)


def split_batch(batch: Any) -> MemoryBatch:
    """Return the parts of a batch.

    Args:
        batch: A tuple, list or mapping as of `FunctionalMemory`.

    Raises:
        ValueError: If it is something else.
    """
    if isinstance(batch, Mapping):
        if unknown := batch.keys() - {*PARTS, "condition_mask"}:
            raise ValueError(f"the batch has {', '.join(sorted(map(str, unknown)))}; allowed are {', '.join(PARTS)}")
        found = batch
    elif isinstance(batch, Sequence) and 2 <= len(batch) <= len(PARTS):
        found = dict(zip(PARTS, batch, strict=False))
    else:
        raise ValueError(f"the batch is a {type(batch).__name__}; allowed is (condition, inputs, target[, task])")
    if missing := {"condition", "inputs"} - found.keys():
        raise ValueError(f"the batch has no {' and no '.join(sorted(missing))}")
    condition, mask = found["condition"], found.get("condition_mask")
    return MemoryBatch(condition, found["inputs"], found.get("target"), mask, _size(condition))


def _size(condition: Any) -> int:
    if isinstance(condition, GeneratedLoRA):
        return condition.batch_size
    return len(next(iter(condition.values())) if isinstance(condition, Mapping) else condition)


def _arguments(inputs: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), inputs
    return (inputs, {}) if isinstance(inputs, (tuple, list)) else ((inputs,), {})
