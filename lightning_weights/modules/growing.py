"""Switching a growing network from mode to mode, the moment of growth, and what its optimizer should know."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_weights.errors import ShardedParameterError, check_choice, check_number
from lightning_weights.functional.mixture_growth import COEFFICIENT_INITS
from lightning_weights.modules.mixture_layer import MixtureLayer
from lightning_weights.modules.mixture_part import MODES, MixturePart, Mode
from lightning_weights.modules.template_bank import TemplateBank

Blocks = dict[str, list[Tensor]]


def mixture_parts(module: nn.Module) -> dict[str, MixturePart]:
    """Return the mixture layers and norms of a network by name.

    Args:
        module: Where to look.

    Examples:
        >>> from lightning_weights.modules import MixtureLinear
        >>> list(mixture_parts(nn.Sequential(nn.ReLU(), MixtureLinear(4, 4))))
        ['1']
    """
    return {name: part for name, part in module.named_modules() if isinstance(part, MixturePart)}


def mixture_layers(module: nn.Module) -> list[MixtureLayer]:
    """Return the mixture layers of a network, without its norms.

    Args:
        module: Where to look.
    """
    return [part for part in module.modules() if isinstance(part, MixtureLayer)]


def set_mode(module: nn.Module, mode: Mode) -> None:
    """Switch all mixture layers and norms of a network.

    Args:
        module: A network with mixture layers.
        mode: ``member0``, ``member1`` or ``grown``; for growth itself see ``grow``, which sets coefficients, too.

    Raises:
        ValueError: If there is no such mode, or there are no such layers.

    Examples:
        >>> from lightning_weights.modules import MixtureLinear
        >>> layer = MixtureLinear(4, 4)
        >>> set_mode(layer, "member1")
        >>> layer.mode
        'member1'
    """
    check_choice("mode", mode, MODES)
    parts = mixture_parts(module)
    if not parts:
        raise ValueError(f"{type(module).__name__} has no mixture layers; make them with mixturize")
    for part in parts.values():
        part.mode = mode


@torch.no_grad()
def grow(
    module: nn.Module,
    coefficient_init: str = "orthogonal",
    coefficient_scale: float = 1.0,
    seed: int = 0,
    agree: Callable[[Blocks], Blocks] | None = None,
) -> None:
    """Grow a network to its whole width: set the coefficients of the new blocks, and switch to mode ``grown``.

    It looks at no data, and adds no parameter. The blocks of the members keep every bit.

    Args:
        module: A network with mixture layers.
        coefficient_init: ``orthogonal``, ``scaled``, ``copy``, ``zero``, ``random`` or ``none``, as of
            ``functional.mixture_growth.new_coefficients``.
        coefficient_scale: c, the length of new coefficients or of their noise.
        seed: Of the noise.
        agree: Turns the new coefficients of all layers, on the CPU, into those that are used: with several processes,
            the first one's.

    Raises:
        ValueError: If an argument is not allowed, there are no mixture layers, or they are on the meta device.
        ShardedParameterError: If coefficients are sharded.

    Source: Pham, Teterwak, Nelson & Plummer 2024, arXiv:2311.04251.

    Examples:
        >>> from lightning_weights.modules import MixtureLinear
        >>> layer = MixtureLinear(4, 4)
        >>> grow(layer, "zero")
        >>> layer.mode, bool(layer.weight[:2, 2:].any())
        ('grown', False)
    """
    check_choice("coefficient_init", coefficient_init, COEFFICIENT_INITS)
    check_number("coefficient_scale", coefficient_scale, low=0.0)
    coefficients = coefficients_of(module)
    if any(alpha.is_meta for alpha in coefficients.values()):
        raise ValueError(
            "coefficients are on the meta device and have no values to begin new blocks with; load some first, with "
            "load_state_dict, or look at shapes only, with set_mode(module, 'grown')"
        )
    if any(hasattr(alpha, "placements") for alpha in coefficients.values()):
        raise ShardedParameterError(
            "coefficients are sharded (FSDP2), and whole ones are needed; use DDP, or one device"
        )
    generator = torch.Generator().manual_seed(seed)
    layers = {name: part for name, part in mixture_parts(module).items() if isinstance(part, MixtureLayer)}
    blocks: Blocks = {}
    for name, layer in layers.items():
        new = layer.new_coefficients(coefficient_init, coefficient_scale, generator)
        if new is not None:
            blocks[name] = [alpha.cpu() for alpha in new]
    set_mode(module, "grown")
    for name, new in (blocks if agree is None else agree(blocks)).items():
        for alpha, value in zip(list(layers[name].coefficients)[2:], new, strict=True):
            alpha.copy_(value)


@torch.no_grad()
def copy_templates(module: nn.Module, noise: float = 0.0, seed: int = 0) -> None:
    """Let member 1 start from the templates of member 0, with coefficients and norms of its own.

    Args:
        module: A network with mixture layers.
        noise: Standard deviation of normal noise, in that of the templates of a layer.
        seed: Of the noise.

    Raises:
        ValueError: If the noise is negative.

    Source: an option of the code of Pham, Teterwak, Nelson & Plummer 2024, arXiv:2311.04251.

    Examples:
        >>> from lightning_weights.modules import MixtureLinear
        >>> layer = MixtureLinear(4, 4)
        >>> copy_templates(layer)
        >>> torch.equal(*layer.bank.sets)
        True
    """
    check_number("noise", noise, low=0.0)
    generator = torch.Generator().manual_seed(seed)
    for bank in (part for part in module.modules() if isinstance(part, TemplateBank)):
        first, second = bank.sets
        drawn = torch.randn(first.shape, generator=generator, device="cpu").to(first)
        second.copy_(first + noise * first.std(correction=0) * drawn)


def coefficients_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the coefficients of all mixture layers of a network, by name.

    Args:
        module: A network with mixture layers.
    """
    return {
        f"{name}.coefficients.{block}": alpha
        for name, part in mixture_parts(module).items()
        if isinstance(part, MixtureLayer)
        for block, alpha in enumerate(part.coefficients)
    }


