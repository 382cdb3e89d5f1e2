"""What DDP with projected or chosen gradients costs and sends: python benchmarks/strategies.py [--quick] [--out FILE].

Two processes of one thread each, gloo over the loopback interface, ten square layers, of 1024 x 1024 for 10.5 million
weights, and of other widths. DDP and the strategy's reduction take turns in random order, the same in both processes,
each with a model and an optimizer of its own; ratios are taken within rounds. A loopback is as fast as memory: over a
network the difference is larger.
"""

import os
import random
import socket
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _measure import arguments, conclude, milliseconds, prepare, quotients, spread
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.optimizers import GradNormLoRPAdamW, LIFTAdamW
from lightning_weights.strategies import GradientReduction, LowRankReduction, SparseReduction

WIDTHS, LAYERS, TOKENS = (512, 1024, 1536), 10, 64
RANK, GAP = 32, 200
DENSITY, INTERVAL = 0.05, 400
CONTESTANTS = ("low_rank, DDP", "low_rank, projected", "lift, DDP", "lift, chosen")


def network(width: int) -> nn.Module:
    """Return the layers, with the same weights in every process."""
    torch.manual_seed(0)
    return nn.Sequential(*[layer for _ in range(LAYERS) for layer in (nn.Linear(width, width), nn.ReLU())])


def low_rank(model: nn.Module) -> GradNormLoRPAdamW:
    """Return the optimizer of the projected gradients."""
    return GradNormLoRPAdamW(model.parameters(), rank=RANK, update_proj_gap=GAP, svd="randomized")


def lift(model: nn.Module) -> LIFTAdamW:
    """Return the optimizer of the chosen entries, which are chosen."""
    rule = {"budget_rank": None, "density": DENSITY, "update_interval": INTERVAL, "svd": "randomized"}
    optimizer = LIFTAdamW(model.parameters(), filter_rank=RANK, **rule)
    optimizer.select()
    return optimizer


def contestant(name: str, x: torch.Tensor) -> tuple[Callable[[], None], GradientReduction | None]:
    """Return a training step, and what counts its bytes."""
    method, _, reduction_name = name.partition(", ")
    model = network(x.shape[1])
    wrapped = DistributedDataParallel(model)
    optimizer = low_rank(model) if method == "low_rank" else lift(model)
    reduction = None
    if reduction_name != "DDP":
        reduction = LowRankReduction(optimizer) if method == "low_rank" else SparseReduction(optimizer)
        reduction.register(wrapped)

    def step() -> None:
        (wrapped(x) - x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, reduction


def work(rank: int, port: int, rounds: int, path: Path) -> None:
    """Measure in one of two processes; the first writes what it found."""
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    prepare()
    warnings.simplefilter("ignore", LightningWeightsWarning)  # that no layer is marked
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = {width: compare(rank, width, rounds) for width in WIDTHS}
    if rank == 0:
        torch.save(found, path)
    dist.destroy_process_group()


def compare(rank: int, width: int, rounds: int) -> dict[str, Any]:
    """Return seconds and bytes per step of every contestant."""
    x = torch.randn(TOKENS, width, generator=torch.Generator().manual_seed(rank))
    steps = {name: contestant(name, x) for name in CONTESTANTS}
    for step, _ in steps.values():
        for _ in range(2):  # projections are made in the first, and sent in the second
            step()
    before = {name: _bytes(reduction) for name, (_, reduction) in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    order = list(CONTESTANTS)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            dist.barrier()
            start = time.perf_counter()
            steps[name][0]()
            dist.barrier()
            seconds[name].append(time.perf_counter() - start)
    sent = {
        name: [(after - first) / rounds for after, first in zip(_bytes(reduction), before[name], strict=True)]
        for name, (_, reduction) in steps.items()
    }
    return {"seconds": seconds, "bytes": sent}


def _bytes(reduction: GradientReduction | None) -> tuple[int, int]:
    return (0, 0) if reduction is None else (reduction.sent_bytes, reduction.dense_bytes)


def formula(method: str, width: int) -> int:
    """Return the bytes that a step has to send, biases included."""
    numbers = width * RANK if method == "low_rank" else round(DENSITY * width * width)
    return 4 * LAYERS * (numbers + width)


def measure(rounds: int) -> list[dict[str, Any]]:
    """Run both processes.

    Returns:
        For each width and method: milliseconds per step with DDP and with the reduction, the quartiles of their
        quotient, bytes per step, of those the share of DDP's, and the bytes of the formula.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.pt"
        torch.multiprocessing.spawn(work, (port, rounds, path), nprocs=2)
        widths = torch.load(path, weights_only=True)
    pairs = list(zip(CONTESTANTS[::2], CONTESTANTS[1::2], strict=True))
    return [summary(width, *pair, **found) for width, found in widths.items() for pair in pairs]


def summary(width: int, whole: str, short: str, seconds: dict[str, Any], bytes: dict[str, Any]) -> dict[str, Any]:
    """Return one row of the table."""
    method, (sent, dense) = whole.partition(",")[0], bytes[short]
    return {
        "method": method,
        "weights": LAYERS * width * (width + 1),
        "ddp_ms": milliseconds(seconds[whole]),
        "reduction_ms": milliseconds(seconds[short]),
        **quotients(seconds[whole], seconds[short]),
        "sent_bytes": sent,
        "share": sent / dense,
        "formula_bytes": formula(method, width),
    }


def report(result: dict[str, Any]) -> None:
    """Print the table."""
    print(
        "| method | million weights | DDP, ms per step | reduction, ms | DDP / reduction | bytes per step | of DDP's "
        "| of the formula |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in result["steps"]:
        print(
            f"| {row['method']} | {row['weights'] / 1e6:.1f} | {row['ddp_ms']:.0f} | {row['reduction_ms']:.0f} "
            f"| {spread(row)} | {row['sent_bytes']:.0f} | {row['share']:.4f} "
            f"| {row['sent_bytes'] / row['formula_bytes']:.4f} |"
        )


if __name__ == "__main__":
    options = arguments("strategies", __doc__).parse_args()
    prepare()
    conclude(options, {"steps": measure(5 if options.quick else 15)}, report)
