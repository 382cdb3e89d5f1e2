"""Golden vectors, from ``LIGHTNING_WEIGHTS_GOLDEN`` or the copies beside the tests."""

import os
from pathlib import Path

import numpy as np

DEFAULT = Path(__file__).parents[1] / "golden" / "data"


def load(key: str) -> dict[str, np.ndarray]:
    """Read ``<key>.npz``."""
    with np.load(Path(os.environ.get("LIGHTNING_WEIGHTS_GOLDEN", DEFAULT)) / f"{key}.npz") as archive:
        return dict(archive)


def cases(vectors: dict[str, np.ndarray], prefix: str, suffix: str) -> list[str]:
    """Return the case names of all entries ``<prefix><case><suffix>``."""
    names = [name[len(prefix) : -len(suffix)] for name in vectors if name.startswith(prefix) and name.endswith(suffix)]
    return sorted(names)
