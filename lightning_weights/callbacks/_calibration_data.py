"""The batches that a network is calibrated with."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import DistributedSampler

HOOK = "calibration_dataloader"


def calibration_loader(trainer: Trainer, pl_module: LightningModule, given: Any) -> Iterable[Any]:
    """Return where calibration batches come from.

    The first of these that there is: what was given, the ``calibration_dataloader()`` of the data module or the module,
    the data module's training loader, that of the fit, that of the module.

    Args:
        trainer: The Trainer.
        pl_module: The module.
        given: A loader that was given explicitly, or None.

    Raises:
        ValueError: If there is none.
    """
    data = getattr(trainer, "datamodule", None)
    if given is not None:
        return given
    for owner in (data, pl_module):
        if callable(getattr(owner, HOOK, None)):
            return getattr(owner, HOOK)()
    if data is not None:
        if trainer.state.fn != "fit":
            data.setup("fit")  # the other stages set up their own part only
        return data.train_dataloader()
    if trainer.train_dataloader is not None:
        return trainer.train_dataloader
    if type(pl_module).train_dataloader.__qualname__.partition(".")[0] not in ("DataHooks", "LightningModule"):
        return pl_module.train_dataloader()
    raise ValueError(
        "there is no calibration data: give calibration_dataloader, a data module, or a module with a "
        "calibration_dataloader() or train_dataloader()"
    )


def calibration_batches(trainer: Trainer, loader: Iterable[Any], num_samples: int) -> Iterator[Any]:
    """Yield this process's batches of the first samples of a loader; the last batch is cut to fit.

    A loader that gives every process its own samples is asked for an equal share on each. Of any other, processes take
    the batches in turn, under the generator of the first process, so that a loader that shuffles does it alike.

    Args:
        trainer: The Trainer.
        loader: The loader.
        num_samples: Number of samples, of all processes.
    """
    rank, world = trainer.global_rank, trainer.world_size
    if world > 1:
        torch.set_rng_state(trainer.strategy.broadcast(torch.get_rng_state()))
        if _is_split(loader):
            rank, world, num_samples = 0, 1, -(-num_samples // world)
    taken = 0
    for index, batch in enumerate(loader):
        size = _size(batch)
        left = num_samples - taken
        if index % world == rank:
            yield batch if size <= left else _first(batch, size, left)
        taken += size
        if taken >= num_samples:
            break


def _is_split(loader: Any) -> bool:
    samplers = (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
    return any(isinstance(sampler, DistributedSampler) for sampler in samplers)


def _size(batch: Any) -> int:
    sizes = [len(leaf) for leaf in tree_leaves(_plain(batch)) if isinstance(leaf, Tensor) and leaf.ndim]
    return sizes[0] if sizes else 1


def _first(batch: Any, size: int, count: int) -> Any:
    return tree_map_only(Tensor, lambda x: x[:count] if x.ndim and len(x) == size else x, _plain(batch))


def _plain(batch: Any) -> Any:
    """Return a batch of transformers, which is no dict, as one."""
    return batch if isinstance(batch, (dict, list, tuple, Tensor)) or not hasattr(batch, "items") else dict(batch)
