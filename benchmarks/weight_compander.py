"""What companded weights cost: python benchmarks/weight_compander.py [--quick] [--out FILE].

The contestants are the callback's parametrization, the same written by hand in a few lines of PyTorch, and plain
weights. One thread, CPU time of the process, the contestants taking turns in random order within every round; ratios
are taken within rounds, so that a busy machine slows both sides.
"""

from collections.abc import Callable
from typing import Any

import torch
from _measure import arguments, conclude, milliseconds, prepare, quotients, spread, take_turns
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_weights.callbacks import WeightCompander
from lightning_weights.functional.weight_compander import scales_of, softplus_inverse
from lightning_weights.kernels.compand import compand
from lightning_weights.modules import MLP, Classifier, find_parametrizations
from lightning_weights.modules.compander import Compander

SHAPES = ((256, 64), (256, 256), (1024, 1024), (4096, 1024))
NETWORKS = {
    "MLP 64-256-256-10, batch 32": (64, (256, 256), 32),
    "MLP 256-1024-1024-10, batch 64": (256, (1024, 1024), 64),
}
KAPPA, BETA = 3.0, 2.0
MICRO_BATCHES = 4


class ByHand(nn.Module):
    """What one would write without a library."""

    def __init__(self, weight: Tensor, learnable: bool) -> None:
        super().__init__()
        self.rho_a, self.rho_b = (nn.Parameter(softplus_inverse(s), learnable) for s in scales_of(weight, KAPPA, BETA))

    def forward(self, latent: Tensor) -> Tensor:
        a, b = nn.functional.softplus(self.rho_a), nn.functional.softplus(self.rho_b)
        return a * torch.atan(latent / b)

    def right_inverse(self, weight: Tensor) -> Tensor:
        a, b = nn.functional.softplus(self.rho_a), nn.functional.softplus(self.rho_b)
        return b * torch.tan(weight / a)


def weights(shape: tuple[int, int], learnable: bool) -> dict[str, Callable[[], Any]]:
    """Return ways to a weight and its gradients; the one by hand comes first."""
    latent = (torch.randn(shape) / shape[1] ** 0.5).requires_grad_()
    a, b = (scale.requires_grad_(learnable) for scale in scales_of(latent, KAPPA, BETA))
    leaves, upstream = (latent, a, b) if learnable else (latent,), torch.randn(shape)
    return {
        "by hand": lambda: torch.autograd.grad(a * torch.atan(latent / b), leaves, upstream),
        "compand": lambda: torch.autograd.grad(compand(latent, a, b), leaves, upstream),
    }


def network(kind: str, sizes: tuple[int, tuple[int, ...], int], learnable: bool) -> Classifier:
    """Return a network with plain weights, weights companded by hand, or by the callback."""
    torch.manual_seed(0)
    model = Classifier(MLP(sizes[0], sizes[1], 10, batch_norm=True))
    if kind == "by hand":
        for layer in [layer for layer in model.modules() if isinstance(layer, nn.Linear)]:
            parametrize.register_parametrization(layer, "weight", ByHand(layer.weight, learnable))
    elif kind != "plain":
        WeightCompander(KAPPA, BETA, learnable=learnable).attach(model)
    return model


def steps(
    sizes: tuple[int, tuple[int, ...], int], learnable: bool, micro_batches: int = 1
) -> dict[str, Callable[[], Any]]:
    """Return optimizer steps, of one or several batches; the one by hand comes first."""

    def contestant(kind: str) -> Callable[[], None]:
        model = network(kind, sizes, learnable)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        x, y = torch.randn(sizes[2], sizes[0]), torch.arange(sizes[2]) % 10
        companders = [found.step for found in find_parametrizations(model, Compander)]

        def step() -> None:
            optimizer.zero_grad()
            for compander in companders:
                compander.reuse(micro_batches > 1)
            for _ in range(micro_batches):
                nn.functional.cross_entropy(model(x), y).backward()
            for compander in companders:
                compander.reuse(False)
            optimizer.step()

        return step

    return {kind: contestant(kind) for kind in ("by hand", "WeightCompander", "plain")}


def measure(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Return CPU milliseconds, and how many times faster than the first contestant each is."""
    for run in contestants.values():
        run()
        run()
    times = take_turns(contestants, rounds)
    baseline = times[next(iter(contestants))]
    return {name: {"ms": milliseconds(own), **quotients(baseline, own)} for name, own in times.items()}


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    for group, tables in result.items():
        if group == "machine":
            continue
        for title, rows in tables.items():
            print(f"\n{group}, {title}; CPU time, and how many times faster than by hand: median (quartiles)")
            for name, row in rows.items():
                print(f"  {name:20} {row['ms']:8.3f} ms  {spread(row)}")


def main() -> None:
    """Measure, print and write."""
    options = arguments("weight_compander", __doc__).parse_args()
    prepare()
    rounds = 5 if options.quick else 25
    result: dict[str, Any] = {"weight and gradients": {}, "step": {}}
    for learnable in (False, True):
        kind = "a and b learned" if learnable else "a and b fixed"
        for shape in SHAPES:
            result["weight and gradients"][f"{shape[0]} x {shape[1]}, {kind}"] = measure(
                weights(shape, learnable), rounds
            )
        for title, sizes in NETWORKS.items():
            result["step"][f"{title}, {kind}"] = measure(steps(sizes, learnable), rounds)
    for title, sizes in NETWORKS.items():
        contestants = steps(sizes, learnable=True, micro_batches=MICRO_BATCHES)
        result["step"][f"{title}, learned, {MICRO_BATCHES} batches per step"] = measure(contestants, rounds)
    conclude(options, result, report)


if __name__ == "__main__":
    main()
