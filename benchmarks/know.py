"""What predicting weights costs: python benchmarks/know.py [--quick] [--out FILE].

The contestants are KNOWN's layers one after the other on all weights at once, the same with pieces of 65,536 weights,
and the operator `nowcast`; linear extrapolation stands beside them for scale. All predict the same numbers but the
latter. One thread, CPU time of the process, the contestants taking turns in random order within every round; ratios
are taken within rounds, so that a busy machine slows all of them. Peak memory is counted by PyTorch's profiler in one
call, the result included. What the kernel moves on a GPU is estimated from its cost model, not measured.
"""

from collections.abc import Callable
from typing import Any

import torch
from _measure import PEAK_BANDWIDTH, arguments, conclude, milliseconds, peak, prepare, quotients, spread, take_turns
from torch import Tensor

from lightning_weights.kernels.nowcast import nowcast, nowcast_reference, parameter_count
from lightning_weights.kernels.nowcast.cost import cost, cost_composed

COUNTS = (64, 4096, 262_144)  # weights: of a bias, of a small layer, of a small network
HISTORY = 5
PIECE = 1 << 16
RECURSIONS = (1, 3)


def extrapolated(history: Tensor, recursions: int) -> Tensor:
    """Return the last weight plus once, twice ... the last difference."""
    return history[:, -1:] + (history[:, -1:] - history[:, -2:-1]) * torch.arange(1, recursions + 1)


def contestants(count: int, recursions: int) -> dict[str, Callable[[], Tensor]]:
    """Return ways to predict weights, after making sure that they agree; the first one is the baseline."""
    history = torch.randn(count, HISTORY).mul_(0.1).cumsum(1)
    parameters = torch.randn(parameter_count(HISTORY)).mul_(0.1)

    def in_pieces() -> Tensor:
        return torch.cat([nowcast_reference(piece, parameters, recursions) for piece in history.split(PIECE)])

    found = {
        "layer by layer": lambda: nowcast_reference(history, parameters, recursions),
        **({"in pieces of 65,536": in_pieces} if count > PIECE else {}),
        "nowcast": lambda: nowcast(history, parameters, recursions),
        "linear extrapolation": lambda: extrapolated(history, recursions),
    }
    baseline = found["layer by layer"]()
    for name, run in found.items():
        if name != "linear extrapolation" and not torch.allclose(run(), baseline, rtol=0.0, atol=1e-5):
            raise RuntimeError(f"{name} predicts something else")
    return found


def measure(count: int, recursions: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return time and peak memory per weight, and both of the baseline over a contestant's own."""
    ways = contestants(count, recursions)
    times = take_turns(ways, rounds)
    memory = {name: peak(run) for name, run in ways.items()}
    baseline = next(iter(ways))
    return {
        name: {
            "ns_per_weight": 1e6 * milliseconds(times[name]) / count,
            "peak_bytes_per_weight": memory[name] / count,
            "memory_ratio": memory[baseline] / memory[name],
            **quotients(times[baseline], times[name]),
        }
        for name in ways
    }


def estimates() -> dict[str, Any]:
    """Return what the cost models say about one prediction of a million weights."""
    fused, composed = cost(10**6, HISTORY), cost_composed(10**6, HISTORY)
    moved, others = (model.bytes_read + model.bytes_written for model in (fused, composed))
    return {
        "bytes_per_weight": moved / 1e6,
        "bytes_per_weight_layer_by_layer": others / 1e6,
        "flops_per_weight": fused.flops / 1e6,
        "flops_per_weight_layer_by_layer": composed.flops / 1e6,
        "layer_by_layer_ms_at_bandwidth": {name: 1e3 * others / peak for name, peak in PEAK_BANDWIDTH.items()},
    }


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    for title, rows in result["cases"].items():
        print(f"\n{title}; CPU time, times faster than layer by layer: median (quartiles), memory")
        for name, row in rows.items():
            print(
                f"  {name:22} {row['ns_per_weight']:9.1f} ns  {spread(row)}  {row['peak_bytes_per_weight']:9.1f} bytes "
                f"per weight, {row['memory_ratio']:.1f} times less"
            )
    model = result["estimates"]
    print(
        f"\nestimates: {model['bytes_per_weight']:.0f} bytes and {model['flops_per_weight']:.0f} operations per "
        f"weight, layer by layer {model['bytes_per_weight_layer_by_layer']:.0f} and "
        f"{model['flops_per_weight_layer_by_layer']:.0f}"
    )


@torch.inference_mode()
def main() -> None:
    """Measure, print and write."""
    options = arguments("know", __doc__).parse_args()
    prepare()
    cases = {}
    for count in COUNTS:
        for recursions in RECURSIONS:
            rounds = 3 if options.quick else 9
            cases[f"{count:,} weights, {recursions} times"] = measure(count, recursions, rounds)
    conclude(options, {"cases": cases, "estimates": estimates()}, report)


if __name__ == "__main__":
    main()
