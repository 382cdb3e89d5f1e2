"""Turning gated and masked layers into plain ones."""

from torch import nn
from torch.nn.utils.parametrize import remove_parametrizations

from lightning_weights.functional.evaluation_mode import evaluation_mode
from lightning_weights.modules.hard_concrete_gate import HardConcreteGate
from lightning_weights.modules.parametrized import find_parametrizations, give_own_class
from lightning_weights.modules.score_mask import ScoreMask


def make_pruning_permanent(module: nn.Module) -> nn.Module:
    """Replace gated and masked weights by what they are in evaluation mode, and remove gates and masks.

    Layers are plain afterwards: their classes, names and outputs in evaluation mode are those of before, and the
    weights are the parameters that they were, so that an optimizer keeps them. Other parametrizations of a gated or
    masked tensor are made permanent with them; those of other tensors stay.

    Args:
        module: Network, changed in place.

    Returns:
        The network.

    Source: how both papers end: Sehwag et al. 2020, arXiv:2002.10509; Feng et al. 2025, arXiv:2503.20454.

    Examples:
        >>> import torch
        >>> from torch.nn.utils import parametrize
        >>> layer = nn.Linear(8, 4)
        >>> layer = parametrize.register_parametrization(layer, "weight", ScoreMask(layer.weight, keep=0.25))
        >>> type(make_pruning_permanent(layer)).__name__, int(layer.weight.count_nonzero())
        ('Linear', 8)
    """
    found = find_parametrizations(module, (HardConcreteGate, ScoreMask))
    tensors = {(id(layer), tensor): layer for _, layer, tensor, _ in found}
    with evaluation_mode(module):
        for (_, tensor), layer in tensors.items():
            give_own_class(layer)
            remove_parametrizations(layer, tensor, leave_parametrized=True)
    return module
