"""Train the weights that pruning has left (phase III)."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from lightning_weights.callbacks._injection import raw_weights
from lightning_weights.callbacks._pruning_phase import BATCH_NORMS, PruningPhase, drop_gradients, warn_if_still
from lightning_weights.callbacks._score_masks import is_pruned, masks_of
from lightning_weights.modules.hard_concrete_gate import HardConcreteGate
from lightning_weights.modules.parametrized import find_parametrizations
from lightning_weights.modules.score_mask import ScoreMask


class FinetunePruned(PruningPhase):
    """Train the weights that ScorePruning has kept; masks stay as they are and pruned weights are zero.

    When the phase begins, the pruned weights are set to zero and the optimizers forget their momentum. From then on the
    scores get no gradient and pruned weights a zero one. Everything else trains as before. Afterwards
    ``make_pruning_permanent`` makes plain layers.

    A learning-rate schedule goes on from the phase before in the same fit. Take one that restarts with every phase,
    such as ``CosineAnnealingWarmRestarts``, or the weights that are left are trained with what is left of it.

    Either in the fit of ScorePruning, from ``start_epoch`` on, or in a fit of its own on the network that ScorePruning
    has left. In a new process, put the masks in with ``ScorePruning(...).attach(module)`` before loading the weights.

    Args:
        start_epoch: First epoch of the phase, counted from 0.

    Raises:
        ValueError: If ``start_epoch`` is negative, the network has no masks or nothing is pruned, or ScorePruning does
            not begin before.

    Source: Sehwag et al. 2020 (HYDRA), arXiv:2002.10509; phase III of Feng et al. 2025, arXiv:2503.20454.

    Examples:
        >>> FinetunePruned(start_epoch=30).start_epoch
        30

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.ScorePruning
              init_args: {keep: 0.1, start_epoch: 25}
            - class_path: lightning_weights.callbacks.FinetunePruned
              init_args: {start_epoch: 33}
        ```
    """

    def __init__(self, start_epoch: int = 0) -> None:
        super().__init__(start_epoch)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is something to train."""
        if not masks_of(pl_module):
            raise ValueError(
                "FinetunePruned found no score masks in the network; train it with ScorePruning first or in the same "
                "fit, or put the masks in with ScorePruning(...).attach(module) and load the pruned weights"
            )
        alone = not any(isinstance(other, PruningPhase) and other is not self for other in trainer.callbacks)
        if alone and not is_pruned(pl_module):
            raise ValueError(
                "FinetunePruned found score masks that keep every weight: scores were put in, but neither trained nor "
                "loaded. Load the pruned weights after attach(module), call ScorePruning(...).prune(module), or put "
                "ScorePruning into the same fit"
            )

    @torch.no_grad()
    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the pruned weights to zero."""
        if trainer.is_global_zero:
            warn_if_still(pl_module, (*BATCH_NORMS, HardConcreteGate), "FinetunePruned")
        for found in find_parametrizations(pl_module, ScoreMask):
            for weight in raw_weights(found.layer):
                weight.mul_(found.step.mask)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Keep scores and pruned weights where they are."""
        if not self.started:
            return
        drop_gradients(optimizer, (mask.scores for mask in masks_of(pl_module).values()))
        for found in find_parametrizations(pl_module, ScoreMask):
            for weight in raw_weights(found.layer):
                if weight.grad is not None:
                    weight.grad.mul_(found.step.mask)
