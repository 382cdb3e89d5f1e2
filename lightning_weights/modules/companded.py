"""Companding the layers of a network, undoing it, and what optimizers and checkpoints have to know about it."""

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils.parametrize import is_parametrized, register_parametrization, remove_parametrizations

from lightning_weights.errors import LightningWeightsWarning, check_choice, check_number
from lightning_weights.functional.weight_compander import clipped_share, scales_of
from lightning_weights.kernels.compand import FUNCTIONS, compand
from lightning_weights.modules.compander import Compander
from lightning_weights.modules.parametrized import find_parametrizations, give_own_class

CLIPPED_WARNING, CLIPPED_ERROR = 0.001, 0.05  # shares of a layer's weights
ORIGINAL, RHO_A, RHO_B = (f"parametrizations.weight.{name}" for name in ("original", "0.rho_a", "0.rho_b"))


def compand_layers(
    layers: Mapping[str, nn.Module],
    kappa: float = 3.0,
    beta: float = 2.0,
    function: Literal["arctan", "tanh", "softsign"] = "arctan",
    learnable: bool = False,
    share: Literal["layer", "channel", "global"] = "layer",
    init: Literal["inverse", "latent"] = "inverse",
) -> None:
    """Compand the weights of layers with a = κσ and b = βσ, where σ is the standard deviation of the weights.

    Checkpoints of the plain network load afterwards too: latents become the inverse of the weights in it, and with
    ``layer`` and ``channel`` a and b follow from these weights.

    Args:
        layers: Layers by name, changed in place, with a plain parameter ``weight`` each.
        kappa: κ > 0; the bound is 1.57 κσ for the arctan, κσ for the others.
        beta: β > 0; weights are compressed from about βσ on. The gain of a step at zero is (κ/β)².
        function: As of [`Compander`][lightning_weights.modules.Compander].
        learnable: Whether a and b are learned.
        share: Which weights have a and b in common: those of a ``layer``, those of an output ``channel``, or all layers
            (``global``), with the σ of all weights together.
        init: ``inverse`` keeps the weights as they are, ``latent`` makes them the latents, so that the function changes
            them.

    Raises:
        ValueError: If an argument is out of range, all weights that share a scale are equal, or more than 5 % of a
            layer's weights are beyond the bound.

    Warns:
        LightningWeightsWarning: If more than 0.1 % of a layer's weights are beyond the bound, and so are clipped.

    Source: Cakaj, Mehnert & Yang 2023, arXiv:2306.16993; the scale-free a and b are ours.

    Examples:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> compand_layers({"first": network[0], "last": network[2]})
        >>> sorted(network.state_dict())[:2]
        ['0.bias', '0.parametrizations.weight.0.rho_a']
    """
    check_choice("share", share, ("layer", "channel", "global"))
    check_choice("init", init, ("inverse", "latent"))
    check_choice("function", function, FUNCTIONS)
    scales = {}
    pooled = _pooled_scales(layers, kappa, beta) if share == "global" and layers else None
    for name, layer in layers.items():
        scales[name] = pooled or scales_of(layer.weight, kappa, beta, per_slice=share == "channel")
        _check_spread(name, scales[name][0])
        if init == "inverse":
            _check_clipping(name, layer.weight, scales[name][0], function)
    shared: Compander | None = None
    for name, layer in layers.items():
        compander = Compander(*scales[name], function, learnable)
        compander.rule = None if share == "global" else (kappa, beta)
        if share == "global":
            shared = shared or compander
            compander.rho_a, compander.rho_b = shared.rho_a, shared.rho_b
        _register(layer, compander, keep_weight=init == "inverse")


def merge_companders(module: nn.Module) -> dict[str, Compander]:
    """Replace companded weights by what they are, and remove latents, scales and widths: a plain network is left.

    Outputs are the same, names and order of the parameters those of before companding, and a weight is the parameter
    that the latent was, so that an optimizer keeps it.

    Args:
        module: Network, changed in place.

    Returns:
        The companders by the name of their layer, for ``unmerge_companders``.

    Examples:
        >>> network = nn.Sequential(nn.Linear(4, 2))
        >>> compand_layers({"0": network[0]})
        >>> list(merge_companders(network)), list(network.state_dict())
        (['0'], ['0.weight', '0.bias'])
    """
    companders = {}
    for name, layer, tensor, step in list(find_parametrizations(module, Compander)):
        companders[name] = step
        step.reuse(False)
        give_own_class(layer)
        remove_parametrizations(layer, tensor, leave_parametrized=True)
        others = {key: layer._parameters.pop(key) for key in list(layer._parameters) if key != tensor}
        layer._parameters.update(others)  # the weight comes first again, as optimizers number parameters
    return companders


def unmerge_companders(module: nn.Module, companders: Mapping[str, Compander]) -> None:
    """Compand a plain network again, with scales and widths as they were when it was merged.

    Args:
        module: Network, changed in place.
        companders: What ``merge_companders`` returned for it.

    Raises:
        ValueError: If more than 5 % of a layer's weights are beyond the bound by now.

    Examples:
        >>> network = nn.Sequential(nn.Linear(4, 2))
        >>> compand_layers({"0": network[0]})
        >>> unmerge_companders(network, merge_companders(network))
        >>> "0.parametrizations.weight.original" in network.state_dict()
        True
    """
    layers = {name: module.get_submodule(name) for name in companders}
    for name, layer in layers.items():
        _check_clipping(name, layer.weight, companders[name].a.detach(), companders[name].function)
    for name, layer in layers.items():
        _register(layer, companders[name], keep_weight=True)


