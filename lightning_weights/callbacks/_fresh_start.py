"""Optimizers and learning-rate schedules that begin once more."""

import copy
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer

Options = list[dict[str, Any]]  # of an optimizer's groups


class FreshStart:
    """Knows what optimizers and schedules were before their first step.

    Args:
        trainer: A Trainer whose optimizers have been made, and not yet been restored from a checkpoint.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._options = [_options(optimizer) for optimizer in trainer.optimizers]
        self._schedules = [copy.deepcopy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs]

    def again(self, trainer: Trainer) -> None:
        """Make optimizers and schedules what they were: no state, the first learning rate.

        Args:
            trainer: The same Trainer.
        """
        self.forget(trainer)
        for optimizer, options in zip(trainer.optimizers, self._options, strict=True):
            for group, old in zip(optimizer.param_groups, options, strict=True):
                set_learning_rate(group, old["lr"])
                group |= {name: value for name, value in copy.deepcopy(old).items() if name != "lr"}
        self.rewind(trainer)

    def rewind(self, trainer: Trainer) -> None:
        """Put schedules back to their start, and leave learning rates as they are."""
        for config, old in zip(trainer.lr_scheduler_configs, self._schedules, strict=True):
            config.scheduler.load_state_dict(copy.deepcopy(old))

    def forget(self, trainer: Trainer) -> None:
        """Empty the state of all optimizers, and leave learning rates and schedules as they are."""
        for optimizer in trainer.optimizers:
            optimizer.state.clear()

    def scale(self, trainer: Trainer, lr: float) -> None:
        """Give the first group of each optimizer a learning rate, and the others theirs in proportion.

        Args:
            trainer: The same Trainer.
            lr: The rate.
        """
        for optimizer, options in zip(trainer.optimizers, self._options, strict=True):
            bases = [float(old.get("initial_lr", old["lr"])) for old in options]
            for group, base in zip(optimizer.param_groups, bases, strict=True):
                set_learning_rate(group, lr * base / bases[0] if bases[0] else lr)


def set_learning_rate(group: dict[str, Any], lr: float | Tensor) -> None:
    """Change a group's learning rate, which a compiled optimizer may hold as a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(float(lr))
    else:
        group["lr"] = float(lr)


def _options(optimizer: Optimizer) -> Options:
    return [
        {name: copy.deepcopy(value) for name, value in group.items() if name not in ("params", "param_names")}
        for group in optimizer.param_groups
    ]


def epochs_of_schedule(trainer: Trainer) -> float:
    """Return after how many epochs the longest schedule of known length ends, 0 if there is none.

    Args:
        trainer: A Trainer with its schedules and its data.
    """
    # a number without an end, of data of unknown length, makes every schedule of steps a short one
    steps = max(1.0, trainer.num_training_batches / trainer.accumulate_grad_batches)
    longest = 0.0
    for config in trainer.lr_scheduler_configs:
        length = max(_lengths(config.scheduler), default=0)
        if config.interval == "step":
            length = length / steps
        longest = max(longest, float(length))
    return longest


def _lengths(scheduler: Any) -> list[float]:
    parts, milestones = getattr(scheduler, "_schedulers", []), getattr(scheduler, "_milestones", [])
    if milestones:  # one after the other: the last one begins at the last milestone
        return [milestones[-1] + length for length in _lengths(parts[-1])]
    found = [getattr(scheduler, name, None) for name in ("total_steps", "T_max", "total_iters")]
    lengths = [float(value) for value in found if isinstance(value, (int, float))]
    return lengths + [length for part in parts for length in _lengths(part)]
