"""The table behind the battery: a row for every public optimizer and callback, and the runs they are trained in.

A new method adds its classes to SUBJECTS and one run to SETUPS; every test of this folder then runs for it too.
"""

from typing import Any

import pytest
from torch import Tensor

import lightning_weights.callbacks
import lightning_weights.optimizers
from lightning_weights.errors import ShardedParameterError
from lightning_weights.methods import METHODS
from tests.behaviour import (
    dynamic_reward_rows,
    equivariant_rows,
    fine_tuning_rows,
    glow_rows,
    growth_rows,
    hy_wu_rows,
    know_rows,
    learngene_rows,
    ofq_rows,
    pulse_rows,
    quantization_rows,
    rws_rows,
    stacking_rows,
)
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
    "lightning_weights.callbacks.IBPWarmup": Subject(
        {
            "max_eps": 0.1,
            "network": "net",
            "kind": "linear",
            "start_epoch": 1,
            "ramp_epochs": 2,
            "mid": 0.5,
            "beta": 3.0,
            "bound": "crown-ibp",
            "loss_fusion": True,
            "reg_lambda": 0.1,
            "reg_terms": ["relu"],
            "tol": 0.4,
            "min_eps_reg": 1e-5,
            "sync_regularizer": True,
            "mean": [0.1],
            "std": [0.5],
            "input_range": [-1.0, 1.0],
            "init": "keep",
            "force_init": True,
        },
        wrong=("kind", "cubic"),
    ),
    "lightning_weights.callbacks.TSCNC": Subject(
        {
            "num_train_samples": 16,
            "weight_decay": 1e-4,
            "l0": 1e-2,
            "a": 10.0,
            "tsc_weight": 0.5,
            "cnc_weight": 0.1,
            "cnc_layers": ["net.0", "net.3"],
            "cnc_mode": "amgm",
            "gated_layers": ["net.0"],
            "droprate_init": 0.2,
            "temperature": 0.5,
            "ema_decay": 0.9,
            "released_sign": True,
        },
        wrong=("cnc_mode", "spectral"),
    ),
    "lightning_weights.callbacks.ScorePruning": Subject(
        {
            "keep": 0.5,
            "scope": "global",
            "init": "random",
            "train_bn": False,
            "exclude": ["net.3"],
            "start_epoch": 1,
        },
        wrong=("scope", "network"),
    ),
    "lightning_weights.callbacks.FinetunePruned": Subject({"start_epoch": 2}, wrong=("start_epoch", "last")),
    "lightning_weights.callbacks.WeightAligning": Subject(
        {"classifier": "net.3", "num_old": 1, "clip": False, "align": False, "include_bias": True},
        wrong=("num_old", "half"),
    ),
    **fine_tuning_rows.SUBJECTS,
    **ofq_rows.SUBJECTS,
    **quantization_rows.SUBJECTS,
    **pulse_rows.SUBJECTS,
    **learngene_rows.SUBJECTS,
    **growth_rows.SUBJECTS,
    **equivariant_rows.SUBJECTS,
    **glow_rows.SUBJECTS,
    **dynamic_reward_rows.SUBJECTS,
    **hy_wu_rows.SUBJECTS,
    **know_rows.SUBJECTS,
    **rws_rows.SUBJECTS,
    **stacking_rows.SUBJECTS,
}

PLAIN_SGD = ("torch.optim.SGD", {"lr": 0.05, "momentum": 0.9})
_EXACT = ("lightning_weights.callbacks.ExactResume", {})

_CLASSP_CALLBACKS: tuple[Any, ...] = (
    ("lightning_weights.callbacks.TaskStream", {"epochs_per_task": 1}),
    ("lightning_weights.callbacks.CLASSPPhases", {"first_threshold": 0.0, "later_threshold": 1e-4, "unit": "task"}),
    _EXACT,
)


def certified_loss(module: Any, x: Tensor, y: Tensor) -> Tensor:
    """Return the loss of a module that IBPWarmup has given a certifier."""
    return module.certifier.loss(module.net, x, y)


_RAMP = {"max_eps": 0.1, "network": "net", "start_epoch": 1, "ramp_epochs": 2, "input_range": [-10.0, 10.0]}
_PHASES = (
    ("lightning_weights.callbacks.ScorePruning", {"keep": 0.5, "start_epoch": 1}),
    ("lightning_weights.callbacks.FinetunePruned", {"start_epoch": 2}),
)

