"""Optimizers: ``torch.optim.Optimizer`` subclasses for any training loop."""

from lightning_weights.optimizers.classp import CLASSP
from lightning_weights.optimizers.gradnorm_lorp import GradNormLoRPAdamW
from lightning_weights.optimizers.lift import LIFTAdamW
from lightning_weights.optimizers.pulse_sgd import PulseSGD

__all__ = ["CLASSP", "GradNormLoRPAdamW", "LIFTAdamW", "PulseSGD"]
