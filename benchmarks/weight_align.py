"""What Weight Aligning's loss and herding cost: python benchmarks/weight_align.py [--quick] [--out FILE].

One thread, CPU time of the process. The loss, forward and backward, takes turns in random order with the composition of
PyTorch's operators that it replaces; ratios are taken within rounds, so that a busy machine slows both sides. GPU
numbers are estimates from the kernels' cost model and are called so.
"""

from functools import partial
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
from torch import Tensor
from torch.nn import functional as F

from lightning_weights.functional.weight_align import herd
from lightning_weights.kernels.distillation_loss import distillation_loss
from lightning_weights.kernels.distillation_loss.cost import cost, cost_composed

SIZES = ((128, 100), (256, 1000), (64, 50_000))  # rows and classes; the teacher knows three quarters
WEIGHT, TEMPERATURE = 0.75, 2.0
HERDING = ((500, 64, 20), (500, 64, 400), (1300, 512, 20))  # samples of a class, features, exemplars


def composition(logits: Tensor, teacher_logits: Tensor, targets: Tensor) -> Tensor:
    """The loss as one would write it."""
    old = logits[:, : teacher_logits.shape[1]]
    p, log_q = F.softmax(teacher_logits / TEMPERATURE, dim=1), F.log_softmax(old / TEMPERATURE, dim=1)
    return (1 - WEIGHT) * F.cross_entropy(logits, targets) + WEIGHT * -(p * log_q).sum(dim=1).mean()


def operator(logits: Tensor, teacher_logits: Tensor, targets: Tensor) -> Tensor:
    """The same, fused."""
    return distillation_loss(logits, teacher_logits, targets, weight=WEIGHT, temperature=TEMPERATURE)


def measure_loss(rows: int, classes: int, rounds: int) -> dict[str, float]:
    """Time the loss and its gradient.

    Returns:
        CPU milliseconds of both, the quartiles of the composition's time divided by the operator's, and the largest
        difference of their gradients.
    """
    data = _batch(rows, classes)
    losses = {"composition": composition, "operator": operator}

    def gradient(name: str) -> Tensor:
        return torch.autograd.grad(losses[name](*data), data[0])[0]

    difference = (gradient("composition") - gradient("operator")).abs().max().item()
    times = take_turns({name: partial(gradient, name) for name in losses}, rounds)
    return {
        "composition_ms": milliseconds(times["composition"]),
        "operator_ms": milliseconds(times["operator"]),
        **quotients(times["composition"], times["operator"]),
        "gradient_difference": difference,
    }


def measure_herding(samples: int, features: int, exemplars: int, rounds: int) -> float:
    """Return the median CPU milliseconds of choosing one class's exemplars."""
    values = torch.randn(samples, features).relu()
    return milliseconds([cpu_seconds(lambda: herd(values, exemplars)) for _ in range(rounds)])


def estimates() -> list[dict[str, Any]]:
    """Time of one forward and backward pass at peak memory bandwidth, for GPUs that nobody measured here."""
    rows, classes = SIZES[-1]  # smaller ones take as long as their launches
    fused, composed = (_bytes(model(rows, classes, classes * 3 // 4)) for model in (cost, cost_composed))
    return [
        {"gpu": gpu, "fused_us": 1e6 * fused / bandwidth, "composed_us": 1e6 * composed / bandwidth}
        for gpu, bandwidth in PEAK_BANDWIDTH.items()
    ]


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    print("\nloss and gradient, fp32: composition / operator, median (quartiles) of CPU time")
    for size, row in result["loss"].items():
        print(f"  {size:12} {row['composition_ms']:7.2f} ms / {row['operator_ms']:7.2f} ms = {spread(row)}")
    print("\nherding one class: samples x features, exemplars")
    for size, median in result["herding"].items():
        print(f"  {size:16} {median:7.1f} ms")
    rows, classes = SIZES[-1]
    print(f"\nestimate, not measured: both passes over {rows} x {classes} logits at the GPU's peak bandwidth")
    for row in result["estimates"]:
        print(
            f"  {row['gpu']:10}  {row['fused_us']:6.1f} us (estimate), composed {row['composed_us']:6.1f} us (estimate)"
        )


def _batch(rows: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    logits = torch.randn(rows, classes, requires_grad=True)
    return logits, torch.randn(rows, classes * 3 // 4), torch.randint(classes, (rows,))


def _bytes(passes: tuple[Any, Any]) -> int:
    return sum(one.bytes_read + one.bytes_written for one in passes)


def main() -> None:
    """Measure, print and write."""
    options = arguments("weight_align", __doc__).parse_args()
    prepare()
    rounds = 20 if options.quick else 100
    result = {
        "loss": {f"{rows} x {classes}": measure_loss(rows, classes, rounds) for rows, classes in SIZES},
        "herding": {f"{n} x {d}, {m}": measure_herding(n, d, m, rounds // 10) for n, d, m in HERDING},
        "estimates": estimates(),
    }
    conclude(options, result, report)


if __name__ == "__main__":
    main()
