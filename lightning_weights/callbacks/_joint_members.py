"""Training both members of a growing network with every batch."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule

from lightning_weights.functional.mixture_growth import joint_loss
from lightning_weights.modules import set_mode


def train_both(
    pl_module: LightningModule, step: Callable[..., Any], weight: float, *arguments: Any, **named: Any
) -> Any:
    """Call a training step for member 0 and for member 1, and return what the latter returned, with both losses.

    Args:
        pl_module: A module whose network has mixture layers.
        step: Its training step.
        weight: Factor of member 0's loss.
        *arguments: Of the step.
        **named: Of the step.
    """
    set_mode(pl_module, "member0")
    try:
        first = step(*arguments, **named)
    finally:
        set_mode(pl_module, "member1")  # the mode that checkpoints are to have, after an exception, too
    second = step(*arguments, **named)
    if first is None or second is None:
        return None
    if isinstance(second, Mapping):
        return {**second, "loss": joint_loss(first["loss"], second["loss"], weight)}
    return joint_loss(first, second, weight)


def begin_joint_steps(pl_module: LightningModule, weight: float) -> None:
    """Let a module train both members with every batch.

    Args:
        pl_module: A module whose network has mixture layers.
        weight: Factor of member 0's loss.
    """
    pl_module.training_step = partial(train_both, pl_module, pl_module.training_step, weight)


def end_joint_steps(pl_module: LightningModule) -> None:
    """Give a module its own training step back."""
    step = vars(pl_module).get("training_step")
    if isinstance(step, partial) and step.func is train_both:
        del vars(pl_module)["training_step"]