SETUPS: tuple[Setup, ...] = (
    Setup("classp", ("lightning_weights.optimizers.CLASSP", {"lr": 0.05, "threshold": 1e-5}), _CLASSP_CALLBACKS),
    Setup(
        "ibp_warmup",
        PLAIN_SGD,
        (("lightning_weights.callbacks.IBPWarmup", {**_RAMP, "sync_regularizer": True}), _EXACT),
        loss=certified_loss,
        refuses={"fsdp2": ShardedParameterError, "no matrices": ValueError},
        differs={
            "accumulation": "the regularisers look at whole batches, not at sums over samples",
            "bf16": "bounds are computed in fp32 under autocast too",
        },
    ),
    Setup(
        "tscnc",
        PLAIN_SGD,
        (
            ("lightning_weights.callbacks.TSCNC", {"gated_layers": None, "cnc_weight": 0.1, "ema_decay": None}),
            *_PHASES,
            _EXACT,
        ),
        refuses={"fsdp2": ShardedParameterError, "no matrices": ValueError},
    ),
    Setup(
        "weight_align",
        PLAIN_SGD,
        (
            (
                "lightning_weights.callbacks.WeightAligning",
                {"classifier": "net.3", "num_old": 1, "include_bias": True},
            ),
            _EXACT,
        ),
        refuses={"no matrices": ValueError},
    ),
    *fine_tuning_rows.SETUPS,
    *ofq_rows.SETUPS,
    *quantization_rows.SETUPS,
    *pulse_rows.SETUPS,
    *learngene_rows.SETUPS,
    *growth_rows.SETUPS,
    *equivariant_rows.SETUPS,
    *glow_rows.SETUPS,
    *dynamic_reward_rows.SETUPS,
    *hy_wu_rows.SETUPS,
    *know_rows.SETUPS,
    *rws_rows.SETUPS,
    *stacking_rows.SETUPS,
)

# Options that behave differently where something is resumed or distributed; the rest of the battery leaves them out.
VARIANTS: tuple[Setup, ...] = (
    Setup(
        "classp_reference",
        ("lightning_weights.optimizers.CLASSP", {"lr": 0.05, "variant": "reference"}),
        _CLASSP_CALLBACKS,
        refuses={"fsdp2": ShardedParameterError},
    ),
    Setup(
        "ibp_warmup_local",
        PLAIN_SGD,
        (("lightning_weights.callbacks.IBPWarmup", {**_RAMP, "bound": "crown-ibp"}), _EXACT),
        loss=certified_loss,
        refuses={"fsdp2": ShardedParameterError},
        differs={"ddp": "every process regularises its own part of the batch"},
    ),
    Setup(
        "tscnc_gated",
        PLAIN_SGD,
        (
            ("lightning_weights.callbacks.TSCNC", {"gated_layers": ["net.0"], "cnc_weight": 0.1, "ema_decay": 0.9}),
            *_PHASES,
            _EXACT,
        ),
        refuses={"fsdp2": ShardedParameterError},
    ),
    *fine_tuning_rows.VARIANTS,
    *ofq_rows.VARIANTS,
    *pulse_rows.VARIANTS,
    *growth_rows.VARIANTS,
    *equivariant_rows.VARIANTS,
    *glow_rows.VARIANTS,
    *dynamic_reward_rows.VARIANTS,
    *know_rows.VARIANTS,
)

OPTIMIZERS = [path for path in SUBJECTS if path.startswith("lightning_weights.optimizers.")]
CALLBACKS = [path for path in SUBJECTS if path.startswith("lightning_weights.callbacks.")]

every_setup = pytest.mark.parametrize("row", SETUPS, ids=lambda row: row.name)
# what only the package's own optimizers have to show
own_optimizers = pytest.mark.parametrize(
    "row", [row for row in SETUPS if row.optimizer[0] in OPTIMIZERS], ids=lambda row: row.name
)


def public_parts() -> set[str]:
    """Return the import paths of every public optimizer and callback, from the packages and the method cards."""
    exported = {f"{room.__name__}.{name}" for room in ROOMS for name in room.__all__}
    cards = {path for card in METHODS for path in card.classes}
    return exported | {path for path in cards if path.startswith(tuple(f"{room.__name__}." for room in ROOMS))}


def parts_in_setups() -> set[str]:
    """Return the import paths of the package's classes that take part in some run."""
    paths = {path for row in SETUPS for path, _ in (row.optimizer, *row.callbacks)}
    return {path for path in paths if path.startswith("lightning_weights.")}
