"""What a certified step costs beside a plain one: python benchmarks/ibp_warmup.py [--quick] [--out FILE].

A small CNN-7 on batches of 32 images, one thread, CPU time of the process, all contestants taking turns in random order
within every round; ratios are taken within rounds, so that a busy machine slows all alike. auto_LiRPA takes part if it
can be imported. The memory of the margin head is the growth of the resident set of a fresh process.
"""

import contextlib
import importlib
import multiprocessing
import resource
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _measure import arguments, conclude, milliseconds, prepare, quotients, spread, take_turns
from torch import Tensor, nn

from lightning_weights.functional.ibp_warmup import input_box, robust_loss
from lightning_weights.functional.intervals import interval_forward
from lightning_weights.kernels.interval_affine import interval_margins, interval_margins_reference
from lightning_weights.modules import CNN7, CertifiedLoss

BATCH, SIZE, CLASSES, EPS = 32, 32, 10, 8 / 255
WIDTHS = (8, 16)  # of the first convolution
BASELINE, OURS, PEER = "clean forward and backward", "interval bounds and backward", "auto_LiRPA bounds and backward"
HEAD = {"samples": 128, "classes": 200, "features": 512}


def build(width: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return network, images and labels, always the same ones."""
    torch.manual_seed(0)
    net = CNN7(in_channels=3, image_size=SIZE, num_classes=CLASSES, width=width, linear_size=8 * width)
    return net, torch.rand(BATCH, 3, SIZE, SIZE), torch.randint(CLASSES, (BATCH,))


def contestants(width: int) -> dict[str, Callable[[], Any]]:
    """Return one training step, without the optimizer, per name; the baseline comes first."""
    net, x, y = build(width)
    losses = {"certified loss": CertifiedLoss(), "certified loss, CROWN-IBP fused": CertifiedLoss("crown-ibp", True)}

    def interval() -> Tensor:
        margins = interval_forward(net, *input_box(x, EPS), spec=y).margin_lower
        assert margins is not None
        return robust_loss(margins)

    table: dict[str, Callable[[], Tensor]] = {BASELINE: lambda: F.cross_entropy(net(x), y), OURS: interval}
    for name, loss in losses.items():
        table[name] = lambda loss=loss: loss(net, x, y, torch.tensor(EPS / 2), EPS).loss
    with contextlib.suppress(ImportError):
        table[PEER] = auto_lirpa(*build(width))
    return {name: lambda loss=loss: loss().backward() for name, loss in table.items()}


def auto_lirpa(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """Return the same loss by auto_LiRPA: a clean pass for the batch statistics, then interval bounds."""
    library = importlib.import_module("auto_LiRPA")
    norm = importlib.import_module("auto_LiRPA.perturbations").PerturbationLpNorm
    bounded = library.BoundedModule(net.eval(), x, device="cpu")
    bounded.train()
    rows = torch.eye(CLASSES)[y][:, None] - torch.eye(CLASSES)
    rows = rows[torch.arange(CLASSES) != y[:, None]].view(BATCH, CLASSES - 1, CLASSES)

    def loss() -> Tensor:
        _, lower, upper = input_box(x, EPS)
        box = library.BoundedTensor(x, norm(norm=float("inf"), x_L=lower, x_U=upper))
        bounded(box)
        margins, _ = bounded.compute_bounds(IBP=True, C=rows, method=None, bound_upper=False)
        return robust_loss(margins)

    return loss


def measure(width: int, rounds: int) -> dict[str, dict[str, float]]:
    """Time the steps.

    Returns:
        Per contestant: CPU milliseconds, and ratios to the baseline (quartiles).
    """
    steps = contestants(width)
    for step in steps.values():
        step()
    times = take_turns(steps, rounds)
    result = {name: {"ms": milliseconds(own), **quotients(own, times[BASELINE])} for name, own in times.items()}
    if PEER in times:
        result[OURS]["faster_than_auto_lirpa"] = quotients(times[PEER], times[OURS])["ratio"]
    return result


def head_memory() -> dict[str, float]:
    """Return the megabytes that margins of a wide head need, forward and backward, by the operator and by its rows."""
    return {
        "operator": in_fresh_process(interval_margins),
        "rows for all samples and classes": in_fresh_process(interval_margins_reference),
    }


def in_fresh_process(margins: Callable[..., Tensor]) -> float:
    """Return the growth of the largest resident set in a forked process."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=run_head, args=(margins, queue))
    process.start()
    grown = queue.get(timeout=120)
    process.join()
    return grown


def run_head(margins: Callable[..., Tensor], queue: Any) -> None:
    """Put the growth in megabytes into the queue; a small call first loads the code and makes the threads' buffers."""
    for scale in (16, 1):
        samples, classes, features = (HEAD[name] // scale for name in ("samples", "classes", "features"))
        center, radius, weight = (
            torch.randn(samples, features),
            torch.rand(samples, features),
            torch.randn(classes, features),
        )
        tensors = [tensor.requires_grad_() for tensor in (center, radius, weight, torch.randn(classes))]
        labels = torch.randint(classes, (samples,))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        robust_loss(margins(*tensors, labels)).backward()
    queue.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    for width, rows in result["measured"].items():
        print(f"\nCNN-7 of width {width}, {BATCH} images of {SIZE} x {SIZE}, ratio to {BASELINE}: median (quartiles)")
        for name, row in rows.items():
            print(f"  {name:34} {row['ms']:8.2f} ms  {spread(row)}")
        faster = rows[OURS].get("faster_than_auto_lirpa")
        print(f"  auto_LiRPA takes {faster:.2f} times as long" if faster else "  auto_LiRPA cannot be imported here")
    print("\npeak memory of the margin head, " + ", ".join(f"{value} {name}" for name, value in HEAD.items()))
    for name, megabytes in result["head_megabytes"].items():
        print(f"  {name:34} {megabytes:8.1f} MB")


def main() -> None:
    """Measure, print and write."""
    options = arguments("ibp_warmup", __doc__).parse_args()
    warnings.filterwarnings("ignore")  # of auto_LiRPA's tracing
    prepare()
    memory = head_memory()
    rounds = 8 if options.quick else 30
    measured = {width: measure(width, rounds) for width in WIDTHS}
    conclude(options, {"measured": measured, "head_megabytes": memory}, report)


if __name__ == "__main__":
    main()
