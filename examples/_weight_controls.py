"""What a companding function does to training, one thing at a time: a bound alone, and a gain alone."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

LAYERS = (nn.Linear, nn.Conv2d)


class ClipWeights(Callback):
    """Clamps the weights after every step to the bound that companding with the arctan has: κσπ/2, σ at the start."""

    def __init__(self, kappa: float) -> None:
        self.kappa = kappa
        self.bounds: dict[nn.Parameter, float] = {}

    @torch.no_grad()
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = [layer.weight for layer in pl_module.modules() if isinstance(layer, LAYERS)]
        self.bounds = {w: self.kappa * math.pi / 2 * float(w.std(correction=0)) for w in weights}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        for weight, bound in self.bounds.items():
            weight.clamp_(-bound, bound)


class Gain(nn.Module):
    """Multiplies a latent weight by a number, which is all that a companding function does close to zero."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, latent: Tensor) -> Tensor:
        return self.gain * latent

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / self.gain


def amplify(network: nn.Module, gain: float) -> nn.Module:
    """Give the weights of all Linear and Conv layers a gain; they are the same at first."""
    for layer in [layer for layer in network.modules() if isinstance(layer, LAYERS)]:
        register_parametrization(layer, "weight", Gain(gain))
    return network
