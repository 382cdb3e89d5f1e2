"""What GradNormLoRPAdamW remembers of one parameter: the projection and two moments, in 32 or in 8 bits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_weights.errors import ShardedParameterError
from lightning_weights.functional.gradient_projection import Projection, transport_moments
from lightning_weights.kernels.projected_adam.blockwise import BLOCK, blocks, dequantize, quantize

SMALLEST_QUANTIZED = 4096  # elements of a moment; shorter ones stay in 32 bits
SIDES = ("projection_left", "projection_right")


def is_projected(state: dict[str, Any]) -> bool:
    """Whether a state that exists belongs to a projected parameter."""
    return any(side in state for side in SIDES)


def projection_of(state: dict[str, Any]) -> Projection:
    """Return the projection in use, None on sides that are not projected."""
    return Projection(*(state.get(side) for side in SIDES))


def sides_of(projection: Projection) -> tuple[bool, bool]:
    """Whether it projects from the left, and from the right."""
    return projection.left is not None, projection.right is not None


def projected_shape(param: Tensor, projection: Projection) -> tuple[int, ...]:
    """Return the shape of a projected gradient, for a parameter without projection its own."""
    if not any(sides_of(projection)):
        return tuple(param.shape)
    rows = param.shape[0] if projection.left is None else projection.left.shape[1]
    columns = param.shape[1] if projection.right is None else projection.right.shape[0]
    return rows, columns


def create_state(state: dict[str, Any], param: Tensor, projection: Projection, state_bits: int) -> None:
    """Fill an empty state with the projection and moments of zero."""
    shape = projected_shape(param, projection)
    numel = torch.Size(shape).numel()
    state["step"] = 0
    adopt(state, projection)
    if state_bits == 32 or numel < SMALLEST_QUANTIZED or param.dtype == torch.float64:
        dtype = torch.promote_types(param.dtype, torch.float32)
        for moment in ("exp_avg", "exp_avg_sq"):
            plain = not any(sides_of(projection))
            zeros = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
            state[moment] = zeros if plain else param.new_zeros(shape, dtype=dtype)
        return
    if hasattr(param, "placements"):
        raise ShardedParameterError("blocks of 8-bit states cross the borders of shards; use state_bits=32 under FSDP2")
    # Blocks run along the projected side: what is projected from the left only lies transposed.
    lying = shape[::-1] if sides_of(projection) == (True, False) else shape
    state["block_size"] = BLOCK
    for moment in ("exp_avg", "exp_avg_sq"):
        state[moment] = param.new_zeros(lying, dtype=torch.uint8)
        state[f"{moment}_absmax"] = param.new_zeros(blocks(numel), dtype=torch.float32)
        if moment == "exp_avg" and not param.is_meta:
            quantize(torch.zeros(lying, device=param.device), state[moment], state[f"{moment}_absmax"], signed=True)


def adopt(state: dict[str, Any], projection: Projection) -> None:
    """Put a projection in the place of the present one."""
    state.update({side: part for side, part in zip(SIDES, projection, strict=True) if part is not None})


def refresh_state(state: dict[str, Any], projection: Projection, transport: str) -> None:
    """Take a new projection and leave the moments, turn them into its basis, or forget them."""
    if transport != "none":
        old = read_moments(state)
        moments = transport_moments(*old, projection_of(state), projection)
        write_moments(state, moments if transport == "rotate" else [torch.zeros_like(moment) for moment in old])
    adopt(state, projection)


def read_moments(state: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return both moments in the projected shape, in fp32 or wider."""
    if "block_size" not in state:
        return state["exp_avg"], state["exp_avg_sq"]
    moment = dequantize(state["exp_avg"], state["exp_avg_absmax"], signed=True)
    square = dequantize(state["exp_avg_sq"], state["exp_avg_sq_absmax"], signed=False)
    return (moment.T, square.T) if sides_of(projection_of(state)) == (True, False) else (moment, square)


def write_moments(state: dict[str, Any], moments: Sequence[Tensor]) -> None:
    """Store what `read_moments` would return."""
    if "block_size" not in state:
        state["exp_avg"].copy_(moments[0])
        state["exp_avg_sq"].copy_(moments[1])
        return
    if sides_of(projection_of(state)) == (True, False):
        moments = [moment.T.contiguous() for moment in moments]
    quantize(moments[0].contiguous(), state["exp_avg"], state["exp_avg_absmax"], signed=True)
    quantize(moments[1].contiguous(), state["exp_avg_sq"], state["exp_avg_sq_absmax"], signed=False)


def check_saved_state(position: int, state: dict[str, Any], param: Tensor) -> None:
    """Compare a saved state with the parameter that shall take it.

    Raises:
        ValueError: If it is another optimizer's, or does not fit.
    """
    if not state:
        return
    if "exp_avg" not in state or "exp_avg_sq" not in state:
        raise ValueError(
            f"the state of parameter {position} holds {', '.join(state)} and no exp_avg: it is another optimizer's. "
            f"Resume with that one, or start GradNormLoRPAdamW anew"
        )
    projection = projection_of(state)
    left, right = projection
    fits = not is_projected(state) or (
        param.dim() == 2
        and (left is None or left.shape[0] == param.shape[0])
        and (right is None or right.shape[1] == param.shape[1])
    )
    if not fits or state["exp_avg"].numel() != torch.Size(projected_shape(param, projection)).numel():
        raise ValueError(
            f"exp_avg of parameter {position} has shape {tuple(state['exp_avg'].shape)}, which does not belong to a "
            f"parameter of shape {tuple(param.shape)}. The checkpoint is another network's; build the same one"
        )
