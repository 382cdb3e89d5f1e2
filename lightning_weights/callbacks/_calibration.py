"""First values of learned scales, from batches that run through a network before the training begins."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import nn

from lightning_weights.callbacks._generators import (
    get_state,
    loader_generators,
    read_generators,
    set_state,
    write_generators,
)
from lightning_weights.modules import LSQQuantizer, calibrating


def first_batches(trainer: Trainer, count: int) -> list[Any]:
    """Return the first batches of the training data; all random generators are as they were afterwards.

    Args:
        trainer: A trainer whose data is set up and whose loops have not begun.
        count: How many batches; fewer if there are fewer.
    """
    return list(in_turn(trainer, count))


def in_turn(trainer: Trainer, count: int) -> Iterator[Any]:
    """Give the first batches of the training data one by one; afterwards all random generators are as they were.

    Args:
        trainer: A trainer whose data is set up and whose loops have not begun.
        count: How many batches; fewer if there are fewer.
    """
    states = read_generators(trainer)
    loaders = trainer.fit_loop._data_source.dataloader()  # the Trainer asks for its own ones much later
    combined = loaders if hasattr(loaders, "flattened") else CombinedLoader(loaders, "max_size_cycle")
    generators = loader_generators(combined)
    own = [get_state(generator) for generator in generators]
    try:
        for batch, *_ in islice(combined, count):
            yield batch
    finally:
        combined.reset()
        for generator, state in zip(generators, own, strict=True):
            set_state(generator, state)
        write_generators(trainer, states)


def uncalibrated(module: nn.Module) -> list[str]:
    """Return the names of the learned scales that have no values yet."""
    parts = module.named_modules()
    return [name for name, part in parts if isinstance(part, LSQQuantizer) and not part.calibrated]


def calibrate(module: nn.Module, batches: Sequence[Any]) -> None:
    """Run batches through a network in evaluation mode, from which learned scales take their first values.

    A module's own ``calibration_step(batch)`` takes them, if there is one. Otherwise its forward gets the first entry
    of a sequence, the entries of a mapping as keywords, or the batch itself.

    Args:
        module: Network or LightningModule.
        batches: The batches; with none, nothing happens.

    Raises:
        ValueError: If the module's forward does not take such a batch, or does not reach a scale.
    """
    if not batches:
        return
    modes = [(part, part.training) for part in module.modules()]
    device = next((param.device for param in module.parameters()), torch.device("cpu"))
    module.eval()
    try:
        with torch.no_grad(), calibrating(module):
            for batch in batches:
                _run(module, move_data_to_device(batch, device))
    finally:
        for part, mode in modes:
            part.training = mode
    if missed := uncalibrated(module):
        raise ValueError(
            f"the dry batch did not reach {', '.join(missed)}, whose scales have no values therefore; give the module "
            f"a method calibration_step(batch) that uses them, or leave them out"
        )


def _run(module: Any, batch: Any) -> None:
    step = getattr(module, "calibration_step", None)
    if step is not None:
        step(batch)
        return
    try:
        if isinstance(batch, Mapping):
            module(**batch)
        else:
            module(batch[0] if isinstance(batch, Sequence) else batch)
    except TypeError as error:
        raise ValueError(
            f"the forward of {type(module).__name__} does not take a batch of the training data, a "
            f"{type(batch).__name__}: {error}. Give the module a method calibration_step(batch) that runs one"
        ) from error


def broadcast_scales(trainer: Trainer, pl_module: LightningModule) -> None:
    """Give all processes the scales of process 0, which have seen another part of the data.

    Args:
        trainer: The trainer; its processes know each other.
        pl_module: Its module.
    """
    scales = [part.step.detach() for part in pl_module.modules() if isinstance(part, LSQQuantizer)]
    for scale, first in zip(scales, trainer.strategy.broadcast(scales), strict=True):
        scale.copy_(first)