def idle_parameters(module: nn.Module, members: Sequence[int] | None = None) -> list[nn.Parameter]:
    """Return the parameters that are not trained now: those of another member, and of blocks that are to come.

    Args:
        module: A network with mixture layers.
        members: Which members are trained. ``None``: that of the current mode, or all that there is after growth.

    Examples:
        >>> from lightning_weights.modules import MixtureLinear
        >>> [tuple(param.shape) for param in idle_parameters(MixtureLinear(4, 4))]
        [(2,), (2,), (2,), (2, 2, 2)]
    """
    found: dict[int, nn.Parameter] = {}
    for part in mixture_parts(module).values():
        if part.mode == "grown":
            continue
        busy = (MODES.index(part.mode),) if members is None else members
        lists = [part.coefficients, part.bank.sets] if isinstance(part, MixtureLayer) else [part.weights]
        for params in (*lists, part.biases):
            found |= {id(param): param for block, param in enumerate(params or ()) if block not in busy}
    return list(found.values())


def mixture_param_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer: decay for everything but coefficients.

    Args:
        module: A network with mixture layers.
        weight_decay: Of templates, norms and whatever else there is.

    Raises:
        ValueError: If the decay is negative.

    Examples:
        >>> from lightning_weights.modules import MixtureLinear
        >>> groups = mixture_param_groups(MixtureLinear(4, 4), weight_decay=5e-4)
        >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
        [(2, 0.0005), (4, 0.0)]
    """
    check_number("weight_decay", weight_decay, low=0.0)
    ours = {id(alpha) for alpha in coefficients_of(module).values()}
    groups: list[dict[str, Any]] = []
    for decays in (True, False):
        params = [param for param in module.parameters() if param.requires_grad and (id(param) not in ours) is decays]
        if params:
            groups.append({"params": params, "weight_decay": weight_decay if decays else 0.0})
    return groups
