"""Terms that callbacks add to the loss of a module, whatever it trains on."""

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


def add_to_loss(
    trainer: Trainer, pl_module: LightningModule, loss: Tensor, term: Tensor, retain_graph: bool = False
) -> None:
    """Add a term to the loss that is about to go backward; to be called from ``on_before_backward``.

    The loss is divided for accumulation and scaled for fp16 already, and so is the term. In manual optimization the
    loss stays as it is, since it may be logged or go backward again, and the term goes backward by itself.

    Args:
        trainer: The Trainer.
        pl_module: Its module.
        loss: What Lightning hands to the hook.
        term: A scalar.
        retain_graph: Whether the term shares its graph with the loss, which goes backward after it in manual
            optimization.
    """
    if pl_module.automatic_optimization:
        term = term / trainer.accumulate_grad_batches
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None:
        term = scaler.scale(term)
    if pl_module.automatic_optimization:
        loss.add_(term.to(loss))
    elif term.requires_grad:
        term.backward(retain_graph=retain_graph)


def refuse_manual_ddp(trainer: Trainer, pl_module: LightningModule, who: str, what: str) -> None:
    """Refuse a term under DDP in manual optimization, where it would go backward by itself.

    Args:
        trainer: The Trainer, with its strategy set up.
        pl_module: Its module.
        who: Name of the callback, for the message.
        what: What it adds, for the message.

    Raises:
        ValueError: If it is so.
    """
    if not pl_module.automatic_optimization and isinstance(trainer.strategy.model, DistributedDataParallel):
        raise ValueError(
            f"{who} cannot add {what} in manual optimization under DDP, which synchronises one backward per forward; "
            f"use automatic optimization or one device"
        )
