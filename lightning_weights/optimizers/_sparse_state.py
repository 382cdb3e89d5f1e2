"""What LIFTAdamW keeps for a matrix: the choice of entries, their moments, and when they change."""

from typing import Any

import torch
from torch import Tensor

from lightning_weights.functional.lift import budget, carry, select_indices
from lightning_weights.optimizers._sparse_targets import Target


def entries(target: Target) -> int:
    """Return how many entries of a matrix are chosen."""
    group = target.group
    return budget(target.param.shape, budget_rank=group["budget_rank"], density=group["density"])


def state_dtype(group: dict[str, Any], param: Tensor) -> torch.dtype:
    """Return the type of the moments; fp64 weights have fp64 moments, whatever was asked for."""
    return torch.float64 if param.dtype == torch.float64 else getattr(torch, group["state_dtype"])


def refreshes_after(step: int, group: dict[str, Any]) -> bool:
    """Return whether entries are chosen anew after a step, 1 for the first: after N - 1, 2N - 1, ..."""
    return (step + 1) % group["update_interval"] == 0


def chooses_by_gradient(group: dict[str, Any], state: dict[str, Any]) -> bool:
    """Return whether the coming step chooses entries by the gradient."""
    return group["selector"] == "gradient" and ("idx" not in state or refreshes_after(state["step"] + 1, group))


def choose(target: Target) -> Tensor:
    """Return the indices of the entries that are chosen now; errors name the parameter."""
    group = target.group
    try:
        return select_indices(
            target.param,
            entries(target),
            group["selector"],
            filter_rank=group["filter_rank"],
            svd=group["svd"],
            gradient=target.param.grad,
            seed=group["seed"] + target.position,
        )
    except ValueError as error:
        raise ValueError(f"{target.name}: {error}") from error


def new_sparse_state(target: Target) -> dict[str, Any]:
    """Return the state of a matrix before its first step."""
    indices = choose(target)
    first = torch.zeros(len(indices), dtype=state_dtype(target.group, target.param), device=indices.device)
    return {"step": 0, "idx": indices, "m": first, "v": first.clone()}


def new_dense_state(target: Target) -> dict[str, Any]:
    """Return the state of a parameter without a mask before its first step."""
    wide = torch.promote_types(state_dtype(target.group, target.param), torch.float32)
    return {"step": 0, **{name: torch.zeros_like(target.param, dtype=wide) for name in ("m", "v")}}


def refresh(target: Target, state: dict[str, Any]) -> None:
    """Choose entries anew; those that stay keep their moments."""
    indices = choose(target)
    for name in ("m", "v"):
        state[name] = carry(state[name], state["idx"], indices)
    state["idx"] = indices


def check_saved_state(target: Target, state: dict[str, Any]) -> None:
    """Refuse what another optimizer, another network or another budget has left; an empty state is none."""
    if not state:
        return
    if "m" not in state:
        raise ValueError(
            f"the saved state of {target.name} holds {', '.join(state)} and no m: it is another optimizer's. Resume "
            f"with that one, or start LIFTAdamW anew"
        )
    wanted = (entries(target),) if "idx" in state else tuple(target.param.shape)
    if tuple(state["m"].shape) != wanted:
        raise ValueError(
            f"the saved moments of {target.name} have shape {tuple(state['m'].shape)}, allowed is {wanted}: the "
            f"checkpoint belongs to another network or another budget_rank or density"
        )
