"""From a plain network to one that grows, and back."""

import copy
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from lightning_weights.errors import check_choice, check_number
from lightning_weights.modules._mixture_roles import NORMS, Role, find_roles
from lightning_weights.modules._mixture_trial import check_halves
from lightning_weights.modules.mixture_batch_norm import MixtureBatchNorm1d, MixtureBatchNorm2d
from lightning_weights.modules.mixture_conv import MixtureConv1d, MixtureConv2d
from lightning_weights.modules.mixture_layer import MixtureLayer
from lightning_weights.modules.mixture_linear import MixtureLinear
from lightning_weights.modules.mixture_part import MixturePart
from lightning_weights.modules.template_bank import TemplateBank

KINDS = {nn.Linear: MixtureLinear, nn.Conv1d: MixtureConv1d, nn.Conv2d: MixtureConv2d}
NORM_KINDS = {nn.BatchNorm1d: MixtureBatchNorm1d, nn.BatchNorm2d: MixtureBatchNorm2d}


def mixturize(
    module: nn.Module,
    num_templates: int | dict[str, int] = 2,
    template_sets: Sequence[int] = (0, 1, 0, 1),
    init: Literal["kaiming", "official"] = "kaiming",
    keep_bias: bool = False,
    banks: Literal["layer", "shape"] | list[list[str]] = "layer",
    stem: list[str] | None = None,
    head: list[str] | None = None,
    input_shape: Sequence[int] | None = None,
) -> nn.Module:
    """Return a network that is trained as two of half the width and then grows to the width of a plain one.

    Linear, Conv and BatchNorm layers become mixture layers and norms, with new weights, also where a layer was frozen,
    and without their hooks; everything else is copied. The first layers and the last are found by tracing: the former
    see all input channels, the latter make all classes. What is between them must treat channels alike, or add features
    up; the plain network stays as it is. Tracing does not see shapes: give ``input_shape`` to have it tried whether the
    halves are networks of their own, which they are not if channels are averaged, or mixed with places by a reshape.

    Args:
        module: A network of the width that is wanted in the end, with even numbers of channels.
        num_templates: K, templates of each set: a number for all layers, or numbers by their names, in which ``*`` and
            ``?`` are allowed.
        template_sets: Which set each block is mixed from: member 0, member 1, upper right, lower left.
        init: Of templates: ``kaiming`` for the variance 2 / fan-in, ``official`` for the authors' much smaller one.
        keep_bias: Whether layers that have a bias keep one; the paper's have none.
        banks: Which layers share templates: none (``layer``), those of one kind and shape (``shape``), or lists of
            names. With shared ones coefficients are drawn from a normal distribution, and those of first and last
            layers stay 1.
        stem: Names of the layers that the input comes to. ``None``: found by tracing.
        head: Names of the layers that the output comes from. ``None``: found by tracing.
        input_shape: Shape of an input without the batch, such as (3, 32, 32). ``None``: nothing is tried.

    Raises:
        ValueError: If an argument is not allowed, or a part cannot be halved, whose name is told.

    Source: Pham, Teterwak, Nelson & Plummer 2024, arXiv:2311.04251.

    Examples:
        >>> import torch
        >>> plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> growing = mixturize(plain)
        >>> [(type(layer).__name__, layer.split_in, layer.split_out) for layer in (growing[0], growing[2], growing[4])]
        [('MixtureLinear', False, True), ('MixtureLinear', True, True), ('MixtureLinear', True, False)]
        >>> growing(torch.zeros(1, 4)).shape
        torch.Size([1, 3])
    """
    if isinstance(banks, str):
        check_choice("banks", banks, ("layer", "shape"))
    if any(isinstance(part, MixturePart) for part in module.modules()):
        raise ValueError("module has mixture layers already; allowed is a plain network")
    roles = find_roles(module, stem, head)
    layers = {name: part for name, part in module.named_modules() if name in roles}
    counts = {name: _templates(name, num_templates) for name in layers}
    groups = _groups(layers, roles, banks)
    shared = banks != "layer"
    made: dict[nn.Module, nn.Module] = {}
    opened: dict[Any, TemplateBank] = {}
    for name, layer in layers.items():
        options: dict[str, Any] = {"template_sets": template_sets, "init": init, "num_templates": counts[name]}
        options |= {"bias": keep_bias and layer.bias is not None, "bank": opened.get(groups.get(name))}
        if shared:
            options["start"] = "normal" if all(roles[name]) else "ones"
        made[layer] = _named(name, _mixture_layer, layer, roles[name], options)
        if name in groups:
            bank = opened.setdefault(groups[name], made[layer].bank)
            if bank.num_templates != counts[name]:
                raise ValueError(
                    f"num_templates is {counts[name]} for {name}, and {bank.num_templates} for another layer of its "
                    f"bank; allowed is one number for all layers that share templates"
                )
    for name, norm in module.named_modules():
        if isinstance(norm, NORMS):
            made[norm] = _named(name, _mixture_norm, norm)
    network = _replaced(module, made)
    if input_shape is not None:
        check_halves(network, input_shape)
    return network


