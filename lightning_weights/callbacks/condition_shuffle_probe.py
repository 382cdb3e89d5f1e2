"""When generated weights are put to the test: other samples' weights, their mean, and whether tasks conflict."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_weights.callbacks._lean_callback import LeanCallback
from lightning_weights.errors import ShardedParameterError, check_number
from lightning_weights.functional.hy_wu import centred_similarity, cosine_matrix, group_means
from lightning_weights.modules import GeneratedLoRA

NAMES = (
    *("loss_matched", "loss_shuffled", "loss_averaged"),
    *("gradient_cosine", "gradient_cosine_min", "similarity_within", "similarity_across"),
)


class ConditionShuffleProbe(LeanCallback):
    r"""Tell in every validation whether it matters which sample's weights a sample gets, and whether tasks conflict.

    It works with every module that has, itself or in one of its parts, a method ``memory_loss(batch, change)``, as
    `FunctionalMemory` does: ``change`` is a function that changes the generated matrices before they are used.

    After validation it logs ``weights/hy_wu/`` ``loss_matched``, the loss as it is, ``loss_shuffled``, with the
    matrices of the next sample in the batch, and ``loss_averaged``, with the batch's mean of A and of B. A memory that
    works has a far lower first one. Where batches hold labels of tasks (``task``, or a fourth entry), it also logs
    ``gradient_cosine``, the mean over pairs of tasks of the cosine between their gradients in the averaged matrices,
    and ``gradient_cosine_min``: below zero tasks that share weights pull apart; and ``similarity_within`` and
    ``similarity_across`` tasks, cosines of the matrices less their mean.

    What was found last is in ``values``.

    Args:
        every_n_epochs: Validations of which epochs are probed: every that many.
        max_batches: Batches of a validation that are looked at, which take four passes more each. ``None``: all.

    Raises:
        ValueError: If an argument is out of range.
        MisconfigurationException: If there is no ``memory_loss``.
        ShardedParameterError: If weights are sharded (FSDP2).

    Source: the controls of Wu et al. 2026, arXiv:2603.07236.

    Examples:
        >>> ConditionShuffleProbe(every_n_epochs=5).every_n_epochs
        5

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.ConditionShuffleProbe
              init_args: {every_n_epochs: 5}
        ```
    """

    def __init__(self, every_n_epochs: int = 1, max_batches: int | None = None) -> None:
        check_number("every_n_epochs", every_n_epochs, low=1, whole=True)
        if max_batches is not None:
            check_number("max_batches", max_batches, low=1, whole=True)
        self.every_n_epochs = every_n_epochs
        self.max_batches = max_batches
        self._reset()

    def _reset(self) -> None:
        self._values: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._weights: dict[str, int] = {}

    @property
    def values(self) -> dict[str, float]:
        """What the last probe has found, by what comes after ``weights/hy_wu/``."""
        return dict(self._values)

    def state_dict(self) -> dict[str, Any]:
        """Return what the last probe has found."""
        return {"values": self.values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self._values = dict(state_dict["values"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is something to probe."""
        _memory(pl_module)

    def _due(self, trainer: Trainer) -> bool:
        return not trainer.sanity_checking and trainer.current_epoch % self.every_n_epochs == 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._sums, self._weights = {}, {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look at a batch."""
        if not self._due(trainer):
            return
        if self.max_batches is not None and batch_idx >= self.max_batches:
            return
        # what validation makes are inference tensors, through which no gradient goes
        with torch.inference_mode(False):
            own = apply_to_collection(batch, Tensor, Tensor.clone)
            size, found = probe(_memory(pl_module), own)
        for name, value in found.items():
            self._sums[name] = self._sums.get(name, 0.0) + size * value
            self._weights[name] = self._weights.get(name, 0) + size

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means over the batches of all processes."""
        if not self._due(trainer):
            return
        own = [[self._sums.get(name, 0.0), self._weights.get(name, 0)] for name in NAMES]
        totals = torch.tensor(own, dtype=torch.float32, device=pl_module.device)
        sums, weights = trainer.strategy.reduce(totals, reduce_op="sum").t().tolist()
        self._values = {name: sums[place] / weights[place] for place, name in enumerate(NAMES) if weights[place]}
        named = {f"weights/hy_wu/{name}": value for name, value in self._values.items()}
        pl_module.log_dict(named, sync_dist=True)


@torch.no_grad()
def probe(memory: Any, batch: Any) -> tuple[int, dict[str, float]]:
    """Return the number of samples of a batch and what the probe finds in it.

    Args:
        memory: Has a method ``memory_loss(batch, change)``.
        batch: A batch of it.
    """
    seen: list[GeneratedLoRA] = []

    def keep(adapters: GeneratedLoRA) -> GeneratedLoRA:
        seen.append(adapters)
        return adapters

    found = {"loss_matched": float(memory.memory_loss(batch, keep))}
    adapters = seen[0]
    size = adapters.batch_size
    if size > 1:
        order = torch.arange(size).roll(-1)
        found["loss_shuffled"] = float(memory.memory_loss(batch, lambda own: own.select(order)))
        found["loss_averaged"] = float(memory.memory_loss(batch, lambda own: own.mean()))
    tasks = _tasks(batch)
    if tasks is not None and len(tasks.unique()) > 1:
        found |= _conflicts(memory, batch, adapters, tasks)
    return size, found


def task_gradients(memory: Any, batch: Any, tasks: Tensor) -> Tensor:
    """Return the gradient of every task's mean loss in matrices that all samples share, their mean (tasks, numbers).

    Args:
        memory: Has a method ``memory_loss(batch, change)``.
        batch: A batch of it.
        tasks: Task of every sample (N,).
    """
    leaves: list[Tensor] = []

    def shared(tensor: Tensor) -> Tensor:
        # one copy per sample, so that one backward pass has the gradients of all samples
        leaves.append(tensor.detach().mean(0, keepdim=True).repeat(len(tasks), 1, 1).requires_grad_())
        return leaves[-1]

    with torch.enable_grad():
        loss = memory.memory_loss(batch, lambda own: own.map(shared))
        slopes = torch.autograd.grad(loss, leaves, allow_unused=True)
    flat = torch.cat([slope.flatten(1) for slope in slopes if slope is not None], dim=1)
    return group_means(flat, tasks)[1]


def _conflicts(memory: Any, batch: Any, adapters: GeneratedLoRA, tasks: Tensor) -> dict[str, float]:
    """Compare tasks: how their gradients agree, and how alike the matrices of their samples are."""
    means = task_gradients(memory, batch, tasks)
    rows, columns = torch.triu_indices(len(means), len(means), 1)
    cosines = cosine_matrix(means)[rows, columns]
    within, across = centred_similarity(adapters.flatten(), tasks)
    found = {
        "gradient_cosine": cosines.mean(),
        "gradient_cosine_min": cosines.min(),
        "similarity_within": within,
        "similarity_across": across,
    }
    return {name: float(value) for name, value in found.items() if bool(value.isfinite())}


def _tasks(batch: Any) -> Tensor | None:
    if isinstance(batch, Mapping):
        return batch.get("task")
    return batch[3] if isinstance(batch, Sequence) and len(batch) > 3 else None


def _memory(pl_module: nn.Module) -> Any:
    for part in pl_module.modules():
        if callable(getattr(part, "memory_loss", None)):
            if any(hasattr(param, "placements") for param in part.parameters()):
                raise ShardedParameterError(
                    "ConditionShuffleProbe calls memory_loss outside of the forward pass, where FSDP2 has gathered no "
                    "weights; use DDP, or leave the probe out"
                )
            return part
    raise MisconfigurationException(
        "ConditionShuffleProbe found no memory_loss(batch, change): use FunctionalMemory, or give your module, or the "
        "network in it, such a method"
    )
