"""How long do the policy loss and the Gram matrix of gradients take, against what they replace?

    python benchmarks/dynamic_reward.py           # a minute on one thread
    python benchmarks/dynamic_reward.py --quick
    python benchmarks/dynamic_reward.py --compile # also the composition of the policy loss behind torch.compile

Policy loss: value and gradient of 64 responses, against the composition of PyTorch's operators with autograd. Gram
matrix: three gradients of a network's shapes, against concatenating them and multiplying the matrix with itself, the
same for every tensor alone, and one inner product at a time. Peak memory is what a call allocates beyond its arguments.
The volume of 300 vectors of three objectives stands beside it, and moocore's if it is installed.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import combinations_with_replacement
from typing import Any

import torch
from _measure import arguments, conclude, milliseconds, peak, prepare, quotients, spread, take_turns

from lightning_weights.functional.dynamic_reward import hypervolume
from lightning_weights.kernels.gradient_gram import gradient_gram
from lightning_weights.kernels.gradient_gram.cost import cost as gram_cost
from lightning_weights.kernels.gradient_gram.cost import cost_composed as gram_composed
from lightning_weights.kernels.policy_loss import policy_loss, policy_loss_reference
from lightning_weights.kernels.policy_loss.cost import cost, cost_composed

WIDTHS = (256, 2048)
ROWS, OBJECTIVES, BLOCKS, HIDDEN = 64, 3, 6, 576
VECTORS = 300


def losses(width: int, compiled: bool) -> dict[str, Callable[[], Any]]:
    """Return ways to loss and gradient; the composition comes first."""
    logp = (-2.0 * torch.rand(ROWS, width)).requires_grad_()
    old, ref = logp.detach() + 0.1 * torch.randn(ROWS, width), logp.detach() + 0.1 * torch.randn(ROWS, width)
    advantages, mask = torch.randn(ROWS), (torch.rand(ROWS, width) < 0.9).float()

    def way(loss: Callable[..., Any]) -> Callable[[], Any]:
        rule = {"ref_logp": ref, "kl_coef": 0.001}
        return lambda: torch.autograd.grad(loss(logp, old, advantages, mask, **rule)[0], logp)

    found = {"composition": way(policy_loss_reference)}
    if compiled:
        found["composition, compiled"] = way(torch.compile(policy_loss_reference))
    return {**found, "policy_loss": way(policy_loss)}


def grams() -> dict[str, Callable[[], Any]]:
    """Return ways to the Gram matrix; the one that concatenates comes first."""
    shapes = [(HIDDEN, HIDDEN), (HIDDEN, 4 * HIDDEN), (HIDDEN,)] * BLOCKS
    gradients = [[torch.randn(shape) for shape in shapes] for _ in range(OBJECTIVES)]

    def concatenated() -> torch.Tensor:
        rows = torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in gradients])
        return rows @ rows.T

    def one_by_one() -> torch.Tensor:
        gram = torch.zeros(OBJECTIVES, OBJECTIVES)
        for parts in zip(*gradients, strict=True):
            rows = torch.stack([part.reshape(-1) for part in parts])
            gram += rows @ rows.T
        return gram

    def products() -> torch.Tensor:
        gram = torch.zeros(OBJECTIVES, OBJECTIVES, dtype=torch.float64)
        for i, j in combinations_with_replacement(range(OBJECTIVES), 2):
            pairs = zip(gradients[i], gradients[j], strict=True)
            gram[i, j] = gram[j, i] = sum(float(torch.dot(a.reshape(-1), b.reshape(-1))) for a, b in pairs)
        return gram

    found = {"concatenated": concatenated, "tensor by tensor": one_by_one, "products": products}
    return {**found, "gradient_gram": lambda: gradient_gram(gradients)}


def volumes() -> dict[str, Callable[[], Any]]:
    """Return ways to the volume of vectors of which none dominates another."""
    directions = torch.rand(VECTORS, 3, dtype=torch.float64)
    front = directions / directions.norm(dim=1, keepdim=True)
    found: dict[str, Callable[[], Any]] = {"hypervolume": partial(hypervolume, front.tolist(), [0.0] * 3)}
    if find_spec("moocore") is not None:
        import moocore

        found["moocore"] = partial(moocore.hypervolume, front.numpy(), ref=[0.0] * 3, maximise=True)
    return found


def measure(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Return CPU milliseconds, how many times faster than the first contestant each is, and mebibytes."""
    for run in contestants.values():
        run()
        run()
    times = take_turns(contestants, rounds)
    baseline = times[next(iter(contestants))]
    return {
        name: {"ms": milliseconds(own), **quotients(baseline, own), "mib": peak(contestants[name]) / 2**20}
        for name, own in times.items()
    }


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    for title, rows in result["times"].items():
        print(f"\n{title}; CPU time, how many times faster than the first: median (quartiles), peak memory")
        for name, row in rows.items():
            print(f"  {name:22} {row['ms']:9.3f} ms  {spread(row)}  {row['mib']:8.2f} MiB")
    print("\nbytes moved per token or element on a GPU, by the cost models")
    for title, (ours, theirs) in result["bytes"].items():
        print(f"  {title:22} {ours:6.1f} instead of {theirs:6.1f}")


def moved(model: Any, count: int) -> float:
    return (model.bytes_read + model.bytes_written) / count


def main() -> None:
    """Measure, print and write."""
    parser = arguments("dynamic_reward", __doc__)
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile, which compiles for seconds")
    options = parser.parse_args()
    prepare()
    rounds = 5 if options.quick else 25
    titles = {width: f"policy loss and gradient, {ROWS} x {width} tokens" for width in WIDTHS}
    times = {title: measure(losses(width, options.compile), rounds) for width, title in titles.items()}
    numel = BLOCKS * (5 * HIDDEN * HIDDEN + HIDDEN)
    times[f"Gram matrix of {OBJECTIVES} gradients of {numel / 1e6:.1f} million"] = measure(grams(), rounds)
    times[f"volume of {VECTORS} vectors"] = measure(volumes(), rounds)
    traffic = {
        "policy loss": [moved(model(ROWS, WIDTHS[-1]), ROWS * WIDTHS[-1]) for model in (cost, cost_composed)],
        "Gram matrix": [moved(model([numel], OBJECTIVES), OBJECTIVES * numel) for model in (gram_cost, gram_composed)],
    }
    conclude(options, {"times": times, "bytes": traffic}, report)


if __name__ == "__main__":
    main()
