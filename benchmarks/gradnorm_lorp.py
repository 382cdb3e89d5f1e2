"""What GradNormLoRP costs beside its peers: python benchmarks/gradnorm_lorp.py [--quick] [--memory] [--out FILE].

A layer's forward and backward pass beside peft's DoRA, the optimizer's step beside galore-torch's (both are compared
where they can be imported), and a new projection by the three methods. One thread, CPU time of the process. With
``--memory`` nothing is measured: the table of optimizer memory is printed, counted from the states that the optimizer
makes on tensors without storage. GPU numbers are estimates from the kernels' cost models and are called so.
"""

import copy
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from _measure import PEAK_BANDWIDTH, arguments, conclude, milliseconds, prepare, quotients, spread, take_turns
from torch import Tensor, nn

from lightning_weights.functional.gradient_projection import gradient_projection
from lightning_weights.functional.gradnorm_lorp import weight_normed_linear
from lightning_weights.kernels.projected_adam.cost import cost as step_cost
from lightning_weights.kernels.weight_norm_rows.cost import cost as norm_cost
from lightning_weights.kernels.weight_norm_rows.cost import cost_composition
from lightning_weights.optimizers import GradNormLoRPAdamW

SIZE, FACTORS = 2048, 8
TOKENS = (64, 256)
STEPS = {
    "20 layers' factors, p=4": ([(SIZE, FACTORS), (FACTORS, SIZE)] * 20, 4),
    "60 matrices 64 x 64, p=8": ([(64, 64)] * 60, 8),
    "2 matrices 2048 x 2048, p=128": ([(SIZE, SIZE)] * 2, 128),
}
REFRESHES = ((FACTORS, SIZE, 4), (512, 1376, 128), (1024, 1024, 64))
NEVER = 10**9
# hidden size, size within the MLP, layers, and rank of the projection, as GaLore's and this paper's scripts have them
LLAMAS = {
    "60M": (512, 1376, 8, 128),
    "350M": (1024, 2736, 24, 256),
    "1B": (2048, 5461, 24, 1024),
    "7B": (4096, 11008, 32, 1024),
}
VOCABULARY = 32000


def peft_dora(layer: nn.Linear, i: Tensor, j: Tensor, alpha: float) -> nn.Module:
    """Wrap a copy of a layer in peft's DoRA with the same factors."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=FACTORS, lora_alpha=alpha, use_dora=True, target_modules=["0"])
    wrapped = get_peft_model(nn.Sequential(copy.deepcopy(layer)), config).base_model.model[0]
    wrapped.lora_B["default"].weight.data.copy_(i)
    wrapped.lora_A["default"].weight.data.copy_(j)
    return wrapped


def layers(tokens: int, rounds: int) -> dict[str, dict[str, float]]:
    """Time forward and backward passes of a 2048 x 2048 layer with factors of rank 8."""
    plain, alpha = nn.Linear(SIZE, SIZE), 16.0
    weight, bias = plain.weight.detach(), plain.bias.detach()
    magnitude, square = nn.Parameter(weight.norm(dim=1)), weight.square().sum(1)
    i, j = nn.Parameter(torch.randn(SIZE, FACTORS) * 0.01), nn.Parameter(torch.randn(FACTORS, SIZE) * 0.01)
    x, upstream = torch.randn(tokens, SIZE, requires_grad=True), torch.randn(tokens, SIZE)

    def ours(detach_norm: bool) -> Tensor:
        layer = (weight, bias, magnitude, i, j, alpha / FACTORS, detach_norm, square)
        return weight_normed_linear(x, *layer)

    runs: dict[str, Callable[[], Tensor]] = {
        "GradNormLoRP": lambda: ours(True),
        "GradNormLoRP exact norm": lambda: ours(False),
        "frozen linear layer": lambda: nn.functional.linear(x, weight, bias),
    }
    if importlib.util.find_spec("peft"):
        wrapped = peft_dora(plain, i, j, alpha)
        runs["peft DoRA"] = lambda: wrapped(x)
        torch.testing.assert_close(ours(True), wrapped(x), rtol=1e-4, atol=1e-4)
    return _compare({name: lambda run=run: run().backward(upstream) for name, run in runs.items()}, rounds)


def optimizers(shapes: list[tuple[int, int]], rank: int, rounds: int) -> dict[str, dict[str, float]]:
    """Time steps between two projections."""
    rule = {"rank": rank, "update_proj_gap": NEVER, "scale": 0.25}
    builders: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
        "GradNormLoRPAdamW": lambda params: GradNormLoRPAdamW(params, **rule),
    }
    if importlib.util.find_spec("bitsandbytes"):
        builders["GradNormLoRPAdamW 8 bit"] = lambda params: GradNormLoRPAdamW(params, **rule, state_bits=8)
    if importlib.util.find_spec("galore_torch"):
        from galore_torch import GaLoreAdamW

        builders["galore-torch"] = lambda params: GaLoreAdamW(
            [{"params": params, **rule, "proj_type": "std"}], lr=1e-3, no_deprecation_warning=True
        )
    gradients = [torch.randn(shape) for shape in shapes]
    runs = {}
    for name, build in builders.items():
        params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
        for param, gradient in zip(params, gradients, strict=True):
            param.grad = gradient
        optimizer = build(params)
        runs[name] = optimizer.step
    return _compare(runs, rounds)


def refreshes(rows: int, columns: int, rank: int, rounds: int) -> dict[str, dict[str, float]]:
    """Time new projections from a gradient whose spectrum decays slowly."""
    gradient = torch.randn(rows, columns) * torch.arange(1, columns + 1) ** -0.5
    return _compare(
        {svd: lambda svd=svd: gradient_projection(gradient, rank, svd=svd) for svd in ("exact", "gram", "randomized")},
        rounds,
    )


def _compare(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    for run in runs.values():
        run()
    times = take_turns(runs, rounds)
    first = next(iter(times))
    return {name: {"ms": milliseconds(times[name]), **quotients(times[name], times[first])} for name in times}


def state_bytes(matrices: list[tuple[int, int]], vectors: list[int], dense: int, rank: int | None, bits: int) -> int:
    """Count the bytes that one step on tensors without storage leaves behind.

    Args:
        matrices: Shapes of what is projected.
        vectors: Lengths of trained vectors.
        dense: Further trained elements, never projected.
        rank: Rank of the projection, None for plain AdamW.
        bits: Of the moments.
    """
    shapes = [*matrices, *((length,) for length in vectors), *([(dense,)] if dense else [])]
    params = [nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]
    for param in params:
        param.grad = torch.empty_like(param)
    groups = [{"params": params[: len(matrices)], "rank": rank}, {"params": params[len(matrices) :], "rank": None}]
    optimizer = GradNormLoRPAdamW([group for group in groups if group["params"]], state_bits=bits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ranks that save nothing are part of the table
        optimizer.step()
    return sum(
        value.nbytes for state in optimizer.state.values() for value in state.values() if hasattr(value, "nbytes")
    )


def memory() -> dict[str, dict[str, dict[str, float]]]:
    """Count optimizer memory for LLaMA's shapes: gigabytes, and what is saved against AdamW in fp32 and in bf16."""
    table = {}
    for name, (hidden, inner, depth, rank) in LLAMAS.items():
        linears = ([(hidden, hidden)] * 4 + [(inner, hidden)] * 2 + [(hidden, inner)]) * depth
        lengths = [m for m, _ in linears]
        factors = [shape for m, n in linears for shape in ((m, FACTORS), (FACTORS, n))]
        rest = 2 * VOCABULARY * hidden + (2 * depth + 1) * hidden
        adam = state_bytes(linears, [], rest, None, 32)
        rows = {}
        for bits in (32, 8) if importlib.util.find_spec("bitsandbytes") else (32,):
            rows |= {
                f"AdamW, {bits} bit": state_bytes(linears, [], rest, None, bits),
                f"GaLore p={rank}, {bits} bit": state_bytes(linears, [], rest, rank, bits),
                f"GradNormLoRP full p={rank}, {bits} bit": state_bytes(linears, lengths, rest, rank, bits),
                f"DoRA r=8, {bits} bit": state_bytes(factors, lengths, 0, None, bits),
                f"GradNormLoRP r=8 p=8, {bits} bit": state_bytes(factors, lengths, 0, 8, bits),
                f"GradNormLoRP r=8 p=4, {bits} bit": state_bytes(factors, lengths, 0, 4, bits),
            }
        table[name] = {
            row: {"gigabytes": used / 1e9, "saved_fp32": 1 - used / adam, "saved_bf16": 1 - 2 * used / adam}
            for row, used in rows.items()
        }
    return table


