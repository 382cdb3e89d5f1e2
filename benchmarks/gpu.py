"""What the Triton kernels take on a GPU: python benchmarks/gpu.py [--quick] [--out FILE].

Every operator, forward and backward where it has both, on tensors far larger than the caches: the kernel against the
operator's own eager PyTorch on the same GPU, as `LIGHTNING_WEIGHTS_KERNELS=eager` gives it; those with products in
full fp32 and in TF32. Bytes are those of the cost
model, as a share of what copying a gigabyte reaches on the same GPU. Then whole layers: the column solver against the
column loops of published implementations (`_published_loops.py`), both on the GPU, and PONITA beside other equivariant
networks (`ponita.py`). Times are medians: CUDA events', of the solver wall time's.
"""

import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from _columns import Layer, config, pair
from _gpu_operators import GPU, activations, post_training, random, steps, weights
from _measure import arguments, conclude
from ponita import networks, passes, points

from lightning_weights.functional.column_solver import InputStatistics, factorize
from lightning_weights.kernels import use_kernels

LAYERS = ((576, 1536), (2048, 2048), (4096, 4096))
METHODS = ("gptq", "gptaq", "rescomp", "foem")


def milliseconds(run: Callable[[], object], quick: bool) -> float:
    """Return the median of CUDA events around a call."""
    from triton.testing import do_bench

    return float(do_bench(run, warmup=20, rep=50 if quick else 200, return_mode="median"))


def milliseconds_of_a_loop(run: Callable[[], object], quick: bool) -> float:
    """Return the median of few calls, each of which takes thousands of launches; the first one is not counted."""
    times = []
    for _ in range(3 if quick else 6):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def copy_bandwidth() -> float:
    """Return bytes per second, those read and those written, of copying a gigabyte."""
    source = random(2**28)
    target = torch.empty_like(source)
    return 2e3 * source.nbytes / milliseconds(lambda: target.copy_(source), quick=False)


def operators(bandwidth: float, quick: bool) -> dict[str, dict[str, float]]:
    """Return what every operator takes with its kernel and without, printing it on the way."""
    print(
        f"\n{'operator':28} {'kernel':>10} {'eager':>10} {'ratio':>7}  bytes of the cost model, share of a copy's rate"
    )
    result = {}
    exact = [(made, "highest") for made in (steps, weights, activations, post_training)]
    for made, precision in (*exact, (activations, "high")):
        torch.set_float32_matmul_precision(precision)
        for name, work in made().items():
            if precision == "high":
                name += ", TF32"
            row = {}
            for mode in ("triton", "eager"):
                with use_kernels(mode):
                    row[f"{mode}_ms"] = milliseconds(work.run, quick)
            moved = sum(cost.bytes_read + cost.bytes_written for cost in work.moved)
            row |= {"ratio": row["eager_ms"] / row["triton_ms"], "share": 1e3 * moved / row["triton_ms"] / bandwidth}
            result[name] = row
            times = f"{row['triton_ms']:7.3f} ms {row['eager_ms']:7.3f} ms {row['ratio']:7.2f}"
            print(f"{name:28} {times}  {row['share']:.0%}", flush=True)
        torch.cuda.empty_cache()
    torch.set_float32_matmul_precision("highest")
    return result


def made_layer(m: int, n: int) -> Layer:
    """Make a layer on the GPU with correlated inputs, and inputs of the other stream that are off by a tenth."""
    tokens = 2 * n
    inputs = (random(tokens, n) * torch.arange(1, n + 1, device=GPU) ** -0.3) @ (random(n, n) / n**0.5)
    full = inputs + 0.1 * inputs @ random(n, n) / n**0.5
    gathered = InputStatistics(n, asymmetric=True)
    gathered.update(inputs[None], full[None])
    return Layer(random(m, n) * n**-0.5, gathered, inputs, full)


def solvers(quick: bool) -> dict[str, dict[str, float]]:
    """Return what whole layers take, U and P given to both sides, printing it on the way."""
    print(f"\n{'column solver':28} {'own':>10} {'eager':>12} {'published':>12} {'ratio':>7}  equal codes")
    result = {}
    for m, n in LAYERS:
        made = made_layer(m, n)
        asked = config("gptaq", alpha=0.25)
        factors = factorize(made.statistics.hessian, made.statistics.asymmetry, config=asked)
        for method in METHODS:
            both = pair(made.weight, config(method), factors)
            own, other = (milliseconds_of_a_loop(run, quick) for run in both)
            with use_kernels("eager"):
                eager = milliseconds_of_a_loop(both.own, quick)
            same = float((both.own().codes == both.other().codes).float().mean())
            row = {"ms": own, "eager_ms": eager, "published_ms": other, "ratio": other / own, "equal": same}
            result[f"{method} {m} x {n}"] = row
            times = f"{own:7.1f} ms {eager:9.1f} ms {other:9.1f} ms {row['ratio']:7.1f}"
            print(f"{method + f' {m} x {n}':28} {times}  {same:.3%}", flush=True)
    return result


def equivariant(quick: bool) -> dict[str, float]:
    """Return what forward and backward pass of whole networks take on 128 complete graphs of 20 points."""
    with torch.device(GPU):
        found, x = networks(), points(128, 20)
    result = {}
    print(f"\n{'network, 128 graphs of 20 points':46} full fp32      TF32")
    for name, (network, _) in found.items():
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            result[f"{name}, {precision}"] = milliseconds(passes(network, x), quick)
        both = [result[f"{name}, {precision}"] for precision in ("highest", "high")]
        print(f"{name:46} {both[0]:6.2f} ms {both[1]:6.2f} ms", flush=True)
    torch.set_float32_matmul_precision("highest")
    return result


def main() -> None:
    """Measure, print and write."""
    options = arguments("gpu", __doc__).parse_args()
    if not torch.cuda.is_available():
        return print("benchmarks/gpu.py needs a GPU, and PyTorch sees none: nothing was measured")
    torch.manual_seed(0)
    found: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "triton": version("triton"), "copy": copy_bandwidth()}
    print(f"{found['gpu']}, Triton {found['triton']}; copying a gigabyte: {found['copy'] / 1e12:.2f} TB/s")
    found |= {"operators": operators(found["copy"], options.quick), "solver": solvers(options.quick)}
    found["networks"] = equivariant(options.quick)
    conclude(options, found, lambda result: None)
    return None


if __name__ == "__main__":
    main()
