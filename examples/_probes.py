"""What a method costs and moves, measured the same way for all methods."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.utils import parameters_to_vector


class UpdatedShare(Callback):
    """Measures in every tenth batch which share of the weights has another value afterwards."""

    def __init__(self) -> None:
        self.shares: list[float] = []
        self._before: torch.Tensor | None = None

    def mean(self) -> float:
        """Return the mean share over the sampled batches."""
        return sum(self.shares) / len(self.shares)

    @torch.no_grad()
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._before = parameters_to_vector(pl_module.parameters()) if trainer.global_step % 10 == 0 else None

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._before is not None:
            self.shares.append(float((parameters_to_vector(pl_module.parameters()) != self._before).float().mean()))


def numbers_kept(optimizer: torch.optim.Optimizer, callbacks: Sequence[Callback] = ()) -> float:
    """Return how many numbers per weight an optimizer and callbacks keep between steps.

    Counted are tensors in the optimizer's state and in dicts in the callbacks' ``state_dict()``, but for those of one
    element, such as step counters.
    """
    tables = [*optimizer.state.values()]
    tables += [table for callback in callbacks for table in callback.state_dict().values() if isinstance(table, dict)]
    tensors = [value for table in tables for value in table.values() if isinstance(value, torch.Tensor)]
    weights = sum(param.numel() for group in optimizer.param_groups for param in group["params"])
    return sum(tensor.numel() for tensor in tensors if tensor.numel() > 1) / weights
