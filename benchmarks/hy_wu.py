"""What weights per sample cost beside other ways to them: python benchmarks/hy_wu.py [--quick] [--out FILE].

Forward pass of one linear layer in fp32 for a batch whose samples have LoRA matrices of their own, and forward and
backward pass with the gradients of matrices and inputs, on one thread, CPU time of the process; the contestants take
turns in random order within every round, and ratios are taken within rounds. Contestants: a loop over samples, weights
merged for each sample, PEFT's batches of mixed adapters (``adapter_names``; forward only, where it is installed), and
the frozen layer alone, the floor. Then a generator of the size in the docs, and the bytes of the GPU kernel (estimate).
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from _measure import arguments, conclude, milliseconds, prepare, quotients, spread, take_turns
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_weights.kernels.per_sample_lora import per_sample_lora
from lightning_weights.kernels.per_sample_lora.cost import cost, cost_composition
from lightning_weights.modules import WeightGenerator

try:
    from peft import LoraConfig
    from peft.tuners.lora.layer import Linear as LoraLinear
except ImportError:
    LoraConfig = None

LAYERS = ((1024, 1024), (4096, 1024))  # outputs, inputs
BATCHES = ((8, 1), (8, 64), (32, 16))  # samples, tokens of each
R, SCALE = 16, 2.0
OURS, LOOP, MERGED, PEFT, FROZEN = (
    "per_sample_lora",
    "loop over samples",
    "merged weights",
    "PEFT mixed",
    "frozen layer",
)


class Batch:
    """A layer, a batch and matrices for its samples."""

    def __init__(self, outputs: int, inputs: int, samples: int, tokens: int) -> None:
        self.layer = nn.Linear(inputs, outputs).requires_grad_(False)
        self.x = torch.randn(samples, tokens, inputs, requires_grad=True)
        self.a = (torch.randn(samples, R, inputs) / inputs**0.5).requires_grad_()
        self.b = (torch.randn(samples, outputs, R) / R).requires_grad_()
        self.upstream = torch.randn(samples, tokens, outputs)

    def ours(self) -> Tensor:
        return per_sample_lora(self.layer(self.x), self.x, self.a, self.b, SCALE)

    def loop(self) -> Tensor:
        rows = zip(self.x, self.a, self.b, strict=True)
        return torch.stack([self.layer(x) + SCALE * F.linear(F.linear(x, a), b) for x, a, b in rows])

    def merged(self) -> Tensor:
        weights = torch.baddbmm(self.layer.weight.expand(len(self.a), -1, -1), self.b, self.a, alpha=SCALE)
        return torch.baddbmm(self.layer.bias, self.x, weights.mT)

    def frozen(self) -> Tensor:
        return self.layer(self.x)

    def peft(self) -> Callable[[], Tensor]:
        """Return PEFT's layer with an adapter for each sample."""
        names = [f"sample{place}" for place in range(len(self.a))]
        config = LoraConfig(r=R, lora_alpha=int(SCALE * R))
        mixed = LoraLinear(copy.deepcopy(self.layer), names[0], config, r=R, lora_alpha=int(SCALE * R))
        for name in names[1:]:
            mixed.update_layer(name, R, lora_alpha=int(SCALE * R), config=config)
        with torch.no_grad():
            for name, a, b in zip(names, self.a, self.b, strict=True):
                mixed.lora_A[name].weight.copy_(a)
                mixed.lora_B[name].weight.copy_(b)
        mixed.eval()
        return lambda: mixed(self.x, adapter_names=names)

    def contestants(self) -> dict[str, Callable[[], Tensor]]:
        """Return all ways, which have to agree."""
        ways = {OURS: self.ours, LOOP: self.loop, MERGED: self.merged}
        if LoraConfig is not None:
            ways[PEFT] = self.peft()
        expected = self.ours()
        for name, way in ways.items():
            torch.testing.assert_close(way(), expected, rtol=1e-3, atol=1e-3, msg=f"{name} computes something else")
        return {FROZEN: self.frozen, **ways}


def forward(way: Callable[[], Tensor]) -> Callable[[], None]:
    """Return a forward pass without gradients."""

    def run() -> None:
        with torch.no_grad():
            way()

    return run


def both(batch: Batch, way: Callable[[], Tensor], matrices: bool) -> Callable[[], None]:
    """Return forward and backward pass."""
    leaves = [batch.x, batch.a, batch.b] if matrices else [batch.x]

    def run() -> None:
        torch.autograd.grad(way(), leaves, batch.upstream)

    return run


def measure(rounds: int) -> list[dict[str, Any]]:
    """Return a row per layer, batch, pass and contestant."""
    rows = []
    for outputs, inputs in LAYERS:
        for samples, tokens in BATCHES:
            batch = Batch(outputs, inputs, samples, tokens)
            ways = batch.contestants()
            passes = {
                "forward": {name: forward(way) for name, way in ways.items()},
                "both": {name: both(batch, way, name != FROZEN) for name, way in ways.items() if name != PEFT},
            }
            for kind, runs in passes.items():
                for run in runs.values():
                    run()
                times = take_turns(runs, rounds)
                size = {"out": outputs, "in": inputs, "samples": samples, "tokens": tokens, "pass": kind}
                rows += [
                    {**size, "name": name, "ms": milliseconds(own), **quotients(own, times[OURS])}
                    for name, own in times.items()
                ]
    return rows


def generation(rounds: int) -> dict[str, float]:
    """Return the milliseconds in which a small generator makes the matrices of 32 samples, and how many numbers."""
    made = WeightGenerator(
        {"fc1": (96, 96), "fc2": (96, 96)}, 3, 8, rank=4, token_dim=96, dim=64, head_dim=16, accumulation=4, depth=1
    )
    condition = torch.randn(32, 1, 8)

    def train() -> None:
        made(condition).flatten().square().sum().backward()

    train()
    times = take_turns({"forward": forward(lambda: made(condition).flatten()), "both": train}, rounds)
    return {"numbers": made.numbers, **{name: milliseconds(own) for name, own in times.items()}}


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    last = None
    for row in result["layers"]:
        size = tuple(row[name] for name in ("out", "in", "samples", "tokens", "pass"))
        if size != last:
            print("\n{0}x{1}, r = {5}, {2} samples of {3} tokens, {4}; times the time of ours".format(*size, R))
            last = size
        print(f"  {row['name']:20} {row['ms']:8.2f} ms  {spread(row)}")
    print(f"\ngenerator, 32 samples: {result['generator']}")
    print(f"bytes per output in bf16, 8 x 1024 tokens, 4096x4096, r = {R} (estimate): {result['estimate']}")


def main() -> None:
    """Measure, print and write."""
    options = arguments("hy_wu", __doc__).parse_args()
    prepare()
    rounds = 5 if options.quick else 11
    sizes = (8, 1024, 4096, 4096, R)
    costs = {"kernel": cost(*sizes, itemsize=2), "composition": cost_composition(*sizes, itemsize=2)}
    elements = sizes[0] * sizes[1] * sizes[3]
    estimate = {name: round((own.bytes_read + own.bytes_written) / elements, 1) for name, own in costs.items()}
    conclude(options, {"layers": measure(rounds), "generator": generation(rounds), "estimate": estimate}, report)


if __name__ == "__main__":
    main()
