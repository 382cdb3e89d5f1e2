"""What the hyper-parameters of a group of GradNormLoRPAdamW may be, and what they mean for one of its parameters."""

import logging
import warnings
from typing import Any, get_args

import torch
from torch import Tensor

from lightning_weights.errors import LightningWeightsWarning, ShardedParameterError, check_choice, check_number
from lightning_weights.functional.adam import step_size
from lightning_weights.functional.gradient_projection import (
    MomentTransport,
    Projection,
    ProjectionType,
    gradient_projection,
)
from lightning_weights.functional.low_rank import SVDMethod
from lightning_weights.kernels.projected_adam.blockwise import code_map
from lightning_weights.optimizers._adam_groups import check_betas, parameter_name
from lightning_weights.optimizers._projected_state import is_projected

logger = logging.getLogger(__name__)

Entry = tuple[dict[str, Any], int, Tensor]  # group, position in it, parameter


def check_hyper_parameters(group: dict[str, Any]) -> None:
    """Check the values of a group, or the defaults.

    Raises:
        ValueError: If one is not allowed.
        MissingDependencyError: If states shall have 8 bits and bitsandbytes is not installed.
    """
    for name in ("lr", "weight_decay"):
        check_number(name, group[name], low=0.0)
    for name in ("eps", "scale"):
        check_number(name, group[name], low=0.0, low_allowed=False)
    check_betas(group["betas"])
    if group["rank"] is not None:
        check_number("rank", group["rank"], low=1, whole=True)
    check_number("update_proj_gap", group["update_proj_gap"], low=1, whole=True)
    check_choice("proj_type", group["proj_type"], get_args(ProjectionType))
    check_choice("state_bits", group["state_bits"], (8, 32))
    check_choice("svd", group["svd"], get_args(SVDMethod))
    check_choice("moment_transport", group["moment_transport"], get_args(MomentTransport))
    check_choice("sign_fix", group["sign_fix"], (True, False))
    if group["state_bits"] == 8:
        code_map(True, torch.device("cpu"))


def check_parameters(group: dict[str, Any], own_rank: bool) -> None:
    """Check the parameters of a group.

    Raises:
        ValueError: If one is not real floating point, or one that is to be projected is no matrix.
    """
    for index, param in enumerate(group["params"]):
        name = parameter_name(group, index)
        if not param.is_floating_point():
            raise ValueError(f"{name} is a {param.dtype} tensor; leave it out, allowed are real floating-point ones")
        if param.dim() != 2 and (own_rank or getattr(param, "_lw_project", False)):
            raise ValueError(
                f"{name} has {param.dim()} dimensions, and only matrices are projected; put it into a group without "
                f"rank"
            )


def check_gradient(group: dict[str, Any], index: int, lacks_rest: bool) -> None:
    """Refuse a gradient that the step cannot use: a sparse one, or a projection where all of it is needed."""
    name = parameter_name(group, index)
    if group["params"][index].grad.is_sparse:
        raise RuntimeError(
            f"the gradient of {name} is sparse, which GradNormLoRPAdamW does not support; use "
            f"nn.Embedding(sparse=False) or torch.optim.SparseAdam for it"
        )
    if lacks_rest:
        raise RuntimeError(
            f"the gradient of {name} came projected, but this step needs all of it for a new projection; change "
            f"update_proj_gap before the backward pass, not after it"
        )


def choose_projected(groups: list[dict[str, Any]], fresh: list[Entry]) -> dict[Tensor, bool]:
    """Decide which parameters without state are projected, and say what is worth knowing about it."""
    if not fresh:
        return {}
    marked = any(getattr(param, "_lw_project", False) for group in groups for param in group["params"])
    chosen = {}
    for group, _, param in fresh:
        wanted = getattr(param, "_lw_project", False) if marked else param.dim() == 2
        chosen[param] = group["rank"] is not None and (group["all_matrices"] or wanted) and param.numel() > 0
    names = [
        parameter_name(group, index)
        for group, index, param in fresh
        if chosen[param] and group["rank"] >= min(param.shape)
    ]
    if names:
        warnings.warn(
            f"rank reaches the shorter side of {len(names)} of {sum(chosen.values())} projected parameters, such "
            f"as {names[0]}: rotation only, no memory saved. Use a smaller rank to save optimizer memory",
            LightningWeightsWarning,
            stacklevel=5,
        )
    if not marked and any(chosen.values()):
        logger.info("GradNormLoRPAdamW: no parameter is marked by the callback GradNormLoRP: plain GaLore-AdamW")
    return chosen


def new_projection(group: dict[str, Any], index: int, param: Tensor, step: int) -> Projection:
    """Return the projection that the gradient of a parameter asks for.

    Raises:
        FloatingPointError: If the gradient holds NaN or infinity.
        ShardedParameterError: If the parameter is sharded.
    """
    if hasattr(param, "placements"):
        raise ShardedParameterError(
            f"{parameter_name(group, index)} is sharded, and its projection needs the whole gradient. Keep factors "
            f"replicated (ignored_params of fully_shard), or train with DDP"
        )
    rank, proj_type = group["rank"], group["proj_type"]
    try:
        return gradient_projection(param.grad, rank, proj_type, svd=group["svd"], sign_fix=group["sign_fix"])
    except ValueError as error:
        raise FloatingPointError(
            f"the gradient of {parameter_name(group, index)} holds NaN or infinity in step {step}, where its "
            f"projection is due. Nothing was changed: leave this step out, clip gradients, or lower the learning rate"
        ) from error


def step_size_of(group: dict[str, Any], state: dict[str, Any]) -> float:
    """Return the learning rate with the correction for the steps since moments were zero."""
    age = state["step"]
    if group["moment_transport"] == "reset" and is_projected(state):
        age = (age - 1) % group["update_proj_gap"] + 1
    return step_size(age, lr=group["lr"], betas=group["betas"])
