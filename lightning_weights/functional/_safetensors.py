"""The optional package safetensors."""

from typing import Any

from lightning_weights.errors import MissingDependencyError


def safetensors(extra: str, purpose: str) -> Any:
    """Return the package's module for torch.

    Args:
        extra: Extra of lightning-weights that brings it.
        purpose: What needs it, as the start of the message.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        import safetensors.torch
    except ImportError as error:
        raise MissingDependencyError("safetensors", extra, purpose) from error
    return safetensors.torch
