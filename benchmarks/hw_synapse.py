"""What an update by pulses costs: python benchmarks/hw_synapse.py [--quick] [--out FILE].

The contestants are the operator `pulse_update`, its composition of PyTorch's operations, and a step of torch.optim.SGD
on plain weights of the same shape. One thread, CPU time of the process, the contestants taking turns in random order
within every round; ratios are taken within rounds, so that a busy machine slows both sides. What the kernel moves on a
GPU is estimated from its cost model, not measured.
"""

from collections.abc import Callable
from typing import Any

import torch
from _measure import PEAK_BANDWIDTH, arguments, conclude, milliseconds, prepare, quotients, spread, take_turns

from lightning_weights.kernels.pulse_update import (
    DeviceMaps,
    PulseRule,
    Response,
    pulse_update,
    pulse_update_reference,
    read_out,
)
from lightning_weights.kernels.pulse_update.cost import cost, cost_eager

SHAPES = ((64, 64), (256, 256), (1024, 1024), (4096, 1024))
N_STATES, W_SCALE = 128, 1.5
SHARES = {"few pulses": 0.02, "many pulses": 0.5}  # of the weights that get one, about
KINDS = {"rising": Response("soft", 2.0, 2.0, N_STATES), "both": Response("soft", 2.0, 1.0, N_STATES)}


def contestants(shape: tuple[int, int], mode: str, share: float, varied: bool) -> dict[str, Callable[[], Any]]:
    """Return ways to one update; the composition comes first."""
    grad = torch.randn(shape)
    states = [0.8 * torch.rand(shape) for _ in range(2)]
    rates = [torch.randn(shape).mul(0.2).exp() for _ in range(2)]
    maps = DeviceMaps(rates=rates) if varied else DeviceMaps()
    rule = PulseRule("stochastic", 10, refresh="ideal")
    kinds: dict[str, Any] = {"response": KINDS[mode], "mode": mode, "rule": rule, "w_scale": W_SCALE, "maps": maps}
    kinds["gain"] = -share / 0.8  # the mean of |g| is 0.8
    own, weight, counts = [x.clone() for x in states], read_out(states, (), W_SCALE), torch.zeros(4, dtype=torch.int64)
    plain = torch.nn.Parameter(weight.clone())
    plain.grad = grad
    optimizer = torch.optim.SGD([plain], lr=1e-6)
    return {
        "composition": lambda: pulse_update_reference(grad, states, seed=1, **kinds),
        "pulse_update": lambda: pulse_update(weight, grad, own, counts, seed=1, **kinds),
        "SGD, plain weights": optimizer.step,
    }


def measure(group: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Return CPU milliseconds, and how many times faster than the first contestant each is."""
    for run in group.values():
        run()
    times = take_turns(group, rounds)
    baseline = times[next(iter(group))]
    return {name: {"ms": milliseconds(own), **quotients(baseline, own)} for name, own in times.items()}


def estimates() -> dict[str, Any]:
    """Return what one update of 4 M pairs moves, and the time that takes at peak bandwidth."""
    numel = 4096 * 1024
    models = {"kernel": cost(numel), "composition": cost_eager(numel)}
    found = {name: (model.bytes_read + model.bytes_written) / numel for name, model in models.items()}
    return {
        "bytes per weight": found,
        "microseconds at peak bandwidth": {
            gpu: {name: 1e6 * size * numel / bandwidth for name, size in found.items()}
            for gpu, bandwidth in PEAK_BANDWIDTH.items()
        },
    }


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    for title, rows in result["update"].items():
        print(f"\n{title}; CPU time, and how many times faster than the composition: median (quartiles)")
        for name, row in rows.items():
            print(f"  {name:20} {row['ms']:8.3f} ms  {spread(row)}")
    estimated = result["estimated, not measured"]
    print("\nestimated, not measured, for 4 M pairs:", estimated["bytes per weight"], "bytes per weight")
    for gpu, times in estimated["microseconds at peak bandwidth"].items():
        print(f"  {gpu:12} kernel {times['kernel']:6.0f} µs, composition {times['composition']:6.0f} µs")


def main() -> None:
    """Measure, print and write."""
    options = arguments("hw_synapse", __doc__).parse_args()
    prepare()
    rounds = 5 if options.quick else 25
    result: dict[str, Any] = {"update": {}, "estimated, not measured": estimates()}
    for shape in SHAPES:
        for name, share in SHARES.items():
            title = f"{shape[0]} x {shape[1]}, unidirectional, {name}"
            result["update"][title] = measure(contestants(shape, "rising", share, varied=False), rounds)
    for mode, varied in (("both", False), ("rising", True)):
        title = f"1024 x 1024, {'devices that differ' if varied else 'bidirectional'}, few pulses"
        result["update"][title] = measure(contestants((1024, 1024), mode, SHARES["few pulses"], varied), rounds)
    conclude(options, result, report)


if __name__ == "__main__":
    main()
