"""Linear layers whose inputs come from a GELU, and so are hardly ever negative."""

from typing import Any

import torch.nn.functional as F
from torch import nn

ACTIVATIONS = ("act", "act_fn", "activation", "activation_fn")
SECOND = ("fc2", "linear2")  # of a perceptron's two layers


def behind_gelu(module: nn.Module) -> set[str]:
    """Return the names of linear layers that read what a GELU wrote.

    Found are layers that follow a GELU in a sequence, dropout between them or not, and those called ``fc2`` or
    ``linear2`` beside a GELU called ``act``, ``act_fn``, ``activation`` or ``activation_fn``, as in timm, transformers
    and ``nn.TransformerEncoderLayer``.

    Args:
        module: Where to look.

    Examples:
        >>> sorted(behind_gelu(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.1), nn.Linear(8, 4))))
        ['3']
    """
    found = set()
    for name, part in module.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(part, nn.Sequential):
            found |= {prefix + child for child in _in_sequence(part)}
        elif any(_is_gelu(getattr(part, activation, None)) for activation in ACTIVATIONS):
            found |= {prefix + child for child in SECOND if isinstance(getattr(part, child, None), nn.Linear)}
    return found


def _in_sequence(sequence: nn.Sequential) -> set[str]:
    found, after = set(), False
    for name, part in sequence.named_children():
        if after and isinstance(part, nn.Linear):
            found.add(name)
        after = _is_gelu(part) or (after and isinstance(part, nn.Dropout))
    return found


def _is_gelu(part: Any) -> bool:
    return part is F.gelu or (isinstance(part, nn.Module) and "GELU" in type(part).__name__)
