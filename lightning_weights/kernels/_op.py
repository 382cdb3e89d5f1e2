"""Registration and dispatch of the package's operators: the only code that looks at devices."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_weights.errors import KernelUnavailableError, ShardedParameterError

MODES = ("auto", "eager", "triton")
ENVIRONMENT_VARIABLE = "LIGHTNING_WEIGHTS_KERNELS"
NAMESPACE = "lightning_weights"
DEVICES = ("cpu", "cuda", "mps", "xpu")
WARP_SIZE = 64 if torch.version.hip else 32

_override: ContextVar[str | None] = ContextVar("lightning_weights_kernels", default=None)


@dataclass(frozen=True)
class Cost:
    """Memory traffic and arithmetic of one call.

    Args:
        bytes_read: Bytes loaded from memory.
        bytes_written: Bytes stored to memory.
        flops: Floating-point operations.

    Examples:
        >>> from lightning_weights.kernels import Cost
        >>> Cost(bytes_read=12, bytes_written=8, flops=8).bytes_read
        12
    """

    bytes_read: int
    bytes_written: int
    flops: int


def kernel_mode() -> str:
    """Return the mode in force: that of the innermost [`use_kernels`][], else the environment's.

    Raises:
        ValueError: If ``LIGHTNING_WEIGHTS_KERNELS`` holds anything but ``auto``, ``eager`` or ``triton``.

    Examples:
        >>> from lightning_weights.kernels import kernel_mode, use_kernels
        >>> with use_kernels("auto"):
        ...     kernel_mode()
        'auto'
    """
    return _override.get() or _checked_mode(os.environ.get(ENVIRONMENT_VARIABLE, "auto"), ENVIRONMENT_VARIABLE)


@contextlib.contextmanager
def use_kernels(mode: str) -> Iterator[None]:
    """Choose how operators run inside a ``with`` block, with the meaning of ``LIGHTNING_WEIGHTS_KERNELS``.

    Args:
        mode: ``auto`` takes Triton on GPUs where it can and eager PyTorch elsewhere; ``eager`` and ``triton`` insist.

    Raises:
        ValueError: If the mode is none of the three.

    Examples:
        >>> from lightning_weights.kernels import kernel_mode, use_kernels
        >>> with use_kernels("eager"):
        ...     kernel_mode()
        'eager'
    """
    token = _override.set(_checked_mode(mode, "mode"))
    try:
        yield
    finally:
        _override.reset(token)


def _checked_mode(mode: str, name: str) -> str:
    if mode not in MODES:
        raise ValueError(f"{name} is {mode!r}; allowed are {', '.join(MODES)}; 'auto' is the default")
    return mode


@functools.cache
def triton_installed() -> bool:
    """Whether the ``triton`` package can be imported."""
    return importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """Whether Triton kernels run in the interpreter (``TRITON_INTERPRET=1`` before triton was imported)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def takes_triton(
    device_type: str,
    covered: Iterable[tuple[Sequence[Tensor], Sequence[torch.dtype]]],
    *,
    exact_products: bool = False,
) -> bool:
    """Decide between the Triton kernel and eager PyTorch for one call.

    Args:
        device_type: Where the tensors are: ``cpu``, ``cuda`` (ROCm included) or another of PyTorch's device types.
        covered: Pairs of tensors and the data types that the kernel is written for in their place.
        exact_products: Whether the kernel would spend its time on products of matrices in full fp32, at which the
            vendor's library is faster (``benchmarks/gpu.py``).

    Returns:
        True for the kernel. In mode ``auto`` that is: a GPU, triton installed, every data type covered, and no exact
        products.

    Raises:
        KernelUnavailableError: In mode ``triton``, with the reason, if the kernel cannot run here.
    """
    mode = kernel_mode()
    if mode == "eager" or (mode == "auto" and (device_type != "cuda" or exact_products)):
        return False
    reason = None
    if not triton_installed():
        reason = "triton is not installed: pip install triton (extra 'triton' of lightning-weights)"
    elif device_type != "cuda" and not (device_type == "cpu" and interpreting()):
        reason = f"the tensors are on {device_type}; the CPU needs TRITON_INTERPRET=1, set before triton is imported"
    elif unknown := {t.dtype for tensors, dtypes in covered for t in tensors if t.dtype not in dtypes}:
        reason = f"the kernel is not written for {', '.join(sorted(map(str, unknown)))} in this place"
    if reason is not None and mode == "triton":
        raise KernelUnavailableError(
            f"Triton was demanded ({ENVIRONMENT_VARIABLE}, use_kernels or fused=True), but {reason}. Use 'auto', or "
            f"leave fused at None, to fall back to eager PyTorch."
        )
    return reason is None


def exact_products(*dtypes: torch.dtype) -> bool:
    """Whether kernels must multiply matrices in full fp32, as PyTorch's setting says if all of them are in fp32.

    Args:
        *dtypes: Of the matrices; TF32 holds narrower ones exactly.

    Examples:
        >>> exact_products(torch.float32), exact_products(torch.float32, torch.bfloat16)
        (True, False)
    """
    return all(dtype == torch.float32 for dtype in dtypes) and torch.get_float32_matmul_precision() == "highest"


def register(
    name: str, schema: str, *, implementation: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Register an operator with PyTorch's dispatcher.

    Args:
        name: Operator name; it becomes ``torch.ops.lightning_weights.<name>``.
        schema: Arguments and returns in PyTorch's schema language, mutated arguments marked as ``Tensor(a!)``.
        implementation: Implementation for real tensors; it asks [`takes_triton`][] which way to go.
        fake: Shape-only implementation, which ``torch.compile`` traces.

    Returns:
        The operator.
    """
    qualified = f"{NAMESPACE}::{name}"
    torch.library.define(qualified, schema)
    torch.library.impl(qualified, DEVICES)(implementation)
    torch.library.register_fake(qualified)(fake)
    return getattr(getattr(torch.ops, NAMESPACE), name).default  # type: ignore[no-any-return]


def local_shards(*operands: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    """Sharding rule of element-wise operators: equal placements in, this rank's shards out.

    An element-wise rule needs no communication: it may act on every rank's shard alone, provided that all operands of
    one position are laid out alike. Plain tensors pass through.

    Args:
        *operands: Lists of equal length; tensors at one position belong together (parameter, gradient, state).

    Returns:
        The lists with every ``DTensor`` replaced by its local shard, which shares its memory.

    Raises:
        ShardedParameterError: If the operands of one position have different placements or hold partial sums.

    Examples:
        >>> from lightning_weights.kernels import local_shards
        >>> weights, gradients = [torch.ones(2)], [torch.zeros(2)]
        >>> local_shards(weights, gradients)[0][0] is weights[0]
        True
    """
    # Looked up, not imported: importing it costs more than half a second, and without it there are no DTensors.
    distributed_tensor = sys.modules.get("torch.distributed.tensor")
    if distributed_tensor is None or not any(isinstance(t, distributed_tensor.DTensor) for t in operands[0]):
        return list(operands)
    for group in zip(*operands, strict=True):
        layouts = {getattr(tensor, "placements", ()) for tensor in group}
        if len(layouts) > 1 or any(placement.is_partial() for placement in next(iter(layouts))):
            raise ShardedParameterError(
                f"element-wise operators need all operands of a parameter sharded alike, without partial sums, but got "
                f"{sorted(map(str, layouts))}. Redistribute the gradient to the parameter's placements first."
            )
    return [[t.to_local() if hasattr(t, "to_local") else t for t in operand] for operand in operands]
