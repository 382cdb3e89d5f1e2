"""Names and tensors of a network as signatures know them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_weights.errors import ShardedParameterError
from lightning_weights.functional.fingerprint import fingerprint, plain_name

WRAPPERS = ("module", "model", "net", "network")  # parts that projects put around a whole network
HEADS = ("head", "heads", "classifier", "fc", "lm_head")
RUNNING = ("running_mean", "running_var", "num_batches_tracked")
SHARDED = ("_fsdp_wrapped_module", "_flat_param")


def raw_tensors(network: Any) -> dict[str, Tensor]:
    """Return the tensors of a module (its own ones) or of a state dict by name, as in ``state_dict()``.

    Args:
        network: A module, its state dict, or a checkpoint with a ``state_dict``.

    Raises:
        ValueError: If it is something else.
        ShardedParameterError: If a module is wrapped by FSDP.
    """
    if isinstance(network, nn.Module):
        if any(part in name for name, _ in network.named_parameters() for part in SHARDED):
            raise ShardedParameterError("the network is sharded by FSDP; use DDP, one device, or a gathered state dict")
        # not by state_dict, which modules and hooks may change
        tensors: Mapping[str, Any] = {
            f"{prefix}.{name}".removeprefix("."): value
            for prefix, part in network.named_modules(remove_duplicate=False)
            for name, value in (*part._parameters.items(), *part._buffers.items())
            if name not in part._non_persistent_buffers_set
        }
    elif isinstance(network, Mapping):
        tensors = network["state_dict"] if isinstance(network.get("state_dict"), Mapping) else network
    else:
        raise ValueError(f"a {type(network).__name__} is no network; allowed is a module or a state dict")
    return {plain_name(name): value for name, value in tensors.items() if isinstance(value, Tensor)}


def network_tensors(network: Any) -> dict[str, Tensor]:
    """Return the tensors of a network by name, without the names of what projects put around a whole network.

    Args:
        network: As of ``raw_tensors``.
    """
    tensors = raw_tensors(network)
    while len(firsts := {name.partition(".")[0] for name in tensors}) == 1 and firsts <= set(WRAPPERS):
        tensors = {name.partition(".")[2]: value for name, value in tensors.items()}
    return tensors


def is_running(name: str) -> bool:
    """Tell whether a tensor is a statistic that a normalisation keeps."""
    return name.rpartition(".")[2] in RUNNING


def is_layer_weight(name: str, tensor: Tensor) -> bool:
    """Tell whether a tensor is the weight of a linear layer or a convolution."""
    return name.rpartition(".")[2] == "weight" and tensor.ndim >= 2


def body(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without the classifier, which depends on the data's classes, and without statistics.

    The classifier is the last layer, and every first part of a name that is a usual name of one.

    Args:
        tensors: Tensors of a whole network by name, in their order.
    """
    weights = [name for name, tensor in tensors.items() if is_layer_weight(name, tensor)]
    last = weights[-1].rpartition(".")[0] if weights else None
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name.rpartition(".")[0] != last and name.partition(".")[0] not in HEADS and not is_running(name)
    }


def architecture(tensors: Mapping[str, Tensor]) -> str:
    """Return a text that tells architectures apart, from names and shapes of all tensors but the classifier's.

    Args:
        tensors: Tensors of a whole network by name.
    """
    blank = {name: torch.zeros((), dtype=torch.float32).expand(tensor.shape) for name, tensor in body(tensors).items()}
    return fingerprint(blank)


def differences(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """Say in which names and shapes two sets of tensors differ.

    Args:
        first: Tensors by name.
        second: Tensors by name.
    """
    lone = [f"{name} is not in the other" for name in first if name not in second]
    lone += [f"{name} is in the other only" for name in second if name not in first]
    return lone + [
        f"{name} is {tuple(first[name].shape)} and {tuple(second[name].shape)}"
        for name in first
        if name in second and first[name].shape != second[name].shape
    ]
