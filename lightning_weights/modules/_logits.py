"""Logits in what networks of several libraries return."""

from typing import Any

from torch import Tensor


def find_logits(output: Any) -> Tensor | None:
    """Return the logits: the output itself, its attribute ``logits``, or the first entry of a tuple or list.

    Args:
        output: What a network returned.

    Returns:
        A tensor of two or more dimensions, or ``None`` if there is none.
    """
    found = getattr(output, "logits", output[0] if isinstance(output, (tuple, list)) and output else output)
    return found if isinstance(found, Tensor) and found.ndim >= 2 else None


def logits_of(output: Any, who: str) -> Tensor:
    """Return the logits.

    Args:
        output: What a network returned.
        who: Which network, for the message.

    Raises:
        ValueError: If there are none.
    """
    found = find_logits(output)
    if found is None:
        raise ValueError(
            f"the {who} returned a {type(output).__name__} without logits; allowed are logits of shape (B, C), a tuple "
            f"that begins with them, or an output with the attribute logits. Wrap the network to pick them"
        )
    return found
