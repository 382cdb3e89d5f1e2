"""What choosing a mask and adding TSCNC's penalty cost: python benchmarks/tscnc.py [--quick] [--out FILE].

One thread, CPU time of the process, the contestants taking turns in random order within every round; ratios are taken
within rounds, so that a busy machine slows both sides.
"""

from collections.abc import Callable
from typing import Any

import torch
from _measure import arguments, conclude, milliseconds, prepare, quotients, spread, take_turns
from torch import nn
from torch.nn.utils import prune

from lightning_weights.callbacks import TSCNC
from lightning_weights.functional.pruning import top_k_mask
from lightning_weights.modules import WideResNet

WEIGHTS = (2000, 1000)  # two million
KEEP = 0.1
BATCH = 32


def masks() -> dict[str, Callable[[], Any]]:
    """Return ways to choose the largest tenth of two million weights; the baseline comes first."""
    weight = torch.randn(WEIGHTS)
    method = prune.L1Unstructured(amount=1.0 - KEEP)
    ones = torch.ones_like(weight)

    def sorted_mask() -> torch.Tensor:
        order = weight.abs().flatten().argsort()
        chosen = torch.ones_like(weight).flatten()
        chosen[order[: int((1.0 - KEEP) * weight.numel())]] = 0.0
        return chosen.view_as(weight)

    def torchs() -> nn.Module:
        layer = nn.Module()
        layer.weight = nn.Parameter(weight)
        return prune.l1_unstructured(layer, "weight", amount=1.0 - KEEP)

    found, expected = top_k_mask(weight, KEEP), method.compute_mask(weight, ones).bool()
    if not torch.equal(found, expected):
        raise RuntimeError("the contestants choose other weights")
    return {
        "prune.l1_unstructured": torchs,
        "its mask alone": lambda: method.compute_mask(weight, ones),
        "sort and scatter": sorted_mask,
        "top_k_mask": lambda: top_k_mask(weight, KEEP),
    }


def steps() -> dict[str, Callable[[], Any]]:
    """Return training steps of a wide residual network without and with penalties; the baseline comes first."""
    torch.manual_seed(0)
    x, y = torch.rand(BATCH, 3, 32, 32), torch.arange(BATCH) % 10
    penalties = {
        "step": None,
        "step + penalties": TSCNC(num_train_samples=50_000),
        "step + penalties on all layers": TSCNC(num_train_samples=50_000, cnc_layers="all"),
        "step + L2 alone": TSCNC(num_train_samples=50_000, cnc_weight=0.0, gated_layers=None),
    }

    def step(network: nn.Module, tscnc: TSCNC | None) -> None:
        network.zero_grad()
        loss = nn.functional.cross_entropy(network(x), y)
        if tscnc is not None:
            loss = loss + tscnc.penalty(network)
        loss.backward()

    def contestant(tscnc: TSCNC | None) -> Callable[[], None]:
        network = WideResNet(blocks=2, widen=4, pre_activation=True, pool=True, linear_size=None)  # WRN-16-4
        if tscnc is not None:
            tscnc.attach(network)
        return lambda: step(network, tscnc)

    return {name: contestant(tscnc) for name, tscnc in penalties.items()}


def measure(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Return CPU milliseconds, and how many times faster than the first contestant each is."""
    for run in contestants.values():
        run()
    times = take_turns(contestants, rounds)
    baseline = times[next(iter(contestants))]
    return {name: {"ms": milliseconds(own), **quotients(baseline, own)} for name, own in times.items()}


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    table(f"the largest {KEEP:.0%} of {WEIGHTS[0] * WEIGHTS[1]:,} weights", result["mask"])
    table(f"forward and backward of WRN-16-4, {BATCH} images", result["step"])


def table(title: str, rows: dict[str, dict[str, float]]) -> None:
    """Print one table."""
    print(f"\n{title}; CPU time, and how many times faster than {next(iter(rows))}: median (quartiles)")
    for name, row in rows.items():
        print(f"  {name:32} {row['ms']:8.2f} ms  {spread(row)}")


def main() -> None:
    """Measure, print and write."""
    options = arguments("tscnc", __doc__).parse_args()
    prepare()
    rounds = 5 if options.quick else 25
    result = {"mask": measure(masks(), rounds), "step": measure(steps(), max(3, rounds // 3))}
    conclude(options, result, report)


if __name__ == "__main__":
    main()
