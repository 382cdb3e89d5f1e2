"""What GLOW's loss costs: python benchmarks/glow.py [--quick] [--out FILE].

One thread, CPU time of the process. Losses per sample and their weighted gradient at a vocabulary of 49 152 take turns
in random order with the composition of PyTorch's operators that they replace; ratios are taken within rounds, so that a
busy machine slows both sides. Peak memory is counted by PyTorch's profiler over what a contestant allocates beyond its
inputs. Behind a linear layer the logits of the batch are made whole or a few rows at a time. GPU numbers are estimates
from the kernels' cost model and are called so.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _measure import PEAK_BANDWIDTH, arguments, conclude, milliseconds, peak, prepare, quotients, spread, take_turns
from torch import Tensor
from torch.nn import functional as F

from lightning_weights.functional.glow import weigh
from lightning_weights.kernels.weighted_cross_entropy import linear_cross_entropy, weighted_cross_entropy
from lightning_weights.kernels.weighted_cross_entropy.cost import cost, cost_composed

VOCABULARY, WIDTH = 49_152, 576  # SmolLM2's
SAMPLES, LENGTH = 4, 64
MANY = 8  # samples behind the linear layer, whose logits are made in four parts
GPU_ROWS = 16_384
PREDICTED = 0.75  # share of a sequence behind its prompt


def eager(logits: Tensor, labels: Tensor) -> Tensor:
    """Losses of samples as one would write them."""
    wide = logits.float().reshape(-1, logits.shape[-1])
    losses = F.cross_entropy(wide, labels.reshape(-1), reduction="none").view(labels.shape)
    return losses.sum(dim=1) / (labels != -100).sum(dim=1).clamp(min=1)


def weighted(losses: Tensor) -> Tensor:
    """The loss of a batch that was seen before with losses a little larger."""
    return (weigh(losses, losses.detach() + 0.05).weights * losses).mean()


def eager_linear(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The same behind a linear layer, with logits of the whole batch."""
    return eager(hidden @ weight.t(), labels)


def labelled(samples: int, share: float) -> Tensor:
    """Labels of which a share counts, behind a prompt."""
    labels = torch.randint(VOCABULARY, (samples, LENGTH))
    labels[:, : round((1 - share) * LENGTH)] = -100
    return labels


def gradients(losses: Callable[..., Tensor], leaves: list[Tensor], *rest: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward."""
    return torch.autograd.grad(weighted(losses(*leaves, *rest)), [leaf for leaf in leaves if leaf.requires_grad])


def compare(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Time two contestants, the composition first, and compare their memory and their gradients."""
    first, second = contestants
    found = {name: run() for name, run in contestants.items()}
    difference = max((a - b).abs().max().item() for a, b in zip(found[first], found[second], strict=True))
    del found
    times = take_turns(contestants, rounds)
    return {
        **{f"{name}_ms": milliseconds(seconds) for name, seconds in times.items()},
        **quotients(times[first], times[second]),
        **{f"{name}_mib": peak(run) / 2**20 for name, run in contestants.items()},
        "gradient_difference": difference,
    }


def measure_loss(dtype: torch.dtype, share: float, rounds: int) -> dict[str, Any]:
    """Compare losses and gradients of logits."""
    logits = torch.randn(SAMPLES, LENGTH, VOCABULARY).to(dtype).requires_grad_()
    labels = labelled(SAMPLES, share)
    ways = {"composition": eager, "operator": weighted_cross_entropy}
    return compare({name: partial(gradients, way, [logits], labels) for name, way in ways.items()}, rounds)


def measure_linear(frozen: bool, rounds: int) -> dict[str, Any]:
    """Compare losses and gradients of hidden states and a matrix, in fp32."""
    hidden = torch.randn(MANY, LENGTH, WIDTH, requires_grad=True)
    weight = (0.05 * torch.randn(VOCABULARY, WIDTH)).requires_grad_(not frozen)
    labels = labelled(MANY, 1.0)
    ways = {"composition": eager_linear, "operator": linear_cross_entropy}
    return compare({name: partial(gradients, way, [hidden, weight], labels) for name, way in ways.items()}, rounds)


def estimates() -> list[dict[str, Any]]:
    """Time of one forward and backward pass at peak memory bandwidth, for GPUs that nobody measured here."""
    fused, composed = (
        sum(part.bytes_read + part.bytes_written for part in model(GPU_ROWS, VOCABULARY))
        for model in (cost, cost_composed)
    )
    return [
        {"gpu": gpu, "fused_us": 1e6 * fused / bandwidth, "composed_us": 1e6 * composed / bandwidth}
        for gpu, bandwidth in PEAK_BANDWIDTH.items()
    ]


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    for part, samples in (("loss", SAMPLES), ("linear", MANY)):
        print(f"\n{samples} x {LENGTH} tokens, vocabulary {VOCABULARY}: composition / operator, CPU time, peak memory")
        for name, row in result[part].items():
            times = f"{row['composition_ms']:7.1f} ms / {row['operator_ms']:7.1f} ms = {spread(row)}"
            share = row["operator_mib"] / row["composition_mib"]
            memory = f"{row['composition_mib']:6.0f} MiB / {row['operator_mib']:6.0f} MiB ({100 * share:.0f} %)"
            print(f"  {name:26} {times}   {memory}")
    print(f"\nestimate, not measured: both passes over {GPU_ROWS} x {VOCABULARY} bf16 logits at the peak bandwidth")
    for row in result["estimates"]:
        print(
            f"  {row['gpu']:10}  {row['fused_us']:7.0f} us (estimate), composed {row['composed_us']:7.0f} us (estimate)"
        )


def main() -> None:
    """Measure, print and write."""
    options = arguments("glow", __doc__).parse_args()
    prepare()
    rounds, few = (5, 3) if options.quick else (15, 5)
    result = {
        "loss": {
            "fp32": measure_loss(torch.float32, 1.0, rounds),
            "bf16": measure_loss(torch.bfloat16, 1.0, rounds),
            f"bf16, {100 * PREDICTED:.0f} % predicted": measure_loss(torch.bfloat16, PREDICTED, rounds),
        },
        "linear": {
            "linear layer": measure_linear(False, few),
            "linear layer, frozen": measure_linear(True, few),
        },
        "estimates": estimates(),
    }
    conclude(options, result, report)


if __name__ == "__main__":
    main()
