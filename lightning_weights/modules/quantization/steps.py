"""How a module runs a calibration batch."""

import contextlib
import copy
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_weights.functional.evaluation_mode import evaluation_mode
from lightning_weights.modules.quantization import processes


def calibration_step(module: nn.Module) -> Callable[[Any], Any]:
    """Return what runs a module on a batch: its ``calibration_step``, its own ``predict_step``, or its forward.

    Args:
        module: Network or LightningModule.
    """
    own = getattr(module, "calibration_step", None)
    if callable(own):
        return own
    predict = getattr(type(module), "predict_step", None)
    # the one every LightningModule has calls forward with the whole batch, labels and all
    if predict is not None and predict.__qualname__ != "LightningModule.predict_step":
        return lambda batch: module.predict_step(batch, 0)
    return lambda batch: _forward(module, batch)


def _forward(module: nn.Module, batch: Any) -> Any:
    args = () if isinstance(batch, Mapping) else (batch[0] if isinstance(batch, Sequence) else batch,)
    kwargs = dict(batch) if isinstance(batch, Mapping) else {}
    try:
        # a decorator may take more than what is inside
        inspect.signature(module.forward, follow_wrapped=False).bind(*args, **kwargs)
    except TypeError as error:
        raise ValueError(
            f"the network can't be called with a calibration batch ({error}): it gets a dict's entries by name, the "
            f"first entry of a tuple or list, or all of anything else. Give step, or the module a "
            f"calibration_step(batch) or predict_step"
        ) from error
    return module(*args, **kwargs)


def runner(module: nn.Module, batches: Sequence[Any], step: Callable[[Any], Any] | None) -> Callable[[int], Any]:
    """Return a function that runs a module on a batch, by its number, with the same random numbers every time.

    Args:
        module: Network or LightningModule.
        batches: The batches, on any device.
        step: Runs a batch. ``None``: what ``calibration_step`` returns.
    """
    take = calibration_step(module) if step is None else step
    device = next(module.parameters()).device
    draw_alike = repeatable(device)

    def run(index: int) -> Any:
        draw_alike(index)
        return take(move(batches[index], device))

    return run


def repeatable(device: torch.device) -> Callable[[int], None]:
    """Return a function that seeds all generators for a batch, by its number.

    What a network draws at random, such as the noise of a diffusion model, is then the same in both streams.

    Args:
        device: Where the network runs, whose generator is seeded beside that of the CPU.
    """
    first, step, rank = torch.initial_seed(), processes.number_of_processes(), processes.rank()

    def draw_alike(index: int) -> None:
        seed = (first + index * step + rank) % 2**32
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)

    return draw_alike


def move(batch: Any, device: torch.device) -> Any:
    """Return a batch on a device, with tensors of its own, which the network may change.

    Args:
        batch: Tensors in any nesting.
        device: Where to.
    """
    if hasattr(batch, "to") and not isinstance(batch, Tensor):
        return copy.deepcopy(batch).to(device)
    return tree_map_only(Tensor, lambda x: x.to(device, copy=True), batch)


def mask_of(batch: Any, key: str | None) -> Tensor | None:
    """Return which tokens of a batch count, a boolean tensor of shape (N, T), if it says so.

    Args:
        batch: The batch.
        key: Name of the entry that says it, non-zero where there is a token.
    """
    mask = batch.get(key) if key is not None and isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 and not bool(mask.all()) else None


@contextlib.contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Run a module in evaluation mode layer by layer, and leave flags and random generators as they were.

    Args:
        module: Network or LightningModule.
    """
    device = next(module.parameters()).device
    own = [] if device.type == "cpu" else [device]
    fast = torch.backends.mha.get_fastpath_enabled()
    python, numpy = random.getstate(), np.random.get_state()
    torch.backends.mha.set_fastpath_enabled(False)  # it reads the weights of layers instead of calling them
    try:
        with (
            torch.inference_mode(False),  # its tensors could never be trained again
            torch.no_grad(),
            torch.random.fork_rng(devices=own, device_type=device.type if own else "cuda"),
            torch.compiler.set_stance("force_eager"),  # graphs don't know of our hooks
            evaluation_mode(module),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        random.setstate(python)
        np.random.set_state(numpy)
