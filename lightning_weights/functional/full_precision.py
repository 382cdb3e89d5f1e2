"""Products in full float32, whatever precision the user allows elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import backends


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute matrix products and convolutions in full float32: no TF32, no bfloat16 inside.

    Bounds have to hold for what the network computes, and PyTorch lets convolutions round to TF32 by default. The
    settings are those of the whole process; afterwards they are what they were. A backward pass that runs later follows
    the user's settings, and so does what ``torch.compile`` traces: there nothing is changed.

    Examples:
        >>> torch.set_float32_matmul_precision("medium")
        >>> with full_precision():
        ...     torch.get_float32_matmul_precision()
        'highest'
        >>> torch.get_float32_matmul_precision()
        'medium'
        >>> torch.set_float32_matmul_precision("highest")
    """
    if torch.compiler.is_compiling():  # settings of the process can't be part of a graph
        yield
        return
    saved = [(part, name, getattr(part, name)) for part, name, _ in _settings()]
    matmul = _matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        for part, name, full in _settings():
            setattr(part, name, full)
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        for part, name, value in saved:
            setattr(part, name, value)


def _settings() -> list[tuple[object, str, object]]:
    """Return where PyTorch keeps further precisions: object, attribute and the value that stands for float32."""
    if hasattr(backends.cudnn, "conv"):  # PyTorch 2.9; the older attributes cannot be read once these were set
        intel: Any = backends.mkldnn
        parts = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, intel.matmul, intel.conv)
        return [(part, "fp32_precision", "ieee") for part in parts]
    return [(backends.cudnn, "allow_tf32", False)]


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set for single backends only, which are restored by themselves
        return "highest"
