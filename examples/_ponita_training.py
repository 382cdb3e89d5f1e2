"""What the tasks of PONITA's example share: sizes, optimizer, and one fit."""

from functools import partial
from typing import Any

import torch
from _harness import quiet_trainer
from torch import nn

from lightning_weights.callbacks import CalibrateOnFirstBatch
from lightning_weights.modules import SeparableFiberConv, WarmupCosine

SIZES = {"hidden_dim": 32, "num_layers": 3, "num_orientations": 8}
CLIP, WARMUP = 0.5, 2


def adam(lr: float, epochs: int) -> dict[str, Any]:
    """Return the optimizer and the schedule of all networks."""
    return {
        "optimizer": partial(torch.optim.Adam, lr=lr, weight_decay=1e-10),
        "lr_scheduler": partial(WarmupCosine, max_epochs=epochs, warmup_epochs=WARMUP),
    }


def fit(model: Any, data: Any, epochs: int) -> None:
    """Train, with calibration where there is something to calibrate."""
    convolutions = any(isinstance(part, SeparableFiberConv) for part in model.modules())
    callbacks = [CalibrateOnFirstBatch()] if convolutions else []
    options = {"gradient_clip_val": CLIP, "limit_val_batches": 0, "callbacks": callbacks}
    quiet_trainer(max_epochs=epochs, **options).fit(model, data)


def number_of_parameters(network: nn.Module) -> int:
    """Count what is trained."""
    return sum(parameter.numel() for parameter in network.parameters())
