"""When CLASSP's decay and threshold change, and how its memory survives from one ``fit()`` to the next."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from lightning_weights.callbacks.task_stream import TaskStream
from lightning_weights.errors import LightningWeightsWarning, check_choice, check_number
from lightning_weights.functional.classp import warn_if_published_threshold


class CLASSPPhases(Callback):
    """Switch CLASSP from its first-task phase to the protecting one and keep its memory between ``fit()`` calls.

    Until the first boundary the optimizer runs with ``apply_decay=first_task_decay`` and ``first_threshold``; from the
    boundary on with decay and ``later_threshold``. A threshold of None leaves the optimizer's own. Every
    ``log_every_n_steps`` steps it logs ``weights/classp/`` ``phase``, ``average_grad_sum``, ``update_fraction`` (share
    of weights that the last step updated) and ``free_fraction`` (share never updated).

    Args:
        first_task_decay: Whether the first phase divides steps by the root of the accumulator (the paper: no).
        first_threshold: τ of the first phase, on squared gradients.
        later_threshold: τ of the later phases; a list gives one value per boundary.
        switch_at: Where the next phase begins, counted in ``unit`` from 0; a list gives several boundaries.
        unit: ``epoch``, ``step`` (of the optimizer) or ``task`` (of a TaskStream; without one every ``fit()`` is one).
        carry_state: Whether the accumulators of a finished ``fit()`` go into the optimizer of the next. Its
            hyper-parameters stay as configured. A run resumed from a checkpoint takes the checkpoint's instead.

    Raises:
        ValueError: If an argument is out of range or the trainer has no CLASSP optimizer.

    Source: Oswaldo Ludwig, 2024, arXiv:2405.09637, vision experiment: decay off and τ = 0.5 for task 1, decay on and
    τ = 0 from the first batch of task 2 (see CLASSP for what that τ means).

    Examples:
        >>> phases = CLASSPPhases(first_threshold=0.0, later_threshold=1e-4, switch_at=10)
        >>> phases.phase_at(9), phases.phase_at(10)
        (0, 1)

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.CLASSPPhases
              init_args: {later_threshold: 1.0e-4, switch_at: 1, unit: task}
        ```
    """

    def __init__(
        self,
        first_task_decay: bool = False,
        first_threshold: float | None = None,
        later_threshold: float | list[float] | None = None,
        switch_at: int | list[int] = 1,
        unit: Literal["epoch", "step", "task"] = "epoch",
        carry_state: bool = True,
    ) -> None:
        check_choice("unit", unit, ("epoch", "step", "task"))
        self.first_task_decay = first_task_decay
        self.first_threshold = first_threshold
        self.switch_at = list(switch_at) if isinstance(switch_at, Sequence) else [switch_at]
        whole = all(isinstance(at, int) and not isinstance(at, bool) for at in self.switch_at)
        if not whole or not self.switch_at or self.switch_at != sorted({*self.switch_at}) or self.switch_at[0] < 1:
            raise ValueError(f"switch_at is {switch_at!r}; allowed are whole numbers from 1, each larger than the last")
        several = isinstance(later_threshold, Sequence) and not isinstance(later_threshold, str)
        self.later_thresholds = list(later_threshold) if several else [later_threshold] * len(self.switch_at)
        if len(self.later_thresholds) != len(self.switch_at):
            raise ValueError(
                f"later_threshold has {len(self.later_thresholds)} values for {len(self.switch_at)} boundaries in "
                f"switch_at; give one value per boundary or a single one"
            )
        for name, value in [
            ("first_threshold", first_threshold),
            *(("later_threshold", v) for v in self.later_thresholds),
        ]:
            if value is not None:
                check_number(name, value, low=0.0)
                warn_if_published_threshold(name, value)
        self.unit = unit
        self.carry_state = carry_state
        self.phase = 0
        self.fits = 0
        self.own_thresholds: list[list[float]] = []
        self._reset()

    def _reset(self) -> None:
        self._carried: list[dict[str, Any]] = []
        self._restored = False
        self._applied = False
        self._last_step = -1

    def __getstate__(self) -> dict[str, Any]:
        # The Trainer hangs bound methods of the module on every callback; copies must not drag the module along.
        return {name: value for name, value in vars(self).items() if name not in ("log", "log_dict") and name[0] != "_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    def state_dict(self) -> dict[str, Any]:
        """Return the phase, the number of finished fits and the thresholds that the optimizers were built with."""
        return {"phase": self.phase, "fits": self.fits, "own_thresholds": self.own_thresholds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.phase = state_dict["phase"]
        self.fits = state_dict["fits"]
        self.own_thresholds = state_dict["own_thresholds"]
        self._restored = bool(self.own_thresholds)

    def phase_at(self, progress: int) -> int:
        """Return the number of the phase (0 is the first) after ``progress`` epochs, steps or tasks."""
        return sum(progress >= boundary for boundary in self.switch_at)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand over the accumulators of the previous fit."""
        optimizers = _classp_optimizers(trainer)
        if self.fits and trainer.ckpt_path is None:
            self._hand_over(optimizers)
        if not self._restored:  # else the optimizers hold the thresholds of the checkpoint's phase by now
            self.own_thresholds = [[group["threshold"] for group in opt.param_groups] for opt in optimizers]
        self._restored = False
        self._applied = False
        self._last_step = trainer.global_step
        self._check(trainer, optimizers)

    def _check(self, trainer: Trainer, optimizers: list[Any]) -> None:
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        if any(group["eps"] == 0 for group in groups):
            raise ValueError(
                "eps is 0, but CLASSPPhases turns the decay on, which divides 0 by 0 at weights never updated; use "
                "CLASSP(eps=1e-5) or smaller"
            )
        own = [threshold for thresholds in self.own_thresholds for threshold in thresholds]
        given = [self.first_threshold, *self.later_thresholds]
        thresholds = [value for value in given if value is not None] + (own if None in given else [])
        if trainer.gradient_clip_val and any(threshold > 0 for threshold in thresholds) and trainer.is_global_zero:
            warnings.warn(
                f"gradient_clip_val is {trainer.gradient_clip_val}: CLASSP compares its threshold with the clipped "
                f"gradients, so fewer weights are updated when clipping bites. Lower the threshold or do not clip.",
                LightningWeightsWarning,
                stacklevel=2,
            )

    def _hand_over(self, optimizers: list[Optimizer]) -> None:
        if not self._carried:  # not wanted, or left behind in another process
            if not any(optimizer.state for optimizer in optimizers):
                warnings.warn(
                    "CLASSP's accumulators were reset: earlier tasks are no longer protected. Use carry_state=True in "
                    "one process, or resume with fit(ckpt_path=...).",
                    LightningWeightsWarning,
                    stacklevel=3,
                )
            return
        fresh = [optimizer.state_dict() for optimizer in optimizers]
        old_sizes, new_sizes = _group_sizes(self._carried), _group_sizes(fresh)
        if old_sizes != new_sizes:
            raise ValueError(
                f"carry_state=True, but the parameter groups of the previous fit had {old_sizes} parameters and these "
                f"have {new_sizes}. Train the same network, or use carry_state=False to start without memory."
            )
        for optimizer, old, new in zip(optimizers, self._carried, fresh, strict=True):
            optimizer.load_state_dict({"state": old["state"], "param_groups": new["param_groups"]})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the accumulators for the next fit."""
        self.fits += 1
        if self.carry_state:
            self._carried = [optimizer.state_dict() for optimizer in _classp_optimizers(trainer)]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Enter the phase that is due."""
        self._enter_phase(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Enter the phase that is due."""
        self._enter_phase(trainer)

    def _enter_phase(self, trainer: Trainer) -> None:
        phase = self.phase_at(self._progress(trainer))
        if self._applied and phase == self.phase:
            return
        threshold = self.first_threshold if phase == 0 else self.later_thresholds[phase - 1]
        for optimizer, thresholds in zip(_classp_optimizers(trainer), self.own_thresholds, strict=True):
            for group, own in zip(optimizer.param_groups, thresholds, strict=True):
                group["threshold"] = own if threshold is None else threshold
                group["apply_decay"] = self.first_task_decay if phase == 0 else True
        self.phase = phase
        self._applied = True

    def _progress(self, trainer: Trainer) -> int:
        if self.unit == "epoch":
            return trainer.current_epoch
        if self.unit == "step":
            return trainer.global_step
        streams = [callback for callback in trainer.callbacks if isinstance(callback, TaskStream)]
        return streams[0].task_of_epoch(trainer.current_epoch) if streams else self.fits

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the diagnostics, after real steps only."""
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        if not trainer.log_every_n_steps or trainer.global_step % trainer.log_every_n_steps:
            return
        optimizers = _classp_optimizers(trainer)
        for index, optimizer in enumerate(optimizers):
            prefix = "weights/classp" if len(optimizers) == 1 else f"weights/classp/{index}"
            values = {
                "phase": float(self.phase),
                "average_grad_sum": optimizer.average_grad_sum(),
                "free_fraction": optimizer.free_fraction(),
            }
            # Manual optimization may have cleared the gradients already.
            if any(param.grad is not None for group in optimizer.param_groups for param in group["params"]):
                values["update_fraction"] = optimizer.update_fraction()
            pl_module.log_dict({f"{prefix}/{name}": value for name, value in values.items()}, on_epoch=False)


def _classp_optimizers(trainer: Trainer) -> list[Any]:
    found = [optimizer for optimizer in trainer.optimizers if "apply_decay" in optimizer.defaults]
    if not found:
        names = [type(optimizer).__name__ for optimizer in trainer.optimizers]
        raise ValueError(
            f"CLASSPPhases found no CLASSP optimizer, but {', '.join(names) or 'no optimizer at all'}; return "
            f"lightning_weights.optimizers.CLASSP from configure_optimizers"
        )
    return found


def _group_sizes(states: list[dict[str, Any]]) -> list[list[int]]:
    return [[len(group["params"]) for group in state["param_groups"]] for state in states]
