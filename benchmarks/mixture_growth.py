"""What mixed weights cost: python benchmarks/mixture_growth.py [--quick] [--out FILE].

First weights and their gradients: the operator `mix_templates`, the plainest PyTorch (products, sums, concatenations)
and the best we know (a matrix product per set, and one copy), with automatic differentiation. Then training
steps of a network with such weights, grown and as one member, and of a plain one as wide as the grown one. One thread,
CPU time of the process, the contestants taking turns in random order within every round; ratios are taken within
rounds, so that a busy machine slows both sides. What the kernel moves on a GPU is estimated from its cost model, not
measured.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from _measure import PEAK_BANDWIDTH, arguments, conclude, milliseconds, prepare, quotients, spread, take_turns
from torch import Tensor, nn

from lightning_weights.kernels.mix_templates import mix_templates
from lightning_weights.kernels.mix_templates.cost import cost, cost_composition
from lightning_weights.modules import PooledConvNet1d, WideResNet, mixture_param_groups, mixturize, set_mode

SHAPES = ((8, 8, 3), (64, 64, 9), (160, 160, 9), (320, 320, 9))  # of a block: outputs, inputs, kernel
COUNTS = (2, 4)
SETS = (0, 0, 1, 1)
NETWORKS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "signals, width 16, batch 100": (lambda width: PooledConvNet1d(width=8 * width), (100, 1, 40)),
    "WRN-10-2, 16 x 16, batch 32": (
        lambda width: WideResNet(3, 16, 10, widen=width, pre_activation=True, pool=True, linear_size=None),
        (32, 3, 16, 16),
    ),
}


def plainest(first: Tensor, second: Tensor, alpha: Tensor) -> Tensor:
    """Mix with products, sums and concatenations."""
    sets = first, first, second, second
    blocks = [(row.view(-1, 1, 1, 1) * part).sum(0) for row, part in zip(alpha, sets, strict=True)]
    return torch.vstack([torch.hstack(blocks[:2]), torch.hstack(blocks[2:])])


def products(first: Tensor, second: Tensor, alpha: Tensor) -> Tensor:
    """Mix with a matrix product per set, and one copy of both rows of blocks to where they belong."""
    rows = []
    for factors, part in ((alpha[:2], first), (alpha[2:], second)):
        mixed = (factors @ part.view(len(part), -1)).view(2, *part.shape[1:])
        rows.append(mixed.transpose(0, 1))
    return torch.cat(rows).flatten(1, 2)


def own(first: Tensor, second: Tensor, alpha: Tensor) -> Tensor:
    """Mix with the operator."""
    return mix_templates([first, second], alpha, SETS, columns=2)


def weights(shape: Sequence[int], count: int, backward: bool) -> dict[str, Callable[[], Any]]:
    """Return ways to a weight, or to it and its gradients; the plainest comes first."""
    leaves = [torch.randn(count, *shape), torch.randn(count, *shape), torch.randn(len(SETS), count)]
    o, i, k = shape
    upstream = torch.randn(2 * o, 2 * i, k)
    for leaf in leaves:
        leaf.requires_grad_(backward)

    def contestant(mix: Callable[..., Tensor]) -> Callable[[], Any]:
        if not backward:
            return lambda: mix(*leaves)
        return lambda: torch.autograd.grad(mix(*leaves), leaves, upstream)

    return {"plainest": contestant(plainest), "products": contestant(products), "mix_templates": contestant(own)}


def steps(make: Callable[[int], nn.Module], shape: Sequence[int]) -> dict[str, Callable[[], Any]]:
    """Return training steps; the plain network of the whole width comes first."""
    x, y = torch.randn(*shape), torch.arange(shape[0]) % 10

    def contestant(network: nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.SGD(mixture_param_groups(network, 5e-4), lr=1e-3, momentum=0.9, nesterov=True)

        def step() -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()

        return step

    member, grown = mixturize(make(2)), mixturize(make(2))
    set_mode(member, "member0")
    set_mode(grown, "grown")
    found = {"plain": make(2), "grown": grown, "member": member}
    return {name: contestant(network.train()) for name, network in found.items()}


def measure(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, Any]]:
    """Return CPU milliseconds, and how many times faster than the first contestant and than the second each is."""
    for run in contestants.values():
        run()
        run()
    times = take_turns(contestants, rounds)
    first, second, *_ = times.values()
    return {
        name: {"ms": milliseconds(taken), "first": quotients(first, taken), "second": quotients(second, taken)}
        for name, taken in times.items()
    }


def estimates() -> dict[str, Any]:
    """Return what the kernel moves for a block of 1280 x 1280 x 9: bytes per weight, and microseconds at the peak."""
    rows, columns = 1280, 1280 * 9
    found = {}
    for count in COUNTS:
        for backward in (False, True):
            moved = cost(rows, columns, count, backward=backward, sums=backward)
            plain = cost_composition(rows, columns, count, backward=backward)
            size = moved.bytes_read + moved.bytes_written
            other = plain.bytes_read + plain.bytes_written
            found[f"K = {count}, {'gradients' if backward else 'weight'}"] = {
                "bytes per weight": size / (4 * rows * columns),
                "plainest divided by it": other / size,
                **{name: 1e6 * size / peak for name, peak in PEAK_BANDWIDTH.items()},
            }
    return found


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    for group in ("weight", "weight and gradients", "step"):
        for title, rows in result[group].items():
            print(f"\n{group}, {title}; CPU time, times faster than the first, and the second: median (quartiles)")
            for name, row in rows.items():
                print(f"  {name:16} {row['ms']:8.3f} ms  {spread(row['first'])}  {spread(row['second'])}")
    print("\nestimated from bytes and peak bandwidth, block of 1280 x 1280 x 9")
    for name, row in result["estimated"].items():
        print(f"  {name:18} " + ", ".join(f"{what} {value:.1f}" for what, value in row.items()))


def main() -> None:
    """Measure, print and write."""
    options = arguments("mixture_growth", __doc__).parse_args()
    prepare()
    rounds = 5 if options.quick else 25
    result: dict[str, Any] = {"weight": {}, "weight and gradients": {}, "step": {}, "estimated": estimates()}
    for count in COUNTS:
        for shape in SHAPES:
            title = f"block {' x '.join(map(str, shape))}, K = {count}"
            result["weight"][title] = measure(weights(shape, count, False), rounds)
            result["weight and gradients"][title] = measure(weights(shape, count, True), rounds)
    for title, (make, shape) in NETWORKS.items():
        result["step"][title] = measure(steps(make, shape), rounds)
    conclude(options, result, report)


if __name__ == "__main__":
    main()
