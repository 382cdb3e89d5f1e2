"""What predicting weights costs: python benchmarks/know.py [--quick] [--out FILE].

The contestants are KNOWN's layers one after the other on all weights at once, the same with pieces of 65,536 weights,
and the operator `nowcast`; linear extrapolation stands beside them for scale. All predict the same numbers but the
latter. Then whole networks, a ResNet-20 and the perceptron of the example: KNOWN's layers tensor by tensor, and
`predict_overflowed`, which checks the snapshots, too. One thread, CPU time of the process, the contestants taking
turns in random order within every round; ratios are taken within rounds, so that a busy machine slows all of them.
Peak memory is counted by PyTorch's profiler in one call, the result included. What the kernel moves on a GPU is
estimated from its cost model, not measured.
"""

from collections.abc import Callable
from typing import Any

import torch
from _measure import PEAK_BANDWIDTH, arguments, conclude, milliseconds, peak, prepare, quotients, spread, take_turns
from torch import Tensor

from lightning_weights.kernels.nowcast import nowcast, nowcast_reference, parameter_count
from lightning_weights.kernels.nowcast.cost import cost, cost_composed
from lightning_weights.modules import MLP, KNOWNBank, WideResNet, predict_overflowed
from lightning_weights.modules.weight_kinds import weight_kinds

COUNTS = (64, 4096, 262_144)  # weights: of a bias, of a small layer, of a small network
HISTORY = 5
PIECE = 1 << 16
RECURSIONS = (1, 3)
NETWORKS = {
    "ResNet-20": lambda: WideResNet(blocks=3, widen=1, pool=True),
    "perceptron 64-100-40-10": lambda: MLP(64, (100, 40), 10),
}


def extrapolated(history: Tensor, recursions: int) -> Tensor:
    """Return the last weight plus once, twice ... the last difference."""
    return history[:, -1:] + (history[:, -1:] - history[:, -2:-1]) * torch.arange(1, recursions + 1)


def on_weights(count: int, recursions: int) -> dict[str, Callable[[], Tensor]]:
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


def on_network(name: str, recursions: int) -> tuple[int, dict[str, Callable[[], Any]]]:
    """Return how many weights of a network are predicted, and ways to do it; the first one is the baseline."""
    start = NETWORKS[name]().state_dict()
    walk = {name: 0.01 * torch.randn(HISTORY, *tensor.shape) for name, tensor in start.items()}
    snapshots = [{name: tensor + walk[name][: s + 1].sum(0) for name, tensor in start.items()} for s in range(HISTORY)]
    bank = KNOWNBank.from_pretrained("digits")
    kinds = weight_kinds(start)

    def one_by_one() -> dict[str, Tensor]:
        predicted = {}
        for name, tensor in snapshots[-1].items():
            if name not in kinds:
                predicted[name] = tensor.clone()
                continue
            history = torch.stack([snapshot[name].flatten() for snapshot in snapshots], dim=1)
            found = nowcast_reference(history, getattr(bank, kinds[name]).packed(), recursions)
            predicted[name] = found[:, -1].reshape(tensor.shape).clone()
        return predicted

    found = {
        "tensor by tensor": one_by_one,
        "predict_overflowed": lambda: predict_overflowed(snapshots, bank, recursions),
    }
    baseline, ours = (run() for run in found.values())
    if not all(torch.allclose(ours[name], tensor, rtol=0.0, atol=1e-5) for name, tensor in baseline.items()):
        raise RuntimeError("predict_overflowed predicts something else")
    return sum(start[name].numel() for name in kinds), found


def measure(count: int, ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Return time and peak memory per weight, and both of the baseline over a contestant's own."""
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
        print(f"\n{title}; CPU time, times faster than the first: median (quartiles), memory")
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
    rounds = 3 if options.quick else 9
    cases = {}
    for recursions in RECURSIONS:
        for count in COUNTS:
            cases[f"{count:,} weights, {recursions} times"] = measure(count, on_weights(count, recursions), rounds)
        for name in NETWORKS:
            count, ways = on_network(name, recursions)
            cases[f"{name}, {count:,} weights, {recursions} times"] = measure(count, ways, rounds)
    conclude(options, {"cases": cases, "estimates": estimates()}, report)


if __name__ == "__main__":
    main()
