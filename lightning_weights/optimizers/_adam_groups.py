"""What the AdamW optimizers share about a parameter group: what its parameters are called, and its betas."""

from collections.abc import Sequence
from typing import Any

from lightning_weights.errors import check_number


def parameter_name(group: dict[str, Any], place: int) -> str:
    """Return the name that a callback or the user gave a parameter of a group, else its place and shape.

    Examples:
        >>> import torch
        >>> weight = torch.zeros(2, 3)
        >>> parameter_name({"params": [weight]}, 0)
        'parameter 0 of its group, of shape (2, 3)'
        >>> parameter_name({"params": [weight], "param_names": ["head.weight"]}, 0)
        'head.weight'
    """
    param = group["params"][place]
    if hasattr(param, "_lw_name"):
        return param._lw_name
    if "param_names" in group:
        return group["param_names"][place]
    return f"parameter {place} of its group, of shape {tuple(param.shape)}"


def check_betas(betas: Any) -> None:
    """Refuse anything but two numbers in [0, 1)."""
    if not isinstance(betas, Sequence) or len(betas) != 2:
        raise ValueError(f"betas is {betas!r}; allowed are two numbers in [0, 1)")
    for beta in betas:
        check_number("betas", beta, low=0.0, high=1.0)
