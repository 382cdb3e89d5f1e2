"""Quantization on several processes, each of which has its share of the calibration data."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def number_of_processes() -> int:
    """Return how many processes work together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number."""
    return dist.get_rank() if number_of_processes() > 1 else 0


def is_first() -> bool:
    """Tell whether this process is the first, which solves for all."""
    return rank() == 0


def gather(value: T) -> list[T]:
    """Return what every process has, in their order.

    Args:
        value: This one's: something that can be pickled.
    """
    if number_of_processes() == 1:
        return [value]
    values: list[Any] = [None] * number_of_processes()
    dist.all_gather_object(values, value)
    return values


def together(work: Callable[[], T]) -> T:
    """Do this process's share of some work, and fail on every process if it fails on one.

    Otherwise the others would wait for it in their next exchange.

    Args:
        work: What to do, without an exchange in it.

    Raises:
        RuntimeError: If it failed on another process.
    """
    if number_of_processes() == 1:
        return work()
    result, error = None, None
    try:
        result = work()
    except Exception as caught:
        error = caught
    messages = gather(None if error is None else str(error))
    if error is not None:
        raise error
    for rank, message in enumerate(messages):
        if message is not None:
            raise RuntimeError(f"process {rank} failed: {message}")
    return result  # type: ignore[return-value]


def by_first(work: Callable[[], T]) -> T:
    """Let the first process do something and give the result to all.

    Args:
        work: What to do; the result can be pickled, with tensors on the CPU.
    """
    result = together(lambda: work() if is_first() else None)
    if number_of_processes() > 1:
        box = [result]
        dist.broadcast_object_list(box)
        result = box[0]
    return result  # type: ignore[return-value]