def print_memory(table: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print the table of optimizer memory."""
    print("optimizer memory in GB (10^9 bytes), and the share saved against AdamW with fp32 and with bf16 states")
    for name, rows in table.items():
        print(f"\nLLaMA {name}")
        for row, values in rows.items():
            saved = f"{values['saved_fp32']:7.1%} of fp32  {values['saved_bf16']:7.1%} of bf16"
            print(f"  {row:34} {values['gigabytes']:8.4f}  {saved}")


def estimates() -> list[dict[str, Any]]:
    """Time of the kernels at peak memory bandwidth, for GPUs that nobody measured here."""
    calls = {
        "row norms 4096 x 4096 bf16 r=8": norm_cost(4096, 4096, 8, itemsize=2),
        "row norms by composition": cost_composition(4096, 4096, 8, itemsize=2),
        "step 4096 x 4096 p=32": step_cost(4096, 4096, 32),
        "step 4096 x 4096 p=32 8 bit": step_cost(4096, 4096, 32, state_bits=8),
    }
    moved = {name: call.bytes_read + call.bytes_written for name, call in calls.items()}
    return [
        {"call": name, "gpu": gpu, "estimate_us": 1e6 * total / bandwidth}
        for name, total in moved.items()
        for gpu, bandwidth in PEAK_BANDWIDTH.items()
    ]


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    for title, rows in result["measured"].items():
        print(f"\n{title}; ratio to {next(iter(rows))}: median (quartiles) of CPU time")
        for name, row in rows.items():
            print(f"  {name:26} {row['ms']:9.2f} ms  {spread(row)}")
    print("\nestimates, not measured: time at the GPU's peak bandwidth")
    for row in result["estimates"]:
        print(f"  {row['call']:32} {row['gpu']:10} {row['estimate_us']:8.1f} us (estimate)")


def main() -> None:
    """Measure, print and write; or print the memory table."""
    parser = arguments("gradnorm_lorp", __doc__)
    parser.add_argument("--memory", action="store_true", help="print the table of optimizer memory, measure nothing")
    options = parser.parse_args()
    if options.memory:
        print_memory(memory())
        return
    prepare()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of galore-torch, about itself
    rounds = 6 if options.quick else 30
    measured = {f"layer {SIZE} x {SIZE} r=8, {tokens} tokens": layers(tokens, rounds) for tokens in TOKENS}
    measured |= {f"step of {name}": optimizers(*case, rounds) for name, case in STEPS.items()}
    measured |= {f"projection of {m} x {n}, p={p}": refreshes(m, n, p, max(3, rounds // 5)) for m, n, p in REFRESHES}
    conclude(options, {"measured": measured, "estimates": estimates()}, report)


if __name__ == "__main__":
    main()
