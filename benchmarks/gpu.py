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
from typing import Any, NamedTuple

import torch
from _columns import Layer, config, pair
from _measure import arguments, conclude
from ponita import networks, passes, points
from torch import Tensor

from lightning_weights.functional.column_solver import InputStatistics, factorize
from lightning_weights.kernels import Cost, use_kernels
from lightning_weights.kernels.block_affine import block_affine
from lightning_weights.kernels.block_affine import cost as block_costs
from lightning_weights.kernels.classp_step import classp_step
from lightning_weights.kernels.classp_step import cost as classp_costs
from lightning_weights.kernels.compand import compand
from lightning_weights.kernels.compand import cost as compand_costs
from lightning_weights.kernels.distillation_loss import cost as distillation_costs
from lightning_weights.kernels.distillation_loss import distillation_loss
from lightning_weights.kernels.fiber_conv import cost as fiber_costs
from lightning_weights.kernels.fiber_conv import fiber_conv, sort_edges
from lightning_weights.kernels.interval_affine import cost as interval_costs
from lightning_weights.kernels.interval_affine import interval_affine
from lightning_weights.kernels.mix_templates import cost as mix_costs
from lightning_weights.kernels.mix_templates import mix_templates
from lightning_weights.kernels.projected_adam import cost as projected_costs
from lightning_weights.kernels.projected_adam import projected_adam
from lightning_weights.kernels.pulse_update import PulseRule, Response, pulse_update
from lightning_weights.kernels.pulse_update import cost as pulse_costs
from lightning_weights.kernels.sparse_adamw import cost as sparse_costs
from lightning_weights.kernels.sparse_adamw import sparse_adamw
from lightning_weights.kernels.statsq import cost as statsq_costs
from lightning_weights.kernels.statsq import statsq
from lightning_weights.kernels.transformed_l1 import cost as tl1_costs
from lightning_weights.kernels.transformed_l1 import transformed_l1
from lightning_weights.kernels.weight_norm_rows import cost as norm_costs
from lightning_weights.kernels.weight_norm_rows import weight_norm_rows

GPU = "cuda"
SIDE, INNER = 16384, 4096  # of weights that are streamed, and of those that are multiplied
LAYERS = ((576, 1536), (2048, 2048), (4096, 4096))
METHODS = ("gptq", "gptaq", "rescomp", "foem")


class Work(NamedTuple):
    """A call, and what it has to move; without the latter only times are compared."""

    run: Callable[[], object]
    moved: tuple[Cost, ...] = ()


