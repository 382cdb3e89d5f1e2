"""Optimizers: ``torch.optim.Optimizer`` subclasses for any training loop."""

from lightning_weights.optimizers.classp import CLASSP

__all__ = ["CLASSP"]
