"""Processes of their own: one, or two that reduce gradients with gloo, for tests of resuming and of strategies."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from tests.helpers.battery import Setup, small_module, tasks, train


def network(dropout: float) -> nn.Module:
    """Return a network whose matrices are higher than wide, square, and wider than high."""
    hidden = nn.Linear(4, 12), nn.Dropout(dropout), nn.ReLU(), nn.Linear(12, 12), nn.ReLU()
    return nn.Sequential(*hidden, nn.Linear(12, 3))


def regression(module: Any, x: Tensor, y: Tensor) -> Tensor:
    """Return a loss whose gradients have no equal singular values, of which any basis would do: rounding decides."""
    return (module(x) - x[:, :3]).square().mean()


def uneven_data(root: str = "lightning.pytorch", shuffle: bool = False) -> Any:
    """Return data that gives each of two processes batches of 3, 3 and 2 samples."""

    def train_dataloader(self: Any) -> DataLoader:
        task = self.sets[self.task]
        return DataLoader(task, batch_size=3, sampler=DistributedSampler(task, shuffle=shuffle))

    return type("Uneven", (type(tasks(root)),), {"train_dataloader": train_dataloader})(3, False)


def fit(
    row: Setup, strategy: Any, root: str = "lightning.pytorch", dropout: float = 0.0, **options: Any
) -> dict[str, Any]:
    """Train on two processes and return what is left."""
    module = small_module(row, root, dropout=dropout)
    data = options.pop("data", None) or uneven_data(root)
    return train(row, module, root=root, data=data, strategy=strategy, devices=2, **options)


# what takes seconds to import
PRELOADED = ("lightning.pytorch", *(f"lightning_weights.{room}" for room in ("callbacks", "modules", "strategies")))


def run_elsewhere(function: Callable[..., None], *arguments: Any) -> None:
    """Run a function in a process of its own, for five minutes at most, and pass on what it raises.

    It is forked from another, which imports what takes seconds, once for all tests.
    """
    started = _start(_apart, (function, arguments), 1)
    if not started.join(timeout=300):
        started.processes[0].kill()
        raise TimeoutError(f"{function.__name__} takes more than five minutes")


def _start(work: Callable[..., None], arguments: tuple[Any, ...], processes: int) -> Any:
    multiprocessing.set_forkserver_preload([*PRELOADED, __name__])
    start = torch.multiprocessing.start_processes
    return start(work, arguments, nprocs=processes, join=False, start_method="forkserver")


def _apart(_rank: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    function(*arguments)


def run_on_two(
    scenarios: Callable[[int, Path], dict[str, Any]],
    folder: Path,
    alone: Callable[[], dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Run a function of rank and folder in two processes of one group and return what each found.

    When the group is gone the first process also runs `alone`.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = _start(_work, (scenarios, folder, port, alone), 2)
    while not started.join():
        pass
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def _work(
    rank: int,
    scenarios: Callable[[int, Path], dict[str, Any]],
    folder: Path,
    port: int,
    alone: Callable[[], dict[str, Any]] | None,
) -> None:
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port), NODE_RANK="0", LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    found = scenarios(rank, folder)
    torch.save(found, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()
    if rank == 0 and alone is not None:
        torch.save(found | alone(), folder / f"rank{rank}.pt")