def random(*shape: int, grad: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return normal numbers on the GPU."""
    return torch.randn(*shape, device=GPU, dtype=dtype).requires_grad_(grad)


def there_and_back(function: Callable[..., Tensor], *leaves: Tensor, like: tuple[int, ...]) -> Callable[[], object]:
    """Return a call that computes a result and its gradients."""
    upstream = random(*like, dtype=leaves[0].dtype)
    return lambda: torch.autograd.grad(function(*leaves), leaves, upstream)


def steps() -> dict[str, Work]:
    """Return the optimizers' operators."""
    n, few = SIDE * SIDE, SIDE * SIDE // 20
    w, g, m = ([random(SIDE, SIDE).abs_()] for _ in range(3))
    counts = torch.zeros(4, dtype=torch.int64, device=GPU)
    chosen = torch.randperm(n, device=GPU)[:few].sort().values.int()
    first, second, rule = random(few), random(few).abs_(), {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    basis = torch.linalg.qr(random(SIDE, 32))[0].T.contiguous()
    low, lows = [random(SIDE, 32)], [random(SIDE, 32).abs_()]
    states = [torch.rand(SIDE, SIDE, device=GPU) for _ in range(2)]
    soft = {"response": Response("soft", nu_up=2.0, nu_down=2.0), "mode": "rising", "rule": PulseRule()}
    return {
        "classp_step": Work(
            lambda: classp_step(w, g, m, counts[:2], lr=1e-4, threshold=0.1, power=1.0, eps=1e-5),
            (classp_costs.cost([n]),),
        ),
        "sparse_adamw, 5 %": Work(
            lambda: sparse_adamw(w, [chosen], g, [first], [second], [1e-4], **rule), (sparse_costs.cost([few]),)
        ),
        "projected_adam, rank 32": Work(
            lambda: projected_adam(w, g, low, lows, rights=[basis], step_sizes=[1e-4], **rule),
            (projected_costs.cost(SIDE, SIDE, 32),),
        ),
        "pulse_update": Work(
            lambda: pulse_update(w[0], g[0], states, counts, gain=-1.0, w_scale=1.0, **soft), (pulse_costs.cost(n),)
        ),
    }


def weights() -> dict[str, Work]:
    """Return the operators on one weight."""
    square, w = (SIDE, SIDE), random(SIDE, SIDE, grad=True)
    half, block = random(SIDE, SIDE, grad=True, dtype=torch.bfloat16), random(SIDE // 64, 1, 64, 64)
    a, b = (torch.rand(SIDE, device=GPU).add_(0.5).requires_grad_() for _ in range(2))
    keep = torch.rand(SIDE, device=GPU).requires_grad_()
    i, j, known = random(SIDE, 64), random(64, SIDE), torch.rand(SIDE, device=GPU) * SIDE
    sets = [random(2, SIDE // 2, SIDE // 2, grad=True) for _ in range(2)]
    mixed = there_and_back(
        lambda *t: mix_templates(t[:2], t[2], (0, 1, 0, 1), 2), *sets, random(4, 2, grad=True), like=square
    )
    both = {"itemsize": 2}
    return {
        "block_affine, bf16": Work(
            there_and_back(block_affine, half, block.requires_grad_(), like=square),
            tuple(block_costs.cost(*square, 64, (SIDE // 64, 1), **both, backward=back) for back in (False, True)),
        ),
        "compand": Work(
            there_and_back(compand, w, a, b, like=square),
            (compand_costs.cost(*square), compand_costs.cost(*square, backward=True, sums=True)),
        ),
        "transformed_l1": Work(
            there_and_back(lambda *t: transformed_l1(*t, precision=1e-3, l0=1e-4, a=1.0), w, keep, like=(SIDE,)),
            (tl1_costs.cost(*square), tl1_costs.cost(*square, backward=True)),
        ),
        "statsq": Work(lambda: statsq(w.detach(), 4), (statsq_costs.cost(*square),)),
        "weight_norm_rows, rank 64": Work(
            lambda: weight_norm_rows(w.detach(), i, j, scale=2.0, weight_norm_sq=known),
            (norm_costs.cost(*square, 64),),
        ),
        "mix_templates": Work(
            mixed,
            (
                mix_costs.cost(SIDE // 2, SIDE // 2, 2),
                mix_costs.cost(SIDE // 2, SIDE // 2, 2, backward=True, sums=True),
            ),
        ),
    }


def activations() -> dict[str, Work]:
    """Return the operators on a batch."""
    rows, words = INNER, 12 * INNER
    student, teacher = (random(rows, words, dtype=torch.bfloat16) for _ in range(2))
    student.requires_grad_()
    labels = torch.randint(words, (rows,), device=GPU)
    centre, radius, weight = random(512, INNER, grad=True), random(512, INNER).abs_(), random(INNER, INNER, grad=True)
    scale, shift = random(INNER), random(INNER)

    def intervals() -> object:
        found = interval_affine(centre, radius, weight, scale=scale, shift=shift, relu=True)
        return torch.autograd.grad(found.center.sum() + found.radius.sum(), (centre, weight))

    graphs, points, orientations, channels, basis = 16, 20, 16, 128, 256
    ends = torch.arange(graphs * points, device=GPU).view(graphs, points)
    senders, receivers = (
        ends[:, None, :].expand(-1, points, -1).flatten(),
        ends[:, :, None].expand(-1, -1, points).flatten(),
    )
    edges, nodes = sort_edges(torch.stack([senders, receivers]), graphs * points), graphs * points
    shapes = ((nodes, orientations, channels), (nodes * points, orientations, basis), (channels, basis))
    leaves = [random(*shape, grad=True) for shape in (*shapes, (orientations, orientations, channels), (channels,))]
    return {
        "distillation_loss, bf16": Work(
            lambda: torch.autograd.grad(distillation_loss(student, teacher, labels, weight=0.5), student),
            distillation_costs.cost(rows, words, words, itemsize=2, teacher_itemsize=2),
        ),
        "interval_affine": Work(intervals, (interval_costs.cost(512, INNER, INNER, bias=False),)),
        "fiber_conv": Work(
            there_and_back(lambda *t: fiber_conv(*t, edges=edges), *leaves, like=shapes[0]),
            fiber_costs.cost(nodes, nodes * points, orientations, channels, basis),
        ),
    }


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
    for made, precision in ((steps, "highest"), (weights, "highest"), (activations, "highest"), (activations, "high")):
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
