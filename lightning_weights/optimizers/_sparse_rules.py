"""Hyper-parameters of LIFTAdamW: what is allowed, what a resumed run cannot change, and what is worth a warning."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, get_args

from lightning_weights.errors import LightningWeightsWarning, check_choice, check_number
from lightning_weights.functional.lift import Selector, budget
from lightning_weights.functional.low_rank import SVDMethod
from lightning_weights.optimizers._adam_groups import check_betas
from lightning_weights.optimizers._sparse_state import entries
from lightning_weights.optimizers._sparse_targets import Target

STATE_DTYPES = ("float32", "float64", "bfloat16")
FIXED = ("budget_rank", "density", "filter_rank", "selector", "state_dtype")
RANKED = ("lift", "bottom")  # selectors that decompose the weight
SHORT_INTERVAL = 20  # steps below which decompositions take a good part of the time
LONG_FIRST_MOVE = 1.5  # learning rates that a newly chosen entry moves at first


def check_rules(group: dict[str, Any]) -> None:
    """Refuse hyper-parameters that are out of range or contradict each other."""
    for name in ("lr", "eps", "weight_decay"):
        check_number(name, group[name], low=0.0)
    check_betas(group["betas"])
    budget((1, 1), budget_rank=group["budget_rank"], density=group["density"])
    for name in ("filter_rank", "update_interval"):
        check_number(name, group[name], low=1, whole=True)
    check_number("seed", group["seed"], low=0, whole=True)
    check_choice("selector", group["selector"], get_args(Selector))
    check_choice("svd", group["svd"], get_args(SVDMethod))
    check_choice("state_dtype", group["state_dtype"], STATE_DTYPES)


def check_saved_rules(group: dict[str, Any], saved: dict[str, Any]) -> None:
    """Refuse a checkpoint whose selections were made by other rules."""
    if not saved.keys() >= set(FIXED):
        raise ValueError(
            f"the checkpoint has no {FIXED[0]}: it is another optimizer's. Resume with that one, or start anew"
        )
    for name in FIXED:
        if saved[name] != group[name]:
            raise ValueError(
                f"{name} is {group[name]!r}, the checkpoint was made with {saved[name]!r}, and its selection and "
                f"moments fit nothing else. Resume with {name}={saved[name]!r}, or load the weights alone and start "
                f"the optimizer anew"
            )


def warn_about_rules(group: dict[str, Any]) -> None:
    """Say what is allowed and surprising."""
    beta1, beta2 = group["betas"]
    first_move = (1.0 - beta1) / math.sqrt(1.0 - beta2)
    if first_move > LONG_FIRST_MOVE:
        _warn(
            f"with betas=({beta1}, {beta2}) an entry that is newly chosen first moves by {first_move:.2f} learning "
            f"rates, since its moments are zero and the bias correction is over; beta2=0.95 makes it 0.45"
        )
    if group["weight_decay"] > 0:
        _warn(
            f"weight_decay={group['weight_decay']} reaches only the chosen entries of a matrix; all others keep their "
            f"values"
        )


def warn_about_choice(chosen: Sequence[Target], seconds: float, told: set[str]) -> None:
    """Say, once each, what the sizes of the matrices make of the hyper-parameters."""
    small = [t for t in chosen if t.group["selector"] in RANKED and t.group["filter_rank"] > min(t.param.shape)]
    if small and _first("rank", told):
        _warn(
            f"filter_rank={small[0].group['filter_rank']} is more than the rank of {_list(small)}: there W_r is W "
            f"itself, and the choice that of the largest magnitudes. Lower it to a quarter of the smaller side or less"
        )
    dense = [t for t in chosen if entries(t) == t.param.numel()]
    if dense and _first("dense", told):
        _warn(f"the budget covers all of {_list(dense)}, so that they are trained densely; lower budget_rank")
    often = [t for t in chosen if t.group["selector"] in RANKED and t.group["update_interval"] < SHORT_INTERVAL]
    if often and _first("interval", told):
        _warn(
            f"update_interval is {often[0].group['update_interval']}: choosing the entries of {len(chosen)} matrices "
            f"took {seconds:.2g} s and happens so often; 400 is usual"
        )


def warn_if_nothing_is_marked(targets: Sequence[Target], told: set[str]) -> None:
    """Say, once, that embeddings and output layers cannot be told from other matrices."""
    if all(target.marked is None for target in targets) and _first("marks", told):
        _warn(
            f"no parameter is marked, so all {len(targets)} trainable matrices get masks, embeddings and output layers "
            f"included, and every other parameter is trained densely. In Lightning add the LIFTFinetuning callback, "
            f"which marks linear layers and freezes the rest; elsewhere set weight._lw_sparse = True on them"
        )


def _warn(message: str) -> None:
    warnings.warn(message, LightningWeightsWarning, stacklevel=5)


def _first(topic: str, told: set[str]) -> bool:
    new = topic not in told
    told.add(topic)
    return new


def _list(targets: Sequence[Target]) -> str:
    names = [target.name for target in targets]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
