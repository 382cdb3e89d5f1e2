"""What of a batch goes into a network."""

from collections.abc import Mapping
from typing import Any


def inputs_of(batch: Any) -> Any:
    """Return the inputs of a batch: its first part, its entry ``x``, or the batch itself.

    Args:
        batch: As a loader gives it.
    """
    if isinstance(batch, Mapping):
        return batch["x"]
    return batch[0] if isinstance(batch, (tuple, list)) else batch
