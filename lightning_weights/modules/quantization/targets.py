"""Which weights of a network are quantized, and which must not be."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from lightning_weights.errors import LightningWeightsWarning, ShardedParameterError, name_list
from lightning_weights.functional.fingerprint import plain_name
from lightning_weights.modules.quantization.marks import mark_of
from lightning_weights.modules.quantized_linear import QuantizedLinear

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Target:
    """A weight to be quantized, with all layers that use it.

    Args:
        names: Names of the layers.
        layers: The layers, nearly always one.
    """

    names: tuple[str, ...]
    layers: tuple[nn.Module, ...]

    @property
    def name(self) -> str:
        """The first name, which stands for the weight."""
        return self.names[0]

    @property
    def weight(self) -> Tensor:
        """The weight itself."""
        return self.layers[0].weight

    def is_in(self, part: str) -> bool:
        """Tell whether all layers belong to a module.

        Args:
            part: Its name.
        """
        return all(_is_inside(name, part) for name in self.names)

    @property
    def parts(self) -> int:
        """Number of groups of a grouped convolution, each of which has inputs of its own; 1 otherwise."""
        return getattr(self.layers[0], "groups", 1)

    @property
    def columns(self) -> int:
        """Number of columns of the weight as a matrix."""
        return self.weight[0].numel()


def matches(name: str, pattern: str) -> bool:
    """Tell whether a regular expression fits a name or the last parts of it.

    Args:
        name: Name of a layer.
        pattern: Regular expression.
    """
    return re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name) is not None


def check_patterns(targets: str, ignore: Sequence[str]) -> list[str]:
    """Check expressions that choose layers, and return those to be ignored as a plain list.

    Args:
        targets: Regular expression of layers to quantize.
        ignore: Regular expressions of modules to leave out.

    Raises:
        ValueError: If one is no regular expression, or ``ignore`` no list of them.
    """
    ignore = name_list("ignore", ignore)
    for name, pattern in (("targets", targets), *(("ignore", entry) for entry in ignore)):
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(f"{name} has {pattern!r}; allowed is a regular expression: {error}") from error
    return ignore


def find_targets(
    module: nn.Module, targets: str, ignore: Sequence[str], inside: Sequence[str] = ("",), force_tied: bool = False
) -> list[Target]:
    """Return the weights to be quantized, in the order of their first layers.

    Args:
        module: Where to look.
        targets: Regular expression of the names of layers, or of the last parts of them.
        ignore: Regular expressions of modules that are left out with all that is inside.
        inside: Names of modules to which the search is confined.
        force_tied: Whether a weight may be quantized that something else uses, too.

    Raises:
        ShardedParameterError: If a weight is sharded.
        ValueError: If no layer is left, or one can't be quantized.

    Warns:
        LightningWeightsWarning: If several layers share a weight.
    """
    ignore = check_patterns(targets, ignore)
    # after a forward pass of FSDP2 parameters may look whole, and are copies
    if any(isinstance(part, (FSDPModule, FullyShardedDataParallel)) for part in module.modules()):
        raise ShardedParameterError("quantization needs whole weights, and FSDP shards them; use DDP, or one device")
    chosen = {}
    for name, layer in module.named_modules():
        plain = plain_name(name)
        parents = [plain[: match.start()] for match in re.finditer(r"\.|$", plain)]
        wanted = matches(plain, targets) and not any(matches(part, p) for p in ignore for part in parents)
        if wanted and any(_is_inside(name, part) for part in inside) and isinstance(layer, (*LAYERS, QuantizedLinear)):
            _check_layer(plain, layer)
            chosen[name] = layer
    if not chosen:
        there = ", ".join(plain_name(n) for n, m in module.named_modules() if isinstance(m, LAYERS)) or "none"
        raise ValueError(
            f"targets={targets!r} without ignore={ignore} names no Linear or Conv layer to quantize; there are {there}"
        )
    return _by_weight(module, chosen, force_tied)


def _is_inside(name: str, part: str) -> bool:
    return not part or name == part or name.startswith(f"{part}.")


def _check_layer(name: str, layer: nn.Module) -> None:
    mark = mark_of(layer)
    if isinstance(layer, QuantizedLinear) or (mark is not None and mark.fits(layer.weight)):
        method = "an earlier run" if mark is None else mark.method
        raise ValueError(
            f"{name} was quantized already, by {method}: what is left of its weight is no longer the one that was "
            f"trained; load the original weights again, or add the layer to ignore"
        )
    if "weight" not in layer._parameters:
        raise ValueError(
            f"{name} has a weight that something else computes (a parametrization, weight_norm, pruning); make it "
            f"permanent first, or add the layer to ignore"
        )
    if isinstance(layer.weight, DTensor):
        raise ShardedParameterError(
            f"cannot quantize {name}: its weight is sharded (FSDP2), and a whole one is needed; use DDP, or one device"
        )
    if is_lazy(layer.weight) or layer.weight.is_meta:
        raise ValueError(f"cannot quantize {name}: its weight has no values yet; load or initialise it first")


def _by_weight(module: nn.Module, chosen: dict[str, nn.Module], force_tied: bool) -> list[Target]:
    owners: dict[int, list[str]] = {}
    for name, part in module.named_modules():
        for param in part.parameters(recurse=False):
            owners.setdefault(id(param), []).append(name)
    by_weight: dict[int, list[str]] = {}
    for name, layer in chosen.items():
        by_weight.setdefault(id(layer.weight), []).append(name)
    found = []
    for key, names in by_weight.items():
        others = [plain_name(name) for name in owners[key] if name not in chosen]
        plain = tuple(plain_name(name) for name in names)
        if others and not force_tied:
            raise ValueError(
                f"the weight of {plain[0]} is that of {' and '.join(others)}, too, which would change with it; add "
                f"{plain[0]!r} to ignore, untie them, or give force_tied=True"
            )
        if len(names) > 1:
            warnings.warn(
                f"{' and '.join(plain)} share a weight: it is quantized once, for the inputs of all of them",
                LightningWeightsWarning,
                stacklevel=2,
            )
        found.append(Target(plain, tuple(chosen[name] for name in names)))
    return found


def find_blocks(module: nn.Module, path: str) -> dict[str, nn.Module]:
    """Return the blocks of a container by name.

    Args:
        module: Where to look.
        path: Name of a ModuleList or Sequential.

    Raises:
        ValueError: If there is none of that name, it is empty, or a block is in it twice.
    """
    parts = {plain_name(name): part for name, part in module.named_modules()}
    containers = (nn.ModuleList, nn.Sequential)
    if not isinstance(parts.get(path), containers) or not len(parts[path]):
        names = [name for name, part in parts.items() if name and isinstance(part, containers)]
        raise ValueError(
            f"blocks is {path!r}; allowed is the name of a ModuleList or Sequential with blocks that follow each "
            f"other: {', '.join(names) or 'there is none, leave blocks out'}"
        )
    blocks = list(parts[path])
    if len({id(block) for block in blocks}) < len(blocks):
        raise ValueError(f"blocks is {path!r}, which holds a block several times; leave blocks out")
    names = {id(part): name for name, part in module.named_modules()}
    return {names[id(block)]: block for block in blocks}


def likely_blocks(module: nn.Module, targets: Sequence[Target]) -> str | None:
    """Return the name of the ModuleList that most targets are in, if at least half of them are."""
    counts = {
        plain_name(name): sum(target.name.startswith(f"{plain_name(name)}.") for target in targets)
        for name, part in module.named_modules()
        if isinstance(part, nn.ModuleList) and len(part) > 1
    }
    best = max(counts, key=lambda name: counts[name], default=None)
    return best if best is not None and 2 * counts[best] >= len(targets) else None


@torch.no_grad()
def write_weight(target: Target, weight: Tensor) -> None:
    """Put a quantized weight in the place of a target's, in its own type.

    Args:
        target: What is quantized.
        weight: Dequantized matrix, one row per output.
    """
    target.weight.data.copy_(weight.reshape(target.weight.shape))