def plain_state_dict(
    state_dict: Mapping[str, Any], function: Literal["arctan", "tanh", "softsign"] = "arctan"
) -> dict[str, Any]:
    """Return the state of a companded network as that of the plain one: what a checkpoint holds becomes loadable there.

    Args:
        state_dict: State of a network with companders, or of a module that has one.
        function: What it was companded with.

    Raises:
        ValueError: If the function is not allowed.

    Examples:
        >>> network = nn.Sequential(nn.Linear(4, 2))
        >>> compand_layers({"0": network[0]})
        >>> list(plain_state_dict(network.state_dict()))
        ['0.bias', '0.weight']
    """
    check_choice("function", function, FUNCTIONS)
    plain = dict(state_dict)
    for key in [key for key in state_dict if key.endswith(RHO_A)]:
        prefix = key.removesuffix(RHO_A)
        a, b = (softplus(plain.pop(prefix + name)) for name in (RHO_A, RHO_B))
        plain[f"{prefix}weight"] = compand(plain.pop(prefix + ORIGINAL), a, b, function)
    return plain


def wc_param_groups(
    module: nn.Module, weight_decay: float, lr: float | None = None, lr_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer: decay for matrices and latents, none for the rest.

    Groups by name look for ``weight``, which companding renames; these go by what a parameter is. Biases, other vectors
    and learned scales and widths do not decay; the latter have a group of their own.

    Args:
        module: Network whose parameters are trained.
        weight_decay: Decay of parameters with two dimensions or more.
        lr: Learning rate; needed if ``lr_scale`` is not 1. ``None``: the optimizer's.
        lr_scale: Factor of the learning rate of scales and widths.

    Returns:
        Groups that are not empty.

    Raises:
        ValueError: If a number is out of range, or the learning rate is missing.

    Examples:
        >>> network = nn.Sequential(nn.Linear(4, 2))
        >>> compand_layers({"0": network[0]}, learnable=True)
        >>> groups = wc_param_groups(network, weight_decay=5e-4)
        >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
        [(1, 0.0005), (1, 0.0), (2, 0.0)]
    """
    check_number("weight_decay", weight_decay, low=0.0)
    check_number("lr_scale", lr_scale, low=0.0)
    if lr is None and lr_scale != 1.0:
        raise ValueError(f"lr_scale is {lr_scale}, but lr is None; give the learning rate that it is a factor of")
    scales = [rho for found in find_parametrizations(module, Compander) for rho in found.step.parameters()]
    apart = {id(rho) for rho in scales}
    trained = [param for param in module.parameters() if param.requires_grad and id(param) not in apart]
    common = {} if lr is None else {"lr": lr}
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay, **common},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0, **common},
        {"params": list({id(rho): rho for rho in scales}.values()), "weight_decay": 0.0},
    ]
    if lr is not None:
        groups[2]["lr"] = lr * lr_scale
    return [group for group in groups if group["params"]]


def _register(layer: nn.Module, compander: Compander, keep_weight: bool) -> None:
    latent = None if keep_weight else layer.weight.detach().clone()
    register_parametrization(layer, "weight", compander.to(layer.weight.device).train(layer.training))
    if latent is not None:
        with torch.no_grad():
            layer.parametrizations["weight"].original.copy_(latent)
    if not any(hook.hook is _accept_plain for hook in layer._load_state_dict_pre_hooks.values()):
        layer.register_load_state_dict_pre_hook(_accept_plain)


def _accept_plain(layer: nn.Module, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
    """Turn the weight of a plain network's state into latents, before a companded layer loads it."""
    companded = is_parametrized(layer, "weight") and isinstance(layer.parametrizations["weight"][0], Compander)
    if not companded or f"{prefix}weight" not in state_dict or prefix + ORIGINAL in state_dict:
        return
    compander: Compander = layer.parametrizations["weight"][0]
    weight, name = state_dict.pop(f"{prefix}weight"), prefix.rstrip(".")
    a, b = compander.a.detach(), compander.b.detach()
    if compander.rule is not None:
        a, b = scales_of(weight, *compander.rule, per_slice=a.numel() > 1)
        _check_spread(name, a)
    _check_clipping(name, weight, a.to(weight.device), compander.function)
    fitting = Compander(a, b, compander.function).to(weight.device)
    state_dict[prefix + ORIGINAL] = fitting.right_inverse(weight)
    state_dict[prefix + RHO_A], state_dict[prefix + RHO_B] = fitting.rho_a, fitting.rho_b


def _pooled_scales(layers: Mapping[str, nn.Module], kappa: float, beta: float) -> tuple[Tensor, Tensor]:
    device = next(iter(layers.values())).weight.device
    return scales_of(
        torch.cat([layer.weight.detach().float().flatten().to(device) for layer in layers.values()]), kappa, beta
    )


def _check_spread(name: str, a: Tensor) -> None:
    if not bool((a > 0).all() & a.isfinite().all()):
        raise ValueError(
            f"cannot compand {name}: its weights, or those of one of its channels, are all equal or not finite, so "
            f"that they have no scale. Leave the layer out, or register Compander(a, b) on it yourself with numbers"
        )


def _check_clipping(name: str, weight: Tensor, a: Tensor, function: Any) -> None:
    share = clipped_share(weight.detach(), a, function)
    text = f"{share:.2%} of the weights of {name or 'the layer'} are beyond the bound of {function!r}"
    if share > CLIPPED_ERROR:
        raise ValueError(f"{text}, allowed are {CLIPPED_ERROR:.0%}: raise kappa, or leave the layer out")
    if share > CLIPPED_WARNING:
        warnings.warn(f"{text} and are clipped; raise kappa to keep them", LightningWeightsWarning, stacklevel=4)
