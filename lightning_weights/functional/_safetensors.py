"""The optional package safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

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


def read_described(package: Any, path: str | Path, key: str, kind: str) -> tuple[str | None, dict[str, Tensor]]:
    """Return the text that a file has under a key of its metadata, if there is one, and its tensors.

    Args:
        package: What [`safetensors`][] returned.
        path: The file.
        key: The key.
        kind: What the file should be, for the message.

    Raises:
        ValueError: If it is no safetensors file, or not whole.
    """
    from safetensors import SafetensorError

    try:
        with package.safe_open(str(path), framework="pt") as file:
            return (file.metadata() or {}).get(key), {name: file.get_tensor(name) for name in sorted(file.keys())}
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as {kind}: {error}") from error
