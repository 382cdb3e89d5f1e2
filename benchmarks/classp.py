"""What a CLASSP step costs beside torch.optim.Adagrad: python benchmarks/classp.py [--quick] [--compile] [--out FILE].

One thread, CPU time of the process, all optimizers taking turns in random order within every round; ratios are taken
within rounds, so that a busy machine slows both sides. GPU numbers are estimates from the kernel's cost model and are
called so.
"""

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightning_weights.kernels.classp_step.cost import cost
from lightning_weights.optimizers import CLASSP

WEIGHTS = 5_000_000
TENSOR_COUNTS = (250, 10)
WARM_UP = 101  # CLASSP counts accepted weights in its first hundred steps
BASELINE = "Adagrad fused"
PEAK_BANDWIDTH = {"A100 80 GB": 2.0e12, "H100 SXM": 3.35e12, "B200": 8.0e12, "MI300X": 5.3e12}  # bytes per second


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
        first = _seconds(optimizers[name].step)
        counting = name == "CLASSP counting" or name.startswith("Adagrad")
        for _ in range(2 if counting else WARM_UP):
            optimizers[name].step()
        results[name] = {"first_step_s": first, "state_bytes_per_weight": _state_bytes(optimizers[name]) / WEIGHTS}
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    order = list(optimizers)
    for _ in range(rounds):
        random.shuffle(order)  # what ran before decides what is in the cache
        for name in order:
            times[name].append(_seconds(optimizers[name].step))
    for name, seconds in times.items():
        ratios = [own / baseline for own, baseline in zip(seconds, times[BASELINE], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        results[name] |= {"ms": 1e3 * statistics.median(seconds), "ratio": middle, "ratio_q1": low, "ratio_q3": high}
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


def machine() -> dict[str, Any]:
    """Describe where the numbers come from."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cpus": len(models),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    for tensors, rows in result["measured"].items():
        print(f"\n{WEIGHTS:,} fp32 weights in {tensors} tensors, ratio to {BASELINE}: median (quartiles) of CPU time")
        for name, row in rows.items():
            spread = f"{row['ratio']:5.2f} ({row['ratio_q1']:.2f}-{row['ratio_q3']:.2f})"
            state = f"{row['state_bytes_per_weight']:.2f} bytes of state per weight"
            print(f"  {name:16} {row['ms']:7.2f} ms  {spread}  {state}  first step {row['first_step_s']:.1f} s")
    print("\nestimate, not measured: 10^9 fp32 weights at the GPU's peak bandwidth")
    for row in result["estimates"]:
        skipped = f"{row['skipped']:.0%} of the weights in skipped blocks"
        print(f"  {row['gpu']:10}  {row['estimate_ms']:5.1f} ms (estimate), {row['gigabytes']:.0f} GB, {skipped}")


def _seconds(step: Callable[[], Any]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = (
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    )
    return sum(tensor.nbytes for tensor in tensors if tensor.dim())  # a step counter is not per weight


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the rounds")
    parser.add_argument("--compile", action="store_true", help="also measure compile=True, which compiles for seconds")
    parser.add_argument("--out", type=Path, default=Path("results/classp/benchmark.json"), help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    rounds = 10 if arguments.quick else 50  # below a hundred, so that the counting contestant keeps counting
    result = {
        "machine": machine(),
        "weights": WEIGHTS,
        "measured": {tensors: measure(tensors, rounds, arguments.compile) for tensors in TENSOR_COUNTS},
        "estimates": estimates(),
    }
    report(result)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
