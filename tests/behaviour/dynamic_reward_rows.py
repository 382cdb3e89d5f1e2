"""Rows of the battery for rewards whose weights move."""

from typing import Any

from torch import Tensor, nn

from lightning_weights.callbacks._lean_callback import LeanCallback
from lightning_weights.errors import ShardedParameterError
from tests.helpers.battery import Setup, Subject

_ROOM = "lightning_weights.callbacks"
_NAMES = ["fit", "small"]

SUBJECTS: dict[str, Subject] = {
    f"{_ROOM}.GradientRewardWeights": Subject(
        {
            "objectives": _NAMES,
            "initial": [0.25, 0.75],
            "eta": 0.5,
            "lr_coupled": True,
            "mu": 1e-4,
            "accumulate": 2,
            "layers": "net",
            "clip_norm": 2.0,
            "normalize": "unit",
            "min_weight": 0.1,
            "center": True,
        },
        wrong=("normalize", "sum"),
    ),
    f"{_ROOM}.HypervolumeMetaReward": Subject(
        {
            "objectives": _NAMES,
            "maximize": [True, False],
            "reference": [0.0, 9.0],
            "scale": [1.0, 10.0],
            "low": 0.25,
            "gain": 1.0,
            "apply_to": "reward",
            "monitor_prefix": "val_",
            "every_n_steps": 2,
            "prune": False,
        },
        wrong=("apply_to", "loss"),
    ),
}


class LogObjectives(LeanCallback):
    """Logs what a validation of two objectives would, whatever the weights are."""

    def __init__(self) -> None:
        self.validations = 0

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = state_dict["validations"]

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.validations += 1
        step = trainer.global_step
        pl_module.log_dict({"val/fit": step / 10 + step % 3, "val/small": 2.0 + step % 4})


def moving_mixture(module: Any, x: Tensor, y: Tensor) -> Tensor:
    """Mix two losses as the callbacks say."""
    logits = module(x)
    losses = {"fit": nn.functional.cross_entropy(logits, y), "small": logits.square().mean()}
    weights = module.reward_weighting.update(losses)
    return module.meta_reward.value * sum(w * loss for w, loss in zip(weights, losses.values(), strict=True))


def scaled(module: Any, x: Tensor, y: Tensor) -> Tensor:
    """Scale a loss as the callback says."""
    return module.meta_reward.value * nn.functional.cross_entropy(module(x), y)


_SGD = ("torch.optim.SGD", {"lr": 0.05, "momentum": 0.9})
_EXACT = ("lightning_weights.callbacks.ExactResume", {})
_LOGGED = ("tests.behaviour.dynamic_reward_rows.LogObjectives", {})
_FRONT = (f"{_ROOM}.HypervolumeMetaReward", {"objectives": _NAMES, "maximize": [True, False]})
_MOVING = (f"{_ROOM}.GradientRewardWeights", {"objectives": _NAMES, "normalize": "unit", "eta": 0.3})

SETUPS: tuple[Setup, ...] = (
    Setup(
        "dynamic_reward",
        _SGD,
        (_LOGGED, _MOVING, _FRONT, _EXACT),
        loss=moving_mixture,
        refuses={"fsdp2": ShardedParameterError},
        differs={
            "accumulation": "weights move with every batch, not with every optimizer step",
            "bf16": "weights follow gradients, which are rounded differently",
        },
    ),
)

VARIANTS: tuple[Setup, ...] = (Setup("dynamic_reward_front", _SGD, (_LOGGED, _FRONT, _EXACT), loss=scaled),)
