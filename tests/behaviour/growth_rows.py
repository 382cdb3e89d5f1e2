"""Rows of the battery for networks that grow."""

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_weights.errors import ShardedParameterError
from lightning_weights.modules import mixturize
from tests.helpers.battery import Setup, Subject

SUBJECTS: dict[str, Subject] = {
    "lightning_weights.callbacks.MixtureGrowth": Subject(
        {
            "member_epochs": [1, 2],
            "coefficient_init": "copy",
            "coefficient_scale": 0.1,
            "joint_members": True,
            "member0_loss_weight": 0.5,
            "member1_noise": 0.1,
            "freeze_members": True,
            "grown_lr": 0.01,
            "grown_lr_min": 0.001,
            "grown_lr_cycles": 2,
            "grown_warmup_epochs": 0,
            "reset_optimizer": True,
            "seed": 3,
            "verbose": False,
        },
        wrong=("coefficient_init", "diagonal"),
    ),
}

_EXACT = ("lightning_weights.callbacks.ExactResume", {})
_DECAYING_SGD = ("torch.optim.SGD", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01})
_GROWTH = {"member_epochs": [1, 1], "coefficient_scale": 0.5, "grown_lr": 0.02, "grown_warmup_epochs": 0}
_STRATEGIES = {"ddp": {"find_unused_parameters": True}}  # a member that waits has no gradient
_REFUSES = {"no matrices": MisconfigurationException, "fsdp2": ShardedParameterError}


def growing(dropout: float) -> nn.Module:
    """Return a network with 4 inputs and 2 classes, and a layer between that grows."""
    hidden = nn.Linear(4, 8), nn.Dropout(dropout), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()
    return mixturize(nn.Sequential(*hidden, nn.Linear(8, 2)), num_templates=4, keep_bias=True)


SETUPS: tuple[Setup, ...] = (
    Setup(
        "mixture_growth",
        _DECAYING_SGD,
        (("lightning_weights.callbacks.MixtureGrowth", _GROWTH), _EXACT),
        network=growing,
        refuses=_REFUSES,
        strategies=_STRATEGIES,
        rounding=1e-5,
    ),
)

VARIANTS: tuple[Setup, ...] = (
    Setup(
        "mixture_growth_joint",
        _DECAYING_SGD,
        (
            (
                "lightning_weights.callbacks.MixtureGrowth",
                {
                    **_GROWTH,
                    "coefficient_init": "copy",
                    "joint_members": True,
                    "member1_noise": 0.2,
                    "freeze_members": True,
                    "reset_optimizer": True,
                },
            ),
            _EXACT,
        ),
        network=growing,
        refuses=_REFUSES,
        strategies=_STRATEGIES,
    ),
)
