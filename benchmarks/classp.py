"""What a CLASSP step costs beside torch.optim.Adagrad: python benchmarks/classp.py [--quick] [--compile] [--out FILE].

One thread, CPU time of the process, all optimizers taking turns in random order within every round; ratios are taken
within rounds, so that a busy machine slows both sides. GPU numbers are estimates from the kernel's cost model and are
called so.
"""

from collections.abc import Callable
from typing import Any

import torch
from _measure import (
    PEAK_BANDWIDTH,
    arguments,
    conclude,
    cpu_seconds,
    milliseconds,
    prepare,
    quotients,
    spread,
    take_turns,
)

from lightning_weights.kernels.classp_step.cost import cost
from lightning_weights.optimizers import CLASSP

WEIGHTS = 5_000_000
TENSOR_COUNTS = (250, 10)
WARM_UP = 101  # CLASSP counts accepted weights in its first hundred steps
BASELINE = "Adagrad fused"


def contestants(with_compile: bool) -> dict[str, Callable[[Any], torch.optim.Optimizer]]:
    """Constructors by name; the baseline comes first."""
    adagrad, lr = torch.optim.Adagrad, 0.01
    table: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        BASELINE: lambda params: adagrad(params, lr=lr, fused=True),
        "Adagrad loop": lambda params: adagrad(params, lr=lr, foreach=False),
        "Adagrad foreach": lambda params: adagrad(params, lr=lr, foreach=True),
        "CLASSP": lambda params: CLASSP(params, lr=lr),
        "CLASSP counting": lambda params: CLASSP(params, lr=lr),
        "CLASSP p=2": lambda params: CLASSP(params, lr=lr, power=2.0),
        "CLASSP p=3": lambda params: CLASSP(params, lr=lr, power=3.0),
        "CLASSP no decay": lambda params: CLASSP(params, lr=lr, apply_decay=False),
        "CLASSP foreach": lambda params: CLASSP(params, lr=lr, foreach=True),
    }
    if with_compile:
        table["CLASSP compile"] = lambda params: CLASSP(params, lr=lr, compile=True)
    return table


def measure(tensors: int, rounds: int, with_compile: bool) -> dict[str, dict[str, float]]:
    """Time optimizer steps on ``WEIGHTS`` fp32 weights in ``tensors`` tensors.

    Returns:
        Per optimizer: CPU milliseconds, ratios to the baseline (quartiles), bytes of state per weight, and CPU seconds
        of the first step.
    """
    shape = (WEIGHTS // tensors,)
    gradients = [torch.randn(shape) * 0.01 for _ in range(tensors)]
    optimizers, results = {}, {}
    for name, build in contestants(with_compile).items():
        params = [torch.nn.Parameter(torch.randn(shape)) for _ in range(tensors)]
        for param, gradient in zip(params, gradients, strict=True):
            param.grad = gradient
        optimizers[name] = build(params)
        first = cpu_seconds(optimizers[name].step)
        counting = name == "CLASSP counting" or name.startswith("Adagrad")
        for _ in range(2 if counting else WARM_UP):
            optimizers[name].step()
        results[name] = {"first_step_s": first, "state_bytes_per_weight": _state_bytes(optimizers[name]) / WEIGHTS}
    times = take_turns({name: optimizer.step for name, optimizer in optimizers.items()}, rounds)
    for name, seconds in times.items():
        results[name] |= {"ms": milliseconds(seconds), **quotients(seconds, times[BASELINE])}
    return results


def estimates(weights: int = 10**9) -> list[dict[str, Any]]:
    """Time of one fused step at peak memory bandwidth, for GPUs that nobody measured here."""
    rows = []
    for skipped in (0.0, 0.5):
        moved = cost([weights], skipped=int(skipped * weights))
        total = moved.bytes_read + moved.bytes_written
        for gpu, bandwidth in PEAK_BANDWIDTH.items():
            rows.append(
                {"gpu": gpu, "skipped": skipped, "gigabytes": total / 1e9, "estimate_ms": 1e3 * total / bandwidth}
            )
    return rows


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    for tensors, rows in result["measured"].items():
        print(f"\n{WEIGHTS:,} fp32 weights in {tensors} tensors, ratio to {BASELINE}: median (quartiles) of CPU time")
        for name, row in rows.items():
            state = f"{row['state_bytes_per_weight']:.2f} bytes of state per weight"
            print(f"  {name:16} {row['ms']:7.2f} ms  {spread(row)}  {state}  first step {row['first_step_s']:.1f} s")
    print("\nestimate, not measured: 10^9 fp32 weights at the GPU's peak bandwidth")
    for row in result["estimates"]:
        skipped = f"{row['skipped']:.0%} of the weights in skipped blocks"
        print(f"  {row['gpu']:10}  {row['estimate_ms']:5.1f} ms (estimate), {row['gigabytes']:.0f} GB, {skipped}")


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = (
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    )
    return sum(tensor.nbytes for tensor in tensors if tensor.dim())  # a step counter is not per weight


def main() -> None:
    """Measure, print and write."""
    parser = arguments("classp", __doc__)
    parser.add_argument("--compile", action="store_true", help="also measure compile=True, which compiles for seconds")
    options = parser.parse_args()
    prepare()
    rounds = 10 if options.quick else 50  # below a hundred, so that the counting contestant keeps counting
    measured = {tensors: measure(tensors, rounds, options.compile) for tensors in TENSOR_COUNTS}
    conclude(options, {"weights": WEIGHTS, "measured": measured, "estimates": estimates()}, report)


if __name__ == "__main__":
    main()
