"""The updates of LIFTAdamW, given what it keeps for each parameter."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_weights.functional.adam import dense_adamw, step_size
from lightning_weights.kernels.sparse_adamw import mixed, sparse_adamw
from lightning_weights.optimizers._sparse_state import new_dense_state
from lightning_weights.optimizers._sparse_targets import Target


def step_sparse(group: dict[str, Any], targets: Sequence[Target], states: dict[Tensor, dict[str, Any]]) -> None:
    """Update the chosen entries of the matrices of one group, those of one device and age together."""
    together = defaultdict(list)
    for target in targets:
        states[target.param]["step"] += 1
        together[target.param.device, states[target.param]["step"]].append(target)
    beta1, beta2 = group["betas"]
    for (_, step), alike in together.items():
        kept = [states[target.param] for target in alike]
        size = step_size(step, lr=group["lr"], betas=(beta1, beta2))
        sparse_adamw(
            [target.param for target in alike],
            [state["idx"] for state in kept],
            [target.gradient for target in alike],
            [state["m"] for state in kept],
            [state["v"] for state in kept],
            [size] * len(alike),
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            decay=1.0 - group["lr"] * group["weight_decay"],
            rounding_seed=mixed(group["seed"] ^ mixed(step)) >> 1 if group["stochastic_rounding"] else None,
        )


def step_dense(target: Target, state: dict[str, Any]) -> None:
    """Update all of a parameter without a mask."""
    if not state:
        state.update(new_dense_state(target))
    state["step"] += 1
    dense_adamw(
        target.param,
        target.param.grad,
        state["m"],
        state["v"],
        step=state["step"],
        **{name: target.group[name] for name in ("lr", "betas", "eps", "weight_decay")},
    )
