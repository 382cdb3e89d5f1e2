"""When a growing Pareto front is rewarded."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_weights.callbacks._lean_callback import LeanCallback
from lightning_weights.errors import LightningWeightsWarning, check_choice, check_number, name_list
from lightning_weights.functional.dynamic_reward import NORMALIZING, ParetoArchive, meta_reward
from lightning_weights.modules._policy_objective import NORMALIZE_FIRST
from lightning_weights.modules.multi_objective_rl import MultiObjectiveRL

PLACES = ("advantage", "reward")


class HypervolumeMetaReward(LeanCallback):
    r"""Reward steps after which validation pushes the Pareto front outwards.

    $$\Delta HV = \max\bigl(HV(B \cup \{p\}; r) - HV(B; r),\, 0\bigr), \qquad
    \mu = l + s \tanh(\Delta HV)$$

    After every validation p is read from what was logged; μ counts until the next one and is 1 before the first, which
    fixes the reference r unless it is given. During a fit the module has the attribute ``meta_reward``.
    ``modules.MultiObjectiveRL`` multiplies advantages or rewards by ``meta_reward.value``; a module of your own
    multiplies its loss by it. Validate often, every step if you can (``val_check_interval``).

    Every ``log_every_n_steps`` optimizer steps it logs ``weights/dynamic_reward/`` ``meta_reward``, ``hypervolume``,
    ``gain`` (ΔHV) and ``front`` (vectors that are kept).

    Args:
        objectives: Names of the objectives, as they are logged after ``monitor_prefix``.
        maximize: Whether each is to be large.
        reference: r, one number per objective. ``None``: what the first validation finds.
        scale: Unit of each objective, by which its gain is divided. ``None``: 1 each.
        low: l, what no growth is worth.
        gain: s, by how much more the largest growth is worth.
        apply_to: What is multiplied: ``advantage``, or ``reward`` as the paper writes it, which estimators that divide
            by a standard deviation take back.
        monitor_prefix: What stands before the objectives' names in the logged metrics.
        every_n_steps: Optimizer steps that have to pass before a validation counts again.
        prune: Whether vectors that another one dominates are dropped, which changes no volume.

    Raises:
        ValueError: If an argument is out of range, a metric is missing, or there is no validation.

    Warns:
        LightningWeightsWarning: If ``apply_to="reward"`` meets an estimator that normalises.

    Source: Lu et al. 2025, arXiv:2509.11452. Differs from the published code, in which vectors below the reference
    count negatively, and which multiplies rewards only.

    Examples:
        >>> HypervolumeMetaReward(["accuracy", "length"], maximize=[True, False], scale=[1.0, 100.0]).value
        1.0

        ```yaml
        trainer:
          val_check_interval: 1
          callbacks:
            - class_path: lightning_weights.callbacks.HypervolumeMetaReward
              init_args: {objectives: [accuracy, brevity], maximize: [true, false], scale: [1.0, 100.0]}
        ```
    """

    def __init__(
        self,
        objectives: list[str],
        maximize: list[bool],
        reference: list[float] | None = None,
        scale: list[float] | None = None,
        low: float = 0.5,
        gain: float = 1.5,
        apply_to: Literal["advantage", "reward"] = "advantage",
        monitor_prefix: str = "val/",
        every_n_steps: int = 1,
        prune: bool = True,
    ) -> None:
        self.objectives = name_list("objectives", objectives)
        self.maximize = _per_objective("maximize", maximize, self.objectives)
        self.reference = None if reference is None else _per_objective("reference", reference, self.objectives)
        self.scale = None if scale is None else _per_objective("scale", scale, self.objectives)
        check_number("low", low, low=0.0)
        check_number("gain", gain, low=0.0)
        check_choice("apply_to", apply_to, PLACES)
        check_number("every_n_steps", every_n_steps, low=1, whole=True)
        self.low = low
        self.gain = gain
        self.apply_to = apply_to
        self.monitor_prefix = monitor_prefix
        self.every_n_steps = every_n_steps
        self.prune = prune
        ParetoArchive(self.reference or [0.0] * len(self.objectives), self.maximize, self.scale, prune)
        self._begin()
        self._reset()

    def _begin(self) -> None:
        self.value, self.last_gain, self.last_step = 1.0, 0.0, -1
        self.kept: dict[str, Any] | None = None

    def _reset(self) -> None:
        self._archive: ParetoArchive | None = None
        self._logged_at = -1

    def _make_archive(self) -> None:
        """Make the archive, from what was kept, or from the reference that was given."""
        kept = self.kept or ({"reference": self.reference, "points": []} if self.reference is not None else None)
        self._archive = None
        if kept is not None:
            self._archive = ParetoArchive(kept["reference"], self.maximize, self.scale, self.prune)
            self._archive.load_state_dict(kept)

    def state_dict(self) -> dict[str, Any]:
        """Return μ, the last ΔHV and its step, and the archive's reference and vectors."""
        return {"value": self.value, "gain": self.last_gain, "step": self.last_step, "archive": self.kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.value, self.last_gain = state_dict["value"], state_dict["gain"]
        self.last_step, self.kept = state_dict["step"], state_dict["archive"]
        self._make_archive()

    @property
    def archive(self) -> ParetoArchive | None:
        """Vectors so far; None before the first validation."""
        if self._archive is None:
            self._make_archive()
        return self._archive

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module its meta-reward, which begins anew unless a checkpoint is loaded."""
        if stage != "fit":
            return
        self._begin()
        self._reset()
        pl_module.meta_reward = self

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is a validation, and warn of what has no effect."""
        if not trainer.enable_validation:
            raise ValueError(
                "there is no validation, which the Pareto front is made of; give the Trainer a validation loader and a "
                "limit_val_batches other than 0"
            )
        kind = getattr(pl_module, "estimator", None)
        if isinstance(pl_module, MultiObjectiveRL) and pl_module.objective.aggregation == NORMALIZE_FIRST:
            kind = NORMALIZE_FIRST
        if self.apply_to == "reward" and kind in (*NORMALIZING, NORMALIZE_FIRST):
            warnings.warn(
                f"apply_to='reward' has no effect with {kind!r}, which divides by the standard deviation of the "
                f"rewards; use apply_to='advantage', or an estimator such as 'rloo'",
                LightningWeightsWarning,
                stacklevel=2,
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Offer what was logged to the archive, and set μ."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.last_step >= 0 and trainer.global_step < self.last_step + self.every_n_steps:
            return
        point = self._measured(trainer)
        self.last_step = trainer.global_step
        archive = self.archive
        if archive is None:
            self.kept = {"reference": point, "points": []}
            self._make_archive()
            return
        self.last_gain = archive.add(point)
        self.value = meta_reward(self.last_gain, self.low, self.gain)
        self.kept = archive.state_dict()

    def _measured(self, trainer: Trainer) -> list[float]:
        names = [f"{self.monitor_prefix}{name}" for name in self.objectives]
        missing = [name for name in names if name not in trainer.callback_metrics]
        if missing:
            found = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise ValueError(f"{missing[0]!r} was not logged in validation; logged were: {found}")
        values = torch.stack([torch.as_tensor(trainer.callback_metrics[name]) for name in names])
        values = trainer.strategy.reduce(values, reduce_op="mean")
        for name, value in zip(names, values.tolist(), strict=True):
            if not math.isfinite(value):
                raise ValueError(f"{name!r} is {value} after validation; allowed are finite numbers")
        return values.tolist()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log after a real step."""
        if trainer.global_step == self._logged_at:
            return
        self._logged_at = trainer.global_step
        if trainer.log_every_n_steps and trainer.global_step % trainer.log_every_n_steps == 0:
            archive = self.archive
            values = {
                "meta_reward": self.value,
                "gain": self.last_gain,
                "hypervolume": 0.0 if archive is None else archive.hypervolume(),
                "front": float(0 if archive is None else len(archive.points)),
            }
            pl_module.log_dict({f"weights/dynamic_reward/{name}": v for name, v in values.items()}, on_epoch=False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the module."""
        if getattr(pl_module, "meta_reward", None) is self:
            pl_module.meta_reward = None


def _per_objective(name: str, values: Any, objectives: list[str]) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != len(objectives):
        raise ValueError(f"{name} is {values!r}; allowed is a list of {len(objectives)}, one per objective")
    return list(values)
