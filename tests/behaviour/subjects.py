"""The table behind the battery: a row for every public optimizer and callback, and the runs they are trained in.

A new method adds its classes to SUBJECTS and one run to SETUPS; every test of this folder then runs for it too.
"""

from typing import Any

import lightning_weights.callbacks
import lightning_weights.optimizers
from lightning_weights.errors import ShardedParameterError
from lightning_weights.methods import METHODS
from tests.helpers.battery import Setup, Subject

ROOMS = (lightning_weights.optimizers, lightning_weights.callbacks)

SUBJECTS: dict[str, Subject] = {
    "lightning_weights.optimizers.CLASSP": Subject(
        {"lr": 0.05, "threshold": 1e-5, "power": 2.0, "eps": 1e-4, "apply_decay": False, "maximize": True},
        wrong=("lr", "fast"),
    ),
    "lightning_weights.callbacks.CLASSPPhases": Subject(
        {"first_threshold": 0.0, "later_threshold": [1e-4, 1e-5], "switch_at": [1, 2], "unit": "task"},
        wrong=("unit", "batch"),
    ),
    "lightning_weights.callbacks.TaskStream": Subject({"epochs_per_task": [2, 1, 3]}, wrong=("epochs_per_task", "all")),
    "lightning_weights.callbacks.ExactResume": Subject({}, wrong=None),
}

_CLASSP_CALLBACKS: tuple[Any, ...] = (
    ("lightning_weights.callbacks.TaskStream", {"epochs_per_task": 1}),
    ("lightning_weights.callbacks.CLASSPPhases", {"first_threshold": 0.0, "later_threshold": 1e-4, "unit": "task"}),
    ("lightning_weights.callbacks.ExactResume", {}),
)

SETUPS: tuple[Setup, ...] = (
    Setup("classp", ("lightning_weights.optimizers.CLASSP", {"lr": 0.05, "threshold": 1e-5}), _CLASSP_CALLBACKS),
)

# Options that behave differently where something is resumed or distributed; the rest of the battery leaves them out.
VARIANTS: tuple[Setup, ...] = (
    Setup(
        "classp_reference",
        ("lightning_weights.optimizers.CLASSP", {"lr": 0.05, "variant": "reference"}),
        _CLASSP_CALLBACKS,
        refuses={"fsdp2": ShardedParameterError},
    ),
)

OPTIMIZERS = [path for path in SUBJECTS if path.startswith("lightning_weights.optimizers.")]
CALLBACKS = [path for path in SUBJECTS if path.startswith("lightning_weights.callbacks.")]


def public_parts() -> set[str]:
    """Return the import paths of every public optimizer and callback, from the packages and the method cards."""
    exported = {f"{room.__name__}.{name}" for room in ROOMS for name in room.__all__}
    cards = {path for card in METHODS for path in card.classes}
    return exported | {path for path in cards if path.startswith(tuple(f"{room.__name__}." for room in ROOMS))}


def parts_in_setups() -> set[str]:
    """Return the import paths of the classes that take part in some run."""
    return {path for row in SETUPS for path, _ in (row.optimizer, *row.callbacks)}
