"""Trying whether the halves of a growing network are networks of their own."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.modules.growing import grow, mixture_parts, set_mode
from lightning_weights.modules.mixture_layer import MixtureLayer
from lightning_weights.modules.mixture_linear import MixtureLinear


@torch.no_grad()
def check_halves(network: nn.Module, input_shape: Sequence[int]) -> None:
    """Check that what the layers of a grown network compute is what its members' compute, side by side.

    It does if there is nothing between the members but zeros, and every other part treats channels alike.

    Args:
        network: A network with mixture layers, which stays as it is.
        input_shape: Shape of an input without the batch.

    Raises:
        ValueError: If it does not, with the name of the first such layer, or if the network takes no such inputs.
    """
    for size in input_shape:
        check_number("input_shape", size, low=1, whole=True)
    trial = copy.deepcopy(network).eval()
    layers = {name: part for name, part in mixture_parts(trial).items() if isinstance(part, MixtureLayer)}
    outputs: list[tuple[str, Tensor]] = []
    for name, layer in layers.items():
        layer.register_forward_hook(partial(_keep, outputs, name))
    like = next(iter(layers.values())).bank.sets[0]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *input_shape, generator=generator, device="cpu").to(like)
    passes = []
    for mode in ("member0", "member1", "grown"):
        if mode == "grown":
            grow(trial, "zero")
        else:
            set_mode(trial, mode)
        try:
            trial(x)
        except Exception as error:
            raise ValueError(
                f"in mode {mode!r} the network takes no input of shape {tuple(x.shape)}: {error}"
            ) from error
        passes.append(list(outputs))
        outputs.clear()
    for (name, first), (_, second), (_, whole) in zip(*passes, strict=True):
        layer = layers[name]
        channels = -1 if isinstance(layer, MixtureLinear) else -1 - len(layer.kernel_size)
        wanted = torch.cat([first, second], channels) if layer.split_out else first + second
        if not torch.allclose(whole, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())):
            raise ValueError(
                f"what comes to {name} in the grown network is not what comes to its members, side by side: something "
                f"before it mixes channels (a mean over them), or puts them behind places (a reshape after a "
                f"transposition); keep channels apart up to the last layer"
            )


def _keep(outputs: list[tuple[str, Tensor]], name: str, layer: nn.Module, inputs: Any, output: Tensor) -> None:
    outputs.append((name, output))
