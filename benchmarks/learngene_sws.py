"""What distillation and expansion cost: python benchmarks/learngene_sws.py [--quick] [--out FILE].

One thread, CPU time of the process. Contestants take turns in random order; ratios are taken within rounds, so that a
busy machine slows both sides. The loss is measured forward and backward: soft distillation alone, as the auxiliary
network is trained with it, and mixed half and half with the cross-entropy of labels. Peak memory is counted by
PyTorch's profiler in one call. Expansion gives a network of twelve layers of DeiT-S the weights of five stages; beside
it stand the same network with random weights, and with those of a checkpoint of its own, copied into a network with
random weights as usual or assigned to one that has none yet. GPU numbers are estimates from
the kernels' cost model and are called so.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _measure import (
    PEAK_BANDWIDTH,
    arguments,
    conclude,
    milliseconds,
    peak,
    prepare,
    quotients,
    spread,
    take_turns,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from lightning_weights.functional.learngene_sws import sws_loss
from lightning_weights.kernels.distillation_loss.cost import cost
from lightning_weights.modules import CompactViT, Learngene, expand, extract_learngene

SIZES = ((512, 1000), (64, 49_152))  # rows and classes: those of ImageNet, and of a language model
TAU = 2.0
DEIT_S: dict[str, Any] = {"image_size": 224, "patch_size": 16, "in_channels": 3, "width": 384, "heads": 6}
DEIT_S |= {"num_classes": 1000, "init_std": 0.02}
REPEATS, DEPTH, FAMILY = [3, 3, 4, 3, 3], 12, range(3, 13)
AUX: dict[str, Any] = {"image_size": 32, "patch_size": 8, "in_channels": 3, "width": 128, "heads": 4}
EAGER_BYTES = 60  # per logit: two scaled log-softmaxes, the divergence, its sum, and their backward passes


def composition(logits: Tensor, teacher_logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """The loss as one would write it."""
    log_q, log_p = F.log_softmax(logits / TAU, dim=1), F.log_softmax(teacher_logits / TAU, dim=1)
    taught = F.kl_div(log_q, log_p, reduction="sum", log_target=True) * TAU**2 / logits.numel()
    return taught if alpha == 1.0 else (1.0 - alpha) * F.cross_entropy(logits, labels) + alpha * taught


def operator(logits: Tensor, teacher_logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """The same, fused."""
    return sws_loss(logits, teacher_logits, labels, tau=TAU, alpha=alpha)


def measure_loss(rows: int, classes: int, alpha: float, rounds: int) -> dict[str, Any]:
    """Time the loss and its gradient.

    Returns:
        CPU milliseconds of both, the quartiles of the composition's time divided by the operator's, peak memory divided
        by that of the logits, and the largest difference of their gradients, relative to the largest gradient.
    """
    data = torch.randn(rows, classes, requires_grad=True), torch.randn(rows, classes), torch.randint(classes, (rows,))
    losses = {"composition": composition, "operator": operator}

    def gradient(name: str) -> Tensor:
        return torch.autograd.grad(losses[name](*data, alpha), data[0])[0]

    wanted = gradient("composition")
    difference = (wanted - gradient("operator")).abs().max() / wanted.abs().max()
    runs = {name: partial(gradient, name) for name in losses}
    memory = {f"{name}_memory": peak(run) / (4 * rows * classes) for name, run in runs.items()}
    times = take_turns(runs, rounds)
    return {
        "alpha": alpha,
        "size": f"{rows} x {classes}",
        "composition_ms": milliseconds(times["composition"]),
        "operator_ms": milliseconds(times["operator"]),
        **quotients(times["composition"], times["operator"]),
        **memory,
        "gradient_difference": difference.item(),
    }


def measure_expansion(rounds: int) -> dict[str, Any]:
    """Time getting a network of twelve layers ready, in five ways, and weigh their files."""
    with tempfile.TemporaryDirectory() as name:
        gene, checkpoint = Path(name, "gene.safetensors"), Path(name, "network.safetensors")
        learngene = extract_learngene(CompactViT(**DEIT_S, depth=sum(REPEATS), repeats=REPEATS))
        learngene.save(gene)
        save_file(expand(learngene, DEPTH).state_dict(), checkpoint)

        def from_checkpoint() -> None:
            network = CompactViT(**DEIT_S, depth=DEPTH)
            network.load_state_dict(load_file(checkpoint))

        def assigned() -> None:
            with torch.device("meta"):
                network = CompactViT(**DEIT_S, depth=DEPTH)
            network.load_state_dict(load_file(checkpoint), assign=True)

        runs = {
            "random weights": lambda: CompactViT(**DEIT_S, depth=DEPTH),
            "a checkpoint of its own": from_checkpoint,
            "the same, assigned": assigned,
            "the learngene's file": lambda: expand(Learngene.load(gene), DEPTH),
            "a learngene in memory": lambda: expand(learngene, DEPTH),
        }
        for run in runs.values():
            run()
        times = take_turns(runs, rounds)
        sizes = {"gene_megabytes": gene.stat().st_size / 1e6, "checkpoint_megabytes": checkpoint.stat().st_size / 1e6}
    ways = [
        {"way": way, "ms": milliseconds(own), **quotients(times["random weights"], own)} for way, own in times.items()
    ]
    return {"ways": ways, **sizes, "family_megabytes": sum(map(weights_bytes, FAMILY)) / 1e6}


def weights_bytes(depth: int) -> int:
    """Return the bytes of the fp32 weights of a network of some layers."""
    with torch.device("meta"):
        return 4 * sum(param.numel() for param in CompactViT(**DEIT_S, depth=depth).parameters())


def measure_step(rounds: int) -> dict[str, float]:
    """Time a training step of an auxiliary network with shared stages, and with layers of their own."""
    data = torch.randn(16, 3, 32, 32), torch.randn(16, 100), torch.randint(100, (16,))
    steps = {}
    for name, repeats in (("shared", REPEATS), ("own", None)):
        network = CompactViT(**AUX, num_classes=100, depth=sum(REPEATS), repeats=repeats)
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        steps[name] = partial(_step, network, optimizer, *data)
    for step in steps.values():
        step()
    times = take_turns(steps, rounds)
    return {
        "own_ms": milliseconds(times["own"]),
        "shared_ms": milliseconds(times["shared"]),
        **quotients(times["own"], times["shared"]),
    }


def _step(network: torch.nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, wanted: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    operator(network(x), wanted, y, alpha=1.0).backward()
    optimizer.step()


def estimates() -> list[dict[str, Any]]:
    """Time of one forward and backward pass of the loss at peak memory bandwidth, for GPUs that nobody measured."""
    rows, classes = SIZES[-1]  # smaller ones take as long as their launches
    fused = sum(one.bytes_read + one.bytes_written for one in cost(rows, classes, classes))
    eager = EAGER_BYTES * rows * classes
    return [
        {"gpu": gpu, "fused_us": 1e6 * fused / bandwidth, "composed_us": 1e6 * eager / bandwidth}
        for gpu, bandwidth in PEAK_BANDWIDTH.items()
    ]


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    print("\nthe loss and its gradient, fp32: composition / operator, median (quartiles) of CPU time")
    print("then the peak memory of both, in times of the student's logits, and how far gradients differ")
    for row in result["loss"]:
        print(
            f"  {row['size']:12} alpha {row['alpha']:3.1f} {row['composition_ms']:7.2f} ms / {row['operator_ms']:7.2f} "
            f"ms = {spread(row)}   {row['composition_memory']:4.2f} / {row['operator_memory']:4.2f} = "
            f"{row['composition_memory'] / row['operator_memory']:4.2f}   {row['gradient_difference']:.0e}"
        )
    made = result["expansion"]
    print("\na DeiT-S of 12 layers, built with: CPU time, and how many times faster than with random weights")
    for row in made["ways"]:
        print(f"  {row['way']:24} {row['ms']:7.1f} ms  {spread(row)}")
    family = f"weights of {len(FAMILY)} networks of {FAMILY[0]} to {FAMILY[-1]} layers"
    sizes = {"learngene": "gene", "checkpoint of 12 layers": "checkpoint", family: "family"}
    print("  " + "; ".join(f"{text}: {made[f'{name}_megabytes']:.1f} MB" for text, name in sizes.items()))
    row = result["step"]
    print("\na training step of 16 layers of width 128: layers of their own / 5 shared stages")
    print(f"  {row['own_ms']:7.1f} ms / {row['shared_ms']:7.1f} ms = {spread(row)}")
    rows, classes = SIZES[-1]
    print(f"\nestimate, not measured: the loss, both passes over {rows} x {classes} logits at the GPU's peak bandwidth")
    for row in result["estimates"]:
        print(
            f"  {row['gpu']:10}  {row['fused_us']:6.1f} us (estimate), composed {row['composed_us']:6.1f} us (estimate)"
        )


def main() -> None:
    """Measure, print and write."""
    options = arguments("learngene_sws", __doc__).parse_args()
    prepare()
    rounds = 20 if options.quick else 100
    result = {
        "loss": [measure_loss(*size, alpha, rounds) for size in SIZES for alpha in (1.0, 0.5)],
        "expansion": measure_expansion(max(4, rounds // 5)),
        "step": measure_step(max(4, rounds // 5)),
        "estimates": estimates(),
    }
    conclude(options, result, report)


if __name__ == "__main__":
    main()
