"""Tensors of which every process may have a part."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_weights.functional.fingerprint import plain_name


def whole(tensor: Any) -> Tensor:
    """Return a tensor with all its parts; every process must ask for it.

    Args:
        tensor: A tensor, sharded or not.
    """
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def laid_out_like(tensor: Any, values: Tensor) -> Tensor:
    """Return whole values for a tensor, with its type, on its device and in its shards.

    Args:
        tensor: A tensor, sharded or not.
        values: The same values in every process.
    """
    values = values.to(tensor.device, tensor.dtype)
    if not hasattr(tensor, "full_tensor"):
        return values
    from torch.distributed.tensor import distribute_tensor  # costs half a second where nothing is sharded

    return distribute_tensor(values, tensor.device_mesh, tensor.placements)


@torch.no_grad()
def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of a module's state on the CPU, gathered and in fp32; tied tensors stay tied.

    Args:
        module: The module; every process must ask for it.
    """
    copies: dict[tuple[Any, ...], Tensor] = {}
    tensors = {}
    for name, value in module.state_dict().items():
        gathered = whole(value)
        key = (value.data_ptr(), value.shape, value.stride()) if gathered is value else (name,)
        if key not in copies:
            dtype = torch.float32 if gathered.is_floating_point() else gathered.dtype
            copies[key] = gathered.to("cpu", dtype, copy=True)
        tensors[plain_name(name)] = copies[key]
    return tensors
