"""Moving weights of reward functions for trl's trainers."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lightning_weights.errors import LightningWeightsWarning, MissingDependencyError
from lightning_weights.functional.dynamic_reward import ParetoArchive, meta_reward

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingDependencyError("transformers", "hf", "The adapter for trl") from error

UNNORMALIZED: dict[str, tuple[Any, ...]] = {  # trl's options, and their values that divide by nothing
    "scale_rewards": ("none", False, None),
    "multi_objective_aggregation": ("sum_then_normalize",),
    "normalize_advantages": (False,),
}


class TrlRewardWeights(TrainerCallback):
    """Write moving weights into ``reward_weights`` of a GRPOTrainer or RLOOTrainer before every step.

    trl multiplies rewards by ``reward_weights`` and logs every reward as it was, so that its logs stay true. The reward
    functions of ``modules`` have trl's interface and go into ``reward_funcs`` as they are.

    With an archive, every evaluation offers the means of the evaluated rewards to it, and the weights are multiplied by
    the meta-reward: that is the paper's literal form, which trl takes back where it divides by a standard deviation.

    Args:
        trainer: The trainer, which gets this callback.
        weights: What returns the weights, such as ``lambda: weighting.weights`` of a ``RewardWeighting`` that you
            update, or a schedule. None: those that the trainer has.
        archive: Vectors of the evaluated rewards, in the order of ``reward_funcs``. None: no meta-reward.

    Warns:
        LightningWeightsWarning: If there is an archive and the trainer normalises rewards.

    Source: Lu et al. 2025, arXiv:2509.11452.

    Examples:
        >>> from types import SimpleNamespace
        >>> trainer = SimpleNamespace(
        ...     reward_weights=torch.ones(2),
        ...     reward_func_names=["accuracy", "brevity"],
        ...     args=None,
        ...     add_callback=lambda callback: None,
        ... )
        >>> adapter = TrlRewardWeights(trainer, weights=lambda: [0.75, 0.25])
        >>> adapter.on_step_begin(None, None, None)
        >>> trainer.reward_weights
        tensor([0.7500, 0.2500])
    """

    def __init__(
        self, trainer: Any, weights: Callable[[], Sequence[float]] | None = None, archive: ParetoArchive | None = None
    ) -> None:
        self.trainer = trainer
        fixed = [float(weight) for weight in trainer.reward_weights]
        self.weights = (lambda: fixed) if weights is None else weights
        self.archive = archive
        self.value = 1.0
        options = {name: getattr(trainer.args, name, plain[0]) for name, plain in UNNORMALIZED.items()}
        found = [f"{name}={value!r}" for name, value in options.items() if value not in UNNORMALIZED[name]]
        if archive is not None and found:
            ways_out = ", ".join(f"{name}={plain[0]!r}" for name, plain in UNNORMALIZED.items())
            warnings.warn(
                f"{found[0]} divides by a standard deviation and takes the meta-reward back; use {ways_out}",
                LightningWeightsWarning,
                stacklevel=2,
            )
        trainer.add_callback(self)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the weights."""
        old = self.trainer.reward_weights
        new = torch.as_tensor([float(weight) for weight in self.weights()], dtype=old.dtype, device=old.device)
        if new.shape != old.shape:
            raise ValueError(f"weights are {new.tolist()}; allowed are {len(old)}, one per reward function")
        self.trainer.reward_weights = self.value * new

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, Any], **kwargs: Any) -> None:
        """Offer the evaluated rewards to the archive."""
        if self.archive is None:
            return
        found = {**state.log_history[-1], **metrics}  # where rewards are depends on trl's release
        names = [f"eval_rewards/{name}/mean" for name in self.trainer.reward_func_names]
        missing = [name for name in names if found.get(name) is None]
        if missing:
            raise ValueError(
                f"{missing[0]!r} was not among the evaluated metrics; they are: {', '.join(sorted(found))}"
            )
        self.value = meta_reward(self.archive.add([found[name] for name in names]))

    def state_dict(self) -> dict[str, Any]:
        """Return the meta-reward and the archive, for checkpoints of your own."""
        return {"value": self.value, "archive": None if self.archive is None else self.archive.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.value = state["value"]
        if self.archive is not None:
            self.archive.load_state_dict(state["archive"])
