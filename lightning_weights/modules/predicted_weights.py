"""Files of predicted weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_weights.modules._described_tensors import read_tensors, write_tensors

KIND = "predicted weights"


def write_predicted(path: str | Path, predicted: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> None:
    """Write the weights that [`predict_overflowed`][lightning_weights.modules.predict_overflowed] gives.

    Args:
        path: Safetensors file, which is replaced whole; its folder is made if it is not there.
        predicted: Tensors by name; tied ones are stored once.
        about: What to remember of them, such as the number of recursions: numbers, strings, lists and dicts.

    Raises:
        ValueError: If something is no tensor, or ``about`` can't be written as JSON.
        ShardedParameterError: If a tensor is sharded.
        MissingDependencyError: If the package safetensors is not installed.

    Examples:
        >>> import tempfile, torch
        >>> path = tempfile.mkdtemp() + "/times_two.safetensors"
        >>> write_predicted(path, {"head.weight": torch.eye(2)}, {"recursions": 1})
        >>> read_predicted(path)[1]
        {'recursions': 1}
    """
    write_tensors(path, predicted, KIND, about or {})


def read_predicted(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read predicted weights, or any other state dict in a safetensors file.

    Args:
        path: The file.

    Returns:
        Tensors by name, tied ones tied again, and what is remembered of them; nothing of a file that
        ``write_predicted`` has not written.

    Raises:
        ValueError: If there is no such file, or it can't be read.
        MissingDependencyError: If the package safetensors is not installed.

    Examples:
        >>> read_predicted("nowhere.safetensors")
        Traceback (most recent call last):
        ValueError: nowhere.safetensors is not there; give a file of weights (safetensors)
    """
    return read_tensors(path)
