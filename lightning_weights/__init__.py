"""Published methods that change how weights are trained, as drop-in parts for PyTorch Lightning."""

import importlib
from typing import Any

__version__ = "0.1.0.dev0"

_SUBPACKAGES = (
    "adapters",
    "callbacks",
    "data",
    "errors",
    "functional",
    "kernels",
    "methods",
    "metrics",
    "modules",
    "optimizers",
    "runners",
    "strategies",
)

__all__ = ["__version__", *_SUBPACKAGES]


def __getattr__(name: str) -> Any:
    """Import a subpackage when it is first used, so that importing this package costs nothing."""
    if name in _SUBPACKAGES:
        return importlib.import_module(f"lightning_weights.{name}")
    raise AttributeError(f"module 'lightning_weights' has no attribute {name!r}; it has {', '.join(_SUBPACKAGES)}")


def __dir__() -> list[str]:
    return list(__all__)
