"""What OFQ's quantizers cost beside their peers: python benchmarks/ofq.py [--quick] [--out FILE].

Fake quantization of weights forward and backward, beside the same equations composed of PyTorch's operators and beside
torchao's quantizer for training (compared where it can be imported); annealing and tracking in one pass beside their
composition; and a whole layer. One thread, CPU time of the process. GPU numbers are estimates from the kernel's cost
model and are called so.
"""

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from _measure import PEAK_BANDWIDTH, arguments, conclude, milliseconds, prepare, quotients, spread, take_turns
from torch import Tensor, nn

from lightning_weights.functional.ofq import start_oscillation
from lightning_weights.kernels.statsq import statsq, statsq_observe
from lightning_weights.kernels.statsq.cost import cost, cost_composition
from lightning_weights.modules import FakeQuantLinear

BITS, RANGE, MOMENTUM, THRESHOLD = 2, 0.005, 0.01, 0.005
# the digits network's layer, layers of DeiT-T, DeiT-S and DeiT-B, and one of a language model
SHAPES = ((32, 32), (768, 192), (384, 384), (1536, 384), (768, 768), (3072, 768), (2048, 2048))
TOKENS = 8 * 197
WEIGHTS_PER_RUN = 3e7  # decides how many rounds a shape gets


def composed_position(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scale of every row and where weights are on the grid, operator by operator."""
    n = 2 ** (BITS - 1)
    scale = (2.0 * weight.abs().mean(1, keepdim=True)).detach()
    return scale, (weight / scale).clamp(-1.0, 1.0 - 1e-6) * n - 0.5


def composed_quantizer(weight: Tensor) -> Tensor:
    """Quantize as the paper's equations say, with the usual straight-through estimator."""
    scale, u = composed_position(weight)
    quantized = scale * (u.round() + 0.5) / 2 ** (BITS - 1)
    return weight + (quantized - weight).detach()


def composed_observer(weight: Tensor, previous: Tensor, direction: Tensor, ema: Tensor) -> tuple[Tensor, ...]:
    """Return codes and what may move, and advance the tracker."""
    n, (_, u) = 2 ** (BITS - 1), composed_position(weight)
    codes = u.round()
    movable = (u - (u.floor().clamp(-n, n - 2) + 0.5)).abs() <= RANGE
    change = torch.sign(previous - codes)
    oscillated = change * direction == -1
    ema.copy_(MOMENTUM * oscillated + (1.0 - MOMENTUM) * ema)
    direction.copy_(torch.where(change != 0, change, direction))
    previous.copy_(codes)
    return codes.to(torch.int8), movable, oscillated.sum(), (change != 0).sum(), (ema > THRESHOLD).sum()


def torchao_quantizer() -> Callable[[Tensor], Tensor] | None:
    """Return torchao's quantizer of 2-bit weights for training, with a scale per row; None without torchao."""
    if not importlib.util.find_spec("torchao"):
        return None
    from torchao.quantization.qat import IntxFakeQuantizeConfig
    from torchao.quantization.qat.fake_quantizer import IntxFakeQuantizer

    return IntxFakeQuantizer(IntxFakeQuantizeConfig(torch.int2, "per_channel", is_symmetric=True))


def quantizers(shape: tuple[int, int], rounds: int) -> dict[str, dict[str, float]]:
    """Time fake quantization forward and backward."""
    weight, upstream = torch.randn(shape, requires_grad=True), torch.randn(shape)
    runs: dict[str, Callable[[Tensor], Tensor]] = {
        "statsq": lambda w: statsq(w, BITS),
        "composition": composed_quantizer,
    }
    torch.testing.assert_close(runs["statsq"](weight), runs["composition"](weight))
    if (peer := torchao_quantizer()) is not None:
        runs["torchao int2"] = peer
    return _compare(
        {name: lambda run=run: torch.autograd.grad(run(weight), weight, upstream) for name, run in runs.items()},
        rounds,
    )


def observers(shape: tuple[int, int], rounds: int) -> dict[str, dict[str, float]]:
    """Time codes, boundary mask and tracker of weights that take a small step each time."""
    weight = torch.randn(shape)
    fused = start_oscillation(statsq_observe(weight, BITS).codes)
    composed = [tensor.float() for tensor in start_oscillation(fused.previous)]

    def ours() -> Any:
        weight.mul_(1.0001)
        return statsq_observe(weight, BITS, boundary_range=RANGE, tracker=fused)

    def theirs() -> Any:
        weight.mul_(0.9999)
        return composed_observer(weight, *composed)

    return _compare({"statsq, one pass": ours, "composition": theirs}, rounds)


def layers(rounds: int) -> dict[str, dict[str, float]]:
    """Time forward and backward passes of a layer of DeiT-T on a batch of eight images."""
    plain, x = nn.Linear(192, 768), torch.randn(8, 197, 192, requires_grad=True)
    upstream = torch.randn(8, 197, 768)
    kinds = {
        "statsq weights": {},
        "lsq weights": {"weight_quantizer": "lsq"},
        "statsq weights, lsq inputs": {"act_bits": BITS},
    }
    runs: dict[str, Any] = {name: FakeQuantLinear.from_layer(plain, **kind) for name, kind in kinds.items()}
    runs["plain"] = plain
    if (peer := torchao_quantizer()) is not None:
        runs["torchao int2 weights"] = lambda x: nn.functional.linear(x, peer(plain.weight), plain.bias)
    return _compare({name: lambda run=run: run(x).backward(upstream) for name, run in runs.items()}, rounds)


def _compare(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    for run in runs.values():
        run()
    times = take_turns(runs, rounds)
    first = next(iter(times))
    return {name: {"ms": milliseconds(times[name]), **quotients(times[name], times[first])} for name in times}


def estimates() -> list[dict[str, Any]]:
    """Time of the kernel at peak memory bandwidth, for GPUs that nobody measured here."""
    calls = {
        "values 4096 x 4096": cost(4096, 4096),
        "values by composition": cost_composition(4096, 4096),
        "codes, mask and tracker": cost(4096, 4096, values=False, codes=True, movable=True, tracked=True),
    }
    moved = {name: call.bytes_read + call.bytes_written for name, call in calls.items()}
    return [
        {"call": name, "gpu": gpu, "estimate_us": 1e6 * total / bandwidth}
        for name, total in moved.items()
        for gpu, bandwidth in PEAK_BANDWIDTH.items()
    ]


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    for title, rows in result["measured"].items():
        print(f"\n{title}; ratio to {next(iter(rows))}: median (quartiles) of CPU time")
        for name, row in rows.items():
            print(f"  {name:28} {row['ms']:9.3f} ms  {spread(row)}")
    print("\nestimates, not measured: time at the GPU's peak bandwidth")
    for row in result["estimates"]:
        print(f"  {row['call']:28} {row['gpu']:10} {row['estimate_us']:8.1f} us (estimate)")


def main() -> None:
    """Measure, print and write."""
    options = arguments("ofq", __doc__).parse_args()
    prepare()
    warnings.filterwarnings("ignore", module="torchao")
    most = 40 if options.quick else 200
    rounds = {shape: max(10, min(most, int(WEIGHTS_PER_RUN * most / 200 / (shape[0] * shape[1])))) for shape in SHAPES}
    measured = {f"weights {m} x {n}, forward and backward": quantizers((m, n), rounds[m, n]) for m, n in SHAPES}
    measured |= {f"annealing and tracking of {m} x {n}": observers((m, n), rounds[m, n]) for m, n in SHAPES[1::2]}
    measured[f"layer 192 to 768, {TOKENS} tokens"] = layers(max(10, most // 4))
    conclude(options, {"measured": measured, "estimates": estimates()}, report)


if __name__ == "__main__":
    main()
