"""What taking and adding signatures costs: python benchmarks/rws.py [--quick] [--out FILE].

VGG-16 for small images, signatures of its first seven convolutions with 16 levels. Its weights are patched by the
operator `apply_signature`; by unpacking, dequantizing and adding every tensor of every signature; and by loading the
state dict of a network that was patched before, from memory and from a file. Beside the operator stands what a user
calls, `RWSController.set_scale`. Then the projection of those tensors: the house's, and products and sums as they are
written down. One thread, CPU time of the process, the contestants taking turns in random order within every round;
ratios are taken within rounds, so that a busy machine slows all of them. GPU numbers are estimates from the kernel's
cost model and are called so.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _measure import PEAK_BANDWIDTH, arguments, conclude, milliseconds, prepare, quotients, spread, take_turns
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_weights.functional.rws import project_out
from lightning_weights.kernels.apply_signature import apply_signature, apply_signature_reference
from lightning_weights.kernels.apply_signature.cost import cost, cost_composed
from lightning_weights.modules import VGG, RobustWeightSignature, RWSController, ShallowSelector

LEVELS, BITS = 16, 4
NUMBERS = (1, 3)  # of signatures
SCALE = 0.5
SIZE = 0.01  # of a signature's values

Ways = dict[str, Callable[[], Any]]


def signatures(network: VGG, count: int) -> list[RobustWeightSignature]:
    """Return signatures of random numbers for the first seven convolutions."""
    names = ShallowSelector(7).select(network)
    tensors = {name: tensor for name, tensor in network.state_dict().items() if name in names}
    return [
        RobustWeightSignature.from_tensors(
            {name: SIZE * torch.randn_like(tensor) for name, tensor in tensors.items()}, LEVELS, corruption=f"kind {i}"
        )
        for i in range(count)
    ]


def added(outs: list[Tensor], bases: list[Tensor], codes: list[list[Tensor]], low: Tensor, high: Tensor) -> None:
    """Unpack, dequantize and add one tensor of one signature after the other."""
    for t, (out, base) in enumerate(zip(outs, bases, strict=True)):
        out.copy_(base)
        for i, row in enumerate(codes):
            both = torch.stack([row[t] & 15, row[t] >> 4], dim=1).flatten()[: base.numel()].view(base.shape)
            step = (high[i, t] - low[i, t]) / (LEVELS - 1)
            out.add_(both.float().mul_(step).add_(low[i, t]), alpha=SCALE)


def patches(count: int, folder: Path) -> Ways:
    """Return ways to patch the network, after making sure that they agree; the first one is the baseline."""
    network = VGG()
    taken = signatures(network, count)
    names = list(taken[0].shapes)
    outs = [network.state_dict()[name] for name in names]
    bases = [out.clone() for out in outs]
    held = [[torch.randint(256, ((out.numel() + 1) // 2,), dtype=torch.uint8) for out in outs] for _ in taken]
    low, high = (torch.full((count, len(outs)), sign * 3 * SIZE) for sign in (-1.0, 1.0))
    scales, bits = [SCALE] * count, [BITS] * count
    ways: Ways = {
        "unpack, dequantize, add": lambda: added(outs, bases, held, low, high),
        "apply_signature": lambda: apply_signature(outs, bases, held, low, high, scales, bits),
    }
    for name, run in ways.items():
        run()
        wanted = apply_signature_reference(bases, held, low, high, scales, bits)
        if not all(torch.allclose(a, b, rtol=0.0, atol=1e-6) for a, b in zip(outs, wanted, strict=True)):
            raise RuntimeError(f"{name} patches differently")
    whole = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    save_file(whole, folder / "whole.safetensors")
    other = VGG()
    controller = RWSController(other)
    for signature in taken:
        controller.add(signature)
    controller.apply()
    ways["RWSController.set_scale"] = lambda: controller.set_scale(taken[0].name, SCALE)
    ways["load_state_dict, memory"] = lambda: network.load_state_dict(whole)
    ways["load_state_dict, file"] = lambda: network.load_state_dict(load_file(folder / "whole.safetensors"))
    return ways


def projections() -> Ways:
    """Return ways to project the seven convolutions' tensors; the first one is the baseline."""
    network = VGG()
    names = ShallowSelector(7).select(network)
    clean = [torch.randn_like(network.state_dict()[name]) for name in names]
    robust = [torch.randn_like(tensor) for tensor in clean]

    def written_down() -> list[Tensor]:
        pairs = zip(robust, clean, strict=True)
        return [p - (a.flatten() @ p.flatten()) / (a.flatten() @ a.flatten()) * a for p, a in pairs]

    return {
        "products and sums in fp32": written_down,
        "project_out": lambda: [project_out(p, a) for p, a in zip(robust, clean, strict=True)],
    }


def measure(ways: Ways, rounds: int) -> dict[str, dict[str, float]]:
    """Return CPU milliseconds, and how many times faster than the first contestant each is."""
    for run in ways.values():
        run()
    times = take_turns(ways, rounds)
    baseline = times[next(iter(ways))]
    return {name: {"ms": milliseconds(own), **quotients(baseline, own)} for name, own in times.items()}


def estimates() -> dict[str, Any]:
    """Return what the cost models say about three signatures, per weight, and the least time on GPUs."""
    numel = 10**6
    fused, composed = cost([numel], [BITS] * 3), cost_composed([numel], [BITS] * 3)
    moved, others = ((model.bytes_read + model.bytes_written) / numel for model in (fused, composed))
    return {
        "bytes_per_weight": moved,
        "bytes_per_weight_composed": others,
        "us_per_million_weights": {name: 1e12 * moved / peak for name, peak in PEAK_BANDWIDTH.items()},
    }


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    for title, rows in result["cases"].items():
        print(f"\n{title}; CPU time, and how many times faster than {next(iter(rows))}: median (quartiles)")
        for name, row in rows.items():
            print(f"  {name:26} {row['ms']:8.2f} ms  {spread(row)}")
    model = result["estimates"]
    print(
        f"\nestimates, three signatures: {model['bytes_per_weight']:.1f} bytes per weight, composed "
        f"{model['bytes_per_weight_composed']:.1f}"
    )


def main() -> None:
    """Measure, print and write."""
    options = arguments("rws", __doc__).parse_args()
    prepare()
    rounds = 5 if options.quick else 25
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        cases = {f"{count} signatures": measure(patches(count, Path(folder)), rounds) for count in NUMBERS}
        cases["projection"] = measure(projections(), rounds)
    conclude(options, {"cases": cases, "estimates": estimates()}, report)


if __name__ == "__main__":
    main()
