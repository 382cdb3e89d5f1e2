"""What an adapted layer costs beside PEFT's: python benchmarks/bone.py [--quick] [--out FILE].

Forward and backward pass of one linear layer in fp32, on one thread, CPU time of the process; the contestants take
turns in random order within every round, and ratios are taken within rounds, so that a busy machine slows both sides.
The five products that `col` comes down to run alone, too, into memory that is there already: the limit of whoever
computes it with PyTorch's products. Then the bytes that each holds at its peak, counted by PyTorch's profiler in one
pass. Needs peft.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from _measure import arguments, conclude, milliseconds, peak, prepare, quotients, spread, take_turns
from peft import LoraConfig, MissConfig
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.miss.layer import MissLinear
from torch import Tensor, nn

from lightning_weights.kernels.block_affine.cost import cost, cost_composition
from lightning_weights.modules import BoneLinear

LAYERS = ((1024, 1024), (4096, 1024))  # outputs, inputs
TOKENS = (64, 256, 512)
R = 64
AGAINST = {
    "frozen linear": "PEFT bat",
    "products alone": "PEFT bat",
    "PEFT bat": "PEFT bat",
    "col": "PEFT bat",
    "col, weight never kept": "PEFT bat",
    "col, weight kept per step": "PEFT bat",
    "PEFT MiSS": "PEFT MiSS",
    "PEFT LoRA": "PEFT MiSS",
    "row": "PEFT MiSS",
    "left": "PEFT MiSS",
    "miss": "PEFT MiSS",
}


def layers(out_features: int, in_features: int) -> dict[str, nn.Module]:
    """Return the contestants, all with the same weight."""
    base = nn.Linear(in_features, out_features).requires_grad_(False)

    def ours(variant: str, **options: Any) -> nn.Module:
        return BoneLinear(copy.deepcopy(base), R, variant, **options)

    def pefts(kind: type[nn.Module], config: Any) -> nn.Module:
        return kind(copy.deepcopy(base), "default", config, r=R)

    contestants: dict[str, nn.Module] = {
        "frozen linear": base,
        "PEFT bat": pefts(MissLinear, MissConfig(r=R, init_weights="bat")),
        "col": ours("col"),
        "col, weight never kept": ours("col", keep="never"),
        "col, weight kept per step": ours("col", keep="step"),
        "PEFT MiSS": pefts(MissLinear, MissConfig(r=R)),
        "PEFT LoRA": LoraLinear(copy.deepcopy(base), "default", LoraConfig(r=R // 2), r=R // 2, lora_alpha=R),
        "row": ours("row"),
        "left": ours("left"),
        "miss": ours("miss"),
    }
    for name, layer in contestants.items():
        trained = [param for param in layer.parameters() if param.requires_grad]
        for param in trained:
            nn.init.normal_(param, std=0.01, generator=torch.Generator().manual_seed(param.numel()))
        if not trained and name != "frozen linear":
            raise RuntimeError(f"{name} trains nothing")
    return contestants


def passes(contestants: dict[str, nn.Module], tokens: int) -> dict[str, Callable[[], None]]:
    """Return forward and backward passes with the gradient of the inputs, as between other layers."""
    base = contestants["frozen linear"]
    x = torch.randn(tokens, base.in_features, requires_grad=True)
    upstream = torch.randn(tokens, base.out_features)
    if (contestants["PEFT bat"](x) - contestants["col"](x)).abs().max() > 1e-4:
        raise RuntimeError("col and PEFT's bat compute different things")

    def run(layer: nn.Module) -> None:
        x.grad = None
        for param in layer.parameters():
            param.grad = None
        layer(x).backward(upstream)

    runs = {name: lambda layer=layer: run(layer) for name, layer in contestants.items()}
    return {**runs, "products alone": products(base.weight.detach(), x.detach(), upstream)}


def products(weight: Tensor, x: Tensor, upstream: Tensor) -> Callable[[], None]:
    """Return the bare products of `col`: the built weight, the outputs, and the slopes of inputs, weight and blocks."""
    outputs, slope_x, slope_w, built = (torch.empty_like(like) for like in (upstream, x, weight, weight))
    blocks = torch.randn(weight.shape[0] // R, R, R)
    slope_b = torch.empty_like(blocks)
    rows, built_rows, slope_rows = (matrix.view(len(blocks), -1, R) for matrix in (weight, built, slope_w))

    def run() -> None:
        torch.bmm(rows, blocks, out=built_rows)
        torch.mm(x, built.t(), out=outputs)
        torch.mm(upstream, built, out=slope_x)
        torch.mm(upstream.t(), x, out=slope_w)
        torch.bmm(rows.transpose(1, 2), slope_rows, out=slope_b)

    return run


def measure(rounds: int) -> list[dict[str, Any]]:
    """Return a row per layer, number of tokens and contestant."""
    rows = []
    for out_features, in_features in LAYERS:
        contestants = layers(out_features, in_features)
        for tokens in TOKENS:
            runs = passes(contestants, tokens)
            # ahead of the times: it leaves a heap of which malloc gives little back, and page faults are no arithmetic
            peaks = {name: peak(run) for name, run in runs.items()}
            times = take_turns(runs, rounds)
            for name, own in times.items():
                ratio = quotients(times[AGAINST[name]], own)
                size = {"out": out_features, "in": in_features, "tokens": tokens}
                rows.append({**size, "name": name, "ms": milliseconds(own), **ratio, "peak": peaks[name]})
    return rows


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    for out_features, in_features in LAYERS:
        for tokens in TOKENS:
            print(
                f"\n{out_features}x{in_features}, r = {R}, {tokens} tokens; speed over the peer's: median (quartiles)"
            )
            for row in result["passes"]:
                if (row["out"], row["in"], row["tokens"]) == (out_features, in_features, tokens):
                    peer = f"{spread(row)} of {AGAINST[row['name']]}"
                    print(f"  {row['name']:26} {row['ms']:8.2f} ms  {peer:32} peak {row['peak'] / 2**20:6.1f} MiB")
    estimate = result["estimate"]
    print(f"\nbytes of the weight build per element in bf16, 4096x4096 (estimate): {estimate}")


def main() -> None:
    """Measure, print and write."""
    options = arguments("bone", __doc__).parse_args()
    prepare()
    size = 4096 * 4096
    costs = {
        "kernel": cost(4096, 4096, R, (4096 // R, 1), itemsize=2),
        "composition": cost_composition(4096, 4096, R, itemsize=2),
    }
    estimate = {name: round((own.bytes_read + own.bytes_written) / size, 1) for name, own in costs.items()}
    conclude(options, {"passes": measure(5 if options.quick else 25), "estimate": estimate}, report)


if __name__ == "__main__":
    main()
