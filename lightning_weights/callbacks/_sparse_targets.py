"""Choose and check the matrices of which some entries are fine-tuned in place."""

import warnings
from collections.abc import Sequence

from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from lightning_weights.callbacks._targets import check_same_targets, target_layers
from lightning_weights.errors import LightningWeightsWarning, ShardedParameterError

MARK, NAME = "_lw_sparse", "_lw_name"  # attributes of a parameter, which its optimizer reads


def mark(param: nn.Parameter, name: str) -> None:
    """Tell the optimizer of a parameter to train selected entries of it, and its name for messages."""
    setattr(param, MARK, True)
    setattr(param, NAME, name)


def clear(param: nn.Parameter) -> None:
    """Take the marks off a parameter."""
    for attribute in (MARK, NAME):
        vars(param).pop(attribute, None)


def sparse_targets(
    module: nn.Module, target_modules: str | Sequence[str], exclude_modules: Sequence[str]
) -> dict[str, nn.Parameter]:
    """Return the weights of linear layers, by parameter name, that can be trained in place.

    Args:
        module: Network or LightningModule.
        target_modules: As of ``target_layers``.
        exclude_modules: As of ``target_layers``.

    Raises:
        ValueError: If no layer is left, or a weight cannot be trained in place.
        ShardedParameterError: If a weight is sharded.
    """
    targets: dict[str, nn.Parameter] = {}
    owners: dict[int, list[str]] = {}
    for name, part in module.named_modules():
        for param in part.parameters(recurse=False):
            owners.setdefault(id(param), []).append(name)
    layers = target_layers(module, target_modules, exclude_modules)
    if present := [name for name, part in module.named_modules() if _is_marked(part)]:
        chosen = {id(layer.weight) for layer in layers.values()}
        asked = [name for name, part in module.named_modules() if id(getattr(part, "weight", None)) in chosen]
        check_same_targets(present, asked, target_modules, "give the same target_modules, or build the network anew")
    for name, layer in layers.items():
        if is_parametrized(layer, "weight"):
            raise ValueError(f"the weight of {name} has a parametrization; remove it, or exclude the layer")
        weight = layer.weight
        _check(name, weight)
        if len(owners[id(weight)]) > 1:
            warnings.warn(
                f"the weight of {name} is shared by {' and '.join(owners[id(weight)])}, which all change; exclude the "
                f"layer if only one of them should",
                LightningWeightsWarning,
                stacklevel=3,
            )
        if all(weight is not known for known in targets.values()):
            targets[f"{name}.weight" if name else "weight"] = weight
    return targets


def _is_marked(part: nn.Module) -> bool:
    return any(getattr(param, MARK, False) is True for param in part.parameters(recurse=False))


def _check(name: str, weight: nn.Parameter) -> None:
    if isinstance(weight, DTensor):
        raise ShardedParameterError(
            f"the weight of {name} is sharded (FSDP2), and its principal entries are those of the whole matrix; use "
            f"DDP, or one device"
        )
    if is_lazy(weight) or weight.is_meta:
        raise ValueError(
            f"the weight of {name} has no values yet; before fit, run a batch through lazy layers and move the module "
            f"from the meta device"
        )
    if not weight.is_floating_point() or weight.ndim != 2:
        raise ValueError(
            f"the weight of {name} is a {weight.ndim}-d tensor of {weight.dtype}: a quantized matrix cannot be trained "
            f"in place; load the model in bfloat16, or fine-tune with Bone or LoRA"
        )
    if not weight.requires_grad:
        raise ValueError(
            f"the weight of {name} is frozen: requires_grad is False; unfreeze it, or leave it out of the targets"
        )