def materialize(module: nn.Module) -> nn.Module:
    """Return a plain network that computes what a growing one does in its current mode.

    After growth that is a network of the plain architecture; before it is a member, half as wide. Templates and
    coefficients are left behind, and the growing network stays as it is.

    Args:
        module: A network with mixture layers.

    Raises:
        ValueError: If it has none.

    Examples:
        >>> plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> materialize(mixturize(plain))
        Sequential(
          (0): Linear(in_features=4, out_features=4, bias=False)
          (1): ReLU()
          (2): Linear(in_features=4, out_features=3, bias=False)
        )
    """
    parts = [part for part in module.modules() if isinstance(part, MixturePart)]
    if not parts:
        raise ValueError(f"{type(module).__name__} has no mixture layers, so that there is nothing to make plain")
    return _replaced(module, {part: part.plain() for part in parts})


def _templates(name: str, num_templates: int | Mapping[str, int]) -> int:
    if isinstance(num_templates, Mapping):
        fitting = [count for pattern, count in num_templates.items() if fnmatchcase(name, pattern)]
        if not fitting:
            raise ValueError(f"num_templates names no number for {name}; add one for '*'")
        num_templates = fitting[0]
    check_number("num_templates", num_templates, low=1, whole=True)
    return num_templates


def _groups(
    layers: Mapping[str, nn.Module], roles: Mapping[str, Role], banks: str | Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Return what the layers of one bank have in common; first and last layers share only if they are named."""
    if banks == "layer":
        return {}
    if banks == "shape":
        return {
            name: (type(layer), tuple(layer.weight.shape), getattr(layer, "groups", 1))
            for name, layer in layers.items()
            if all(roles[name])
        }
    groups: dict[str, Any] = {}
    for number, patterns in enumerate(banks):
        named = [name for name in layers if any(fnmatchcase(name, pattern) for pattern in patterns)]
        if not named or any(name in groups for name in named):
            raise ValueError(
                f"banks has {list(patterns)}, which names {'no layer' if not named else 'layers of another bank, too'};"
                f" there are {', '.join(layers)}"
            )
        groups |= dict.fromkeys(named, number)
    return groups


def _named(name: str, make: Any, *arguments: Any) -> nn.Module:
    try:
        made: nn.Module = make(*arguments)
    except ValueError as error:
        raise ValueError(f"{name or 'the network itself'} cannot be halved: {error}") from error
    return made


def _mixture_layer(layer: nn.Module, role: Role, options: dict[str, Any]) -> MixtureLayer:
    kind = next(made for plain, made in KINDS.items() if isinstance(layer, plain))
    split = role._asdict()
    if isinstance(layer, nn.Linear):
        mixture = kind(layer.in_features, layer.out_features, **split, **options)
    else:
        names = ("kernel_size", "stride", "padding", "groups", "dilation", "padding_mode")
        geometry = {name: getattr(layer, name) for name in names}
        mixture = kind(layer.in_channels, layer.out_channels, **geometry, **split, **options)
    return mixture.to(layer.weight.device, layer.weight.dtype).train(layer.training)


def _mixture_norm(norm: nn.Module) -> nn.Module:
    kind = next(made for plain, made in NORM_KINDS.items() if isinstance(norm, plain))
    mixture = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    like = next((tensor for tensor in (*norm.parameters(), *norm.buffers()) if tensor.is_floating_point()), None)
    return (mixture if like is None else mixture.to(like.device, like.dtype)).train(norm.training)


def _replaced(module: nn.Module, made: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Return a copy of a network with other parts in the places of some."""
    # deepcopy asks its memo first, so that parts that go are not copied and shared ones stay shared
    return copy.deepcopy(module, {id(part): new for part, new in made.items()})
