"""Where in a network a signature goes."""

import warnings
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_weights.errors import LightningWeightsWarning, ShardedParameterError
from lightning_weights.modules._signature_tensors import architecture, raw_tensors
from lightning_weights.modules.robust_weight_signature import RobustWeightSignature

SHOWN = 5  # names in a message


def find_targets(module: nn.Module, signature: RobustWeightSignature) -> dict[str, Tensor]:
    """Return the tensors of a module that a signature is added to, by the signature's names.

    The network may lie anywhere in the module: names of its tensors may have a prefix, the same for all.

    Args:
        module: Network, or a module with it inside.
        signature: The signature.

    Raises:
        ValueError: If the network isn't there, is there several times, has another architecture, or has tensors that
            nothing can be added to.
        ShardedParameterError: If the network is sharded.
    """
    tensors = raw_tensors(module)
    found = {name: tensors[name] for name in _names(signature, tensors)}
    for name, tensor in found.items():
        _check_tensor(name, tensor)
    uses: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        uses.setdefault(id(tensor), []).append(name)
    for name, tensor in found.items():
        if len(names := uses[id(tensor)]) > 1:
            raise ValueError(f"{name} is shared: {' and '.join(names)} are one tensor; untie them or leave it out")
    return dict(zip(signature.shapes, found.values(), strict=True))


def _names(signature: RobustWeightSignature, tensors: Mapping[str, Tensor]) -> list[str]:
    first = next(iter(signature.shapes))
    prefixes = [name.removesuffix(first) for name in tensors if name == first or name.endswith(f".{first}")]
    whole = [prefix for prefix in prefixes if not _obstacles(prefix, signature, tensors)]
    if not whole:
        closest = min(prefixes, key=lambda prefix: len(_obstacles(prefix, signature, tensors)), default="")
        obstacles = _obstacles(closest, signature, tensors)
        raise ValueError(
            f"{signature.name} doesn't fit this network: {'; '.join(obstacles[:SHOWN])}"
            f"{' and more' if len(obstacles) > SHOWN else ''}; use a network of the architecture that it comes from"
        )
    fitting = [prefix for prefix in whole if signature.architecture in ("", _architecture(prefix, tensors))]
    if not fitting:
        raise ValueError(
            f"{signature.name} comes from another architecture: names or shapes of tensors differ outside of its own "
            f"ones. Use a network of the same architecture; of a module with more in it, give the network itself"
        )
    if len(fitting) > 1:
        raise ValueError(
            f"{signature.name} fits {' and '.join(prefix.rstrip('.') or 'the whole' for prefix in fitting)}; give the "
            f"part that is meant instead of the whole module"
        )
    return [f"{fitting[0]}{name}" for name in signature.shapes]


def _architecture(prefix: str, tensors: Mapping[str, Tensor]) -> str:
    return architecture({name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)})


def _obstacles(prefix: str, signature: RobustWeightSignature, tensors: Mapping[str, Tensor]) -> list[str]:
    found = []
    for name, shape in signature.shapes.items():
        tensor = tensors.get(f"{prefix}{name}")
        if tensor is None:
            found.append(f"there is no weight {prefix}{name}")
        elif list(tensor.shape) != shape:
            found.append(f"{prefix}{name} is {tuple(tensor.shape)}, not {tuple(shape)}")
    return found


def _check_tensor(name: str, tensor: Tensor) -> None:
    if hasattr(tensor, "placements"):
        raise ShardedParameterError(
            f"{name} is sharded (a DTensor, FSDP2), and a signature needs whole weights; use DDP, or one device"
        )
    plain = type(tensor.data) is Tensor
    if not tensor.is_floating_point() or not plain:
        kind = tensor.dtype if plain else type(tensor.data).__name__
        raise ValueError(f"{name} is {kind}: quantized weights can't be patched; patch first and quantize then")
    if is_lazy(tensor) or tensor.is_meta:
        raise ValueError(f"{name} has no values yet; run a batch through lazy layers, and leave the meta device first")


def owners(module: nn.Module, tensors: Iterable[Tensor]) -> list[nn.Module]:
    """Return the modules whose own tensors these are, each one once.

    Args:
        module: Where to look.
        tensors: Parameters or buffers.
    """
    wanted = set(map(id, tensors))
    return [
        part
        for part in module.modules()
        if any(id(value) in wanted for value in (*part.parameters(recurse=False), *part.buffers(recurse=False)))
    ]


@torch.no_grad()
def warn_about_rounding(targets: Mapping[str, Tensor], signature: RobustWeightSignature, scale: float) -> None:
    """Say so where most of a signature is lost in the rounding of weights of few bits.

    Args:
        targets: Clean weights by the signature's names.
        signature: The signature.
        scale: With which it is added.
    """
    if scale == 0 or all(torch.finfo(tensor.dtype).bits >= 32 for tensor in targets.values()):
        return
    lost = []
    for name, value in signature.dequantize().items():
        weight = targets[name]
        smallest = torch.finfo(weight.dtype).eps / 4
        small = (scale * value).abs() < smallest * weight.to(value).abs()
        if torch.finfo(weight.dtype).bits < 32 and bool(value.any()) and small.float().mean() > 0.5:
            lost.append(f"{name} ({weight.dtype})")
    if lost:
        warnings.warn(
            f"{signature.name} is mostly lost in the rounding of {', '.join(lost)}: its median is below a quarter of "
            f"what they can tell apart; cast the network to float32 before it is patched",
            LightningWeightsWarning,
            stacklevel=4,
        )
