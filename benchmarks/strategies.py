"""What DDP with projected or chosen gradients costs and sends: python benchmarks/strategies.py [--quick] [--out FILE].

Two processes of one thread each, gloo over the loopback interface, ten layers of 1024 x 1024, 10.5 million weights. DDP
and the strategy's reduction take turns in random order, the same in both processes, each with a model and an optimizer
of its own; ratios are taken within rounds. A loopback is as fast as memory: over a network the difference is larger.
"""

import os
import random
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _measure import arguments, conclude, milliseconds, prepare, quotients, spread
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_weights.optimizers import GradNormLoRPAdamW, LIFTAdamW
from lightning_weights.strategies import GradientReduction, LowRankReduction, SparseReduction

WIDTH, LAYERS, TOKENS = 1024, 10, 64
RANK, GAP = 32, 200
DENSITY, INTERVAL = 0.05, 400
CONTESTANTS = ("low_rank, DDP", "low_rank, projected", "lift, DDP", "lift, chosen")


def network() -> nn.Module:
    """Return the layers, with the same weights in every process."""
    torch.manual_seed(0)
    return nn.Sequential(*[layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())])


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
    model = network()
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
    dist.init_process_group("gloo", rank=rank, world_size=2)
    x = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(rank))
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
    if rank == 0:
        torch.save({"seconds": seconds, "bytes": sent}, path)
    dist.destroy_process_group()


def _bytes(reduction: GradientReduction | None) -> tuple[int, int]:
    return (0, 0) if reduction is None else (reduction.sent_bytes, reduction.dense_bytes)


def formula(method: str) -> int:
    """Return the bytes that a step has to send, biases included."""
    numbers = WIDTH * RANK if method == "low_rank" else round(DENSITY * WIDTH * WIDTH)
    return 4 * LAYERS * (numbers + WIDTH)


def measure(rounds: int) -> dict[str, Any]:
    """Run both processes.

    Returns:
        For each method: milliseconds per step with DDP and with the reduction, the quartiles of their quotient, bytes
        per step, of those the share of DDP's, and the bytes of the formula.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.pt"
        torch.multiprocessing.spawn(work, (port, rounds, path), nprocs=2)
        found = torch.load(path, weights_only=True)
    result = {}
    for whole, short in zip(CONTESTANTS[::2], CONTESTANTS[1::2], strict=True):
        method = whole.partition(",")[0]
        sent, dense = found["bytes"][short]
        result[method] = {
            "ddp_ms": milliseconds(found["seconds"][whole]),
            "reduction_ms": milliseconds(found["seconds"][short]),
            **quotients(found["seconds"][whole], found["seconds"][short]),
            "sent_bytes": sent,
            "share": sent / dense,
            "formula_bytes": formula(method),
        }
    return result


def report(result: dict[str, Any]) -> None:
    """Print the table."""
    print(
        "| method | DDP, ms per step | reduction, ms | DDP / reduction | bytes per step | of DDP's | of the formula |"
    )
    print("|---|---|---|---|---|---|---|")
    for method, row in result["steps"].items():
        print(
            f"| {method} | {row['ddp_ms']:.0f} | {row['reduction_ms']:.0f} | {spread(row)} | {row['sent_bytes']:.0f} "
            f"| {row['share']:.4f} | {row['sent_bytes'] / row['formula_bytes']:.4f} |"
        )


if __name__ == "__main__":
    options = arguments("strategies", __doc__).parse_args()
    prepare()
    conclude(options, {"steps": measure(5 if options.quick else 30)}, report)
