"""What the two phases of pruning share: when a phase begins, and what it does not train."""

import warnings
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_weights.errors import LightningWeightsWarning, check_number

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class PruningPhase(Callback):
    """A phase that begins at an epoch of the fit, once, and goes on after a resume.

    Learning-rate schedules know nothing of phases: they go on.

    Parameters that a phase does not train lose their gradients before the optimizer's step, which then skips them:
    ``requires_grad`` stays, so that DistributedDataParallel still sees every gradient it waits for.

    Args:
        start_epoch: First epoch of the phase.
    """

    def __init__(self, start_epoch: int) -> None:
        check_number("start_epoch", start_epoch, low=0, whole=True)
        self.start_epoch = start_epoch
        self._reset()

    def _reset(self) -> None:
        self._started = False

    def __getstate__(self) -> dict[str, Any]:
        # The Trainer hangs bound methods of the module on every callback; copies must not drag the module along.
        return {name: value for name, value in vars(self).items() if name not in ("log", "log_dict") and name[0] != "_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    @property
    def started(self) -> bool:
        """Whether the phase has begun in this fit."""
        return self._started

    def state_dict(self) -> dict[str, Any]:
        """Return whether the phase has begun."""
        return {"started": self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._started = state_dict["started"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit."""
        if stage == "fit":
            self._reset()

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change the network for the phase; called once."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the phase if it is due, with optimizers that have forgotten their state."""
        if self._started or trainer.current_epoch < self.start_epoch:
            return
        self.begin(trainer, pl_module)
        for optimizer in trainer.optimizers:
            optimizer.state.clear()
        self._started = True


def drop_gradients(optimizer: Optimizer, params: Iterable[Tensor]) -> None:
    """Let the step that the optimizer is about to take skip these parameters; those of others keep their gradients."""
    stepping = {id(param) for group in optimizer.param_groups for param in group["params"]}
    for param in params:
        if id(param) in stepping:
            param.grad = None


def warn_if_still(module: nn.Module, kinds: tuple[type[nn.Module], ...], who: str) -> None:
    """Warn of trainable parts that are in evaluation mode though the network is about to be trained.

    Args:
        module: The network.
        kinds: Classes of the parts that behave otherwise in training.
        who: Name of the callback, for the message.
    """
    parts = {name: part for name, part in module.named_modules() if isinstance(part, kinds) and not part.training}
    still = [name for name, part in parts.items() if any(param.requires_grad for param in part.parameters())]
    if still:
        warnings.warn(
            f"{who} begins while {', '.join(still)} is in evaluation mode, which Lightning leaves as it is: statistics "
            f"stand still and gates do not draw. Call train() on the network before fit if that is not meant.",
            LightningWeightsWarning,
            stacklevel=2,
        )
