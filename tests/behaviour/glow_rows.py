"""Rows of the battery for weights from gains: its data has no ids, so the loss finds them by the inputs."""

from typing import Any

from torch import Tensor, nn

from tests.helpers.battery import Setup, Subject
from tests.helpers.tasks import tiny_tasks

_EXACT = ("lightning_weights.callbacks.ExactResume", {})
_INPUTS = tiny_tasks().sets[0].tensors[0]  # nothing moves these rows along to other tasks


def weighted_loss(module: Any, x: Tensor, y: Tensor) -> Tensor:
    """Return the loss of a module that GLOW has given its own, from epoch 1 on with weights."""
    same = (x.detach()[:, None, :] == _INPUTS[None, :, :]).all(dim=-1)
    losses = nn.functional.cross_entropy(module(x), y, reduction="none")
    return module.glow(losses, same.float().argmax(dim=1), module.current_epoch)


SUBJECTS: dict[str, Subject] = {
    "lightning_weights.callbacks.GLOW": Subject(
        {
            "loss_attr": "weigher",
            "id_key": -1,
            "sync": False,
            "keep_ids": False,
            "check_ids": True,
            "label_key": 1,
            "num_samples": 48,
            "alpha": 1.0,
            "beta": 20.0,
            "min_weight": 0.1,
            "max_weight": 3.0,
            "warmup_epochs": 0,
            "fallback": "batch_mean",
            "normalize": True,
            "ignore_index": -1,
        },
        wrong=("fallback", "zero"),
    ),
}

SETUPS: tuple[Setup, ...] = (
    Setup(
        "glow",
        ("torch.optim.SGD", {"lr": 0.05, "momentum": 0.9}),
        (("lightning_weights.callbacks.GLOW", {"num_samples": 16, "warmup_epochs": 0}), _EXACT),
        loss=weighted_loss,
    ),
)

VARIANTS: tuple[Setup, ...] = (
    Setup(
        "glow_local",
        ("torch.optim.SGD", {"lr": 0.05}),
        (
            (
                "lightning_weights.callbacks.GLOW",
                {"num_samples": 16, "warmup_epochs": 0, "fallback": "batch_mean", "normalize": True},
            ),
            _EXACT,
        ),
        loss=weighted_loss,
        differs={
            "ddp": "every process compares with, and divides by, the mean of its own part of the batch",
            "fsdp2": "every process compares with, and divides by, the mean of its own part of the batch",
        },
    ),
)
