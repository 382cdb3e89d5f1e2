"""What the benchmarks of the column solver share: layers, contestants, and how their codes compare."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from _measure import milliseconds, quotients, spread, take_turns
from _published_loops import Loop, Quantized, correction, inverse_factor, published
from torch import Tensor

from lightning_weights.functional.column_solver import (
    CompensationConfig,
    Factors,
    FOEMConfig,
    InputStatistics,
    QuantizedWeight,
    factorize,
    quantize_weight,
)

SIZES = {(576, 1536): 21, (2048, 2048): 9, (4096, 4096): 5}  # outputs and inputs of a layer, and rounds
TOKENS_PER_INPUT, SAMPLES, HELD_OUT = 1.5, 8, 512
COMMON = {"sym": False, "mse_clip": False, "act_order": False, "damp": 0.01}  # 3 bits, groups and blocks of 128
CHECKED_ROWS = 64  # in float64: rows are independent
WORDS = {"columns": "columns", "products": "most", "whole": "whole"}


class Layer(NamedTuple):
    """A layer, statistics of its inputs, and other inputs in both streams."""

    weight: Tensor
    statistics: InputStatistics
    inputs: Tensor
    full: Tensor


def layer(m: int, n: int) -> Layer:
    """Make a layer whose inputs are correlated, with inputs of the other stream that are off by a tenth."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tokens = SAMPLES * int(TOKENS_PER_INPUT * n / SAMPLES)
    inputs = (normal(tokens + HELD_OUT, n) * torch.arange(1, n + 1) ** -0.3) @ (normal(n, n) / n**0.5)
    full = inputs + 0.1 * inputs @ normal(n, n) / n**0.5
    statistics = InputStatistics(n, asymmetric=True)
    statistics.update(*(stream[:tokens].view(SAMPLES, -1, n) for stream in (inputs, full)))
    return Layer(normal(m, n) * n**-0.5, statistics, inputs[tokens:], full[tokens:])


def config(method: str, **change: Any) -> CompensationConfig:
    """Return settings, of FOEM or another method."""
    return FOEMConfig(**COMMON, **change) if method == "foem" else CompensationConfig(method=method, **COMMON, **change)


class Pair(NamedTuple):
    """Our solution and the published loop for the same settings, both with U and P given."""

    own: Callable[[], QuantizedWeight]
    other: Callable[[], Quantized]


def pair(weight: Tensor, chosen: CompensationConfig, factors: Factors, dtype: torch.dtype = torch.float32) -> Pair:
    """Return both contestants; R is built for the published loop only."""
    if not chosen.asymmetric:
        factors = factors._replace(coefficients=factors.coefficients[:, :1].contiguous())
    rule, upper = chosen.rule, factors.upper.contiguous()
    p = factors.coefficients[:, 1].contiguous() if chosen.asymmetric else None
    r = None
    if rule.cae and not isinstance(chosen, FOEMConfig):
        r = rule.cae * factors.coefficients[:, 0] + (0.0 if p is None else rule.blend * p)
    loop = Loop(upper, p, r, beta=rule.pull, outer=rule.outer if chosen.asymmetric or r is not None else "current")
    weight = weight.to(dtype)
    return Pair(
        lambda: quantize_weight(weight, config=chosen, factors=factors, dtype=dtype), lambda: published(weight, loop)
    )


def products(factors: Factors, weight: Tensor, pairs: int) -> Callable[[], None]:
    """Return what neither side can do without: the products between blocks of 128 columns."""
    coefficients, rest = factors.coefficients[:, :pairs].contiguous(), weight.T.contiguous()
    pushed = torch.randn(128 * pairs, len(weight))

    def run() -> None:
        for stop in range(128, len(rest), 128):
            rest[stop:].addmm_(coefficients[stop - 128 : stop, :, stop:].flatten(0, 1).T, pushed)

    return run


def factorizations(made: Layer) -> dict[str, Callable[[], object]]:
    """Return how we and published implementations find U, and with GPTAQ P, by the number of matrices."""
    hessian, asymmetry = made.statistics.hessian, made.statistics.asymmetry
    gptq, gptaq = config("gptq"), config("gptaq", alpha=0.25)
    return {
        "own factors 1": lambda: factorize(hessian, config=gptq),
        "own factors 2": lambda: factorize(hessian, asymmetry, config=gptaq),
        "other factors 1": lambda: inverse_factor(hessian, gptq.damp),
        "other factors 2": lambda: correction(asymmetry, inverse_factor(hessian, gptaq.damp), gptaq.alpha),
    }


def equal_codes(made: Layer, configs: dict[str, CompensationConfig], factors: Factors) -> dict[str, dict[str, float]]:
    """Return the share of equal codes in float32, and, on some rows, in float64."""
    few, statistics = made.weight[:CHECKED_ROWS], made.statistics
    wide = factorize(statistics.hessian, statistics.asymmetry, config=config("gptaq", alpha=0.25), dtype=torch.float64)
    rows = {}
    for name, chosen in configs.items():
        single = pair(made.weight, chosen, factors)
        double = pair(few, chosen, wide, torch.float64)
        rows[name] = {
            kind: float((both.own().codes == both.other().codes).float().mean())
            for kind, both in (("float32", single), ("float64", double))
        }
    return rows


def race(
    made: Layer, configs: dict[str, CompensationConfig], factors: Factors, rounds: int, bases: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Return milliseconds, how many times faster than the published loop, and the time divided by a base method's."""
    pairs = {name: pair(made.weight, chosen, factors) for name, chosen in configs.items()}
    contestants = {f"{name}{kind}": getattr(both, kind) for name, both in pairs.items() for kind in both._fields}
    for count in {1 + chosen.asymmetric for chosen in configs.values()}:
        contestants[f"products {count}"] = products(factors, made.weight, count)
    times = take_turns({**contestants, **factorizations(made)}, rounds)
    rows: dict[str, dict[str, Any]] = {}
    for name in pairs:
        own, other, count = times[f"{name}own"], times[f"{name}other"], 1 + configs[name].asymmetric
        shared = times[f"products {count}"]
        whole, others = (_added(times, f"{name}{kind}", f"{kind} factors {count}") for kind in ("own", "other"))
        without = ([t - p for t, p in zip(seconds, shared, strict=True)] for seconds in (other, own))
        rows[name] = {"ms": milliseconds(own), **quotients(other, own), "products_ms": milliseconds(shared)}
        rows[name]["most"] = quotients(other, shared)
        rows[name]["columns"] = quotients(*without)
        rows[name]["whole"] = {"ms": milliseconds(whole), **quotients(others, whole)}
        if name in bases:
            base = bases[name]
            with_factors = quotients(whole, _added(times, f"{base}own", f"own factors {1 + configs[base].asymmetric}"))
            rows[name]["extra"] = {"base": base, **quotients(own, times[f"{base}own"]), "whole": with_factors}
    return rows


def _added(times: dict[str, list[float]], *names: str) -> list[float]:
    return [sum(seconds) for seconds in zip(*(times[name] for name in names), strict=True)]


def ablation(
    made: Layer, configs: dict[str, CompensationConfig], factors: Factors, rounds: int, bases: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Return the time divided by a base setting's, and the error ‖QX - WX̃‖² / ‖WX̃‖² on other inputs."""
    owns = {name: pair(made.weight, chosen, factors).own for name, chosen in configs.items()}
    times = take_turns(owns, rounds)
    rows = {}
    for name, run in owns.items():
        weight = run().dequantized
        rows[name] = {
            "ms": milliseconds(times[name]),
            **quotients(times[name], times[bases.get(name, name)]),
            "base": bases.get(name, name),
            "error": output_error(made, weight),
        }
    return rows


def output_error(made: Layer, quantized: Tensor) -> float:
    """Return the error of the quantized layer in the quantized stream, against the layer in the other one."""
    wanted = made.full @ made.weight.T
    return float((made.inputs @ quantized.T - wanted).square().sum() / wanted.square().sum())


def shared_factors(made: Layer) -> Factors:
    """Return U and P at α = 0.25, which serve all methods."""
    statistics = made.statistics
    return factorize(statistics.hessian, statistics.asymmetry, config=config("gptaq", alpha=0.25))


def measure(
    methods: dict[str, CompensationConfig],
    bases: dict[str, str],
    ablated: dict[str, CompensationConfig],
    ablated_bases: dict[str, str],
    quick: bool,
) -> dict[str, Any]:
    """Return the race of all sizes of layers, and the ablation on the first."""
    result: dict[str, Any] = {"layers": {}}
    for (m, n), most in SIZES.items():
        made, rounds = layer(m, n), max(2, most // 4) if quick else most
        factors = shared_factors(made)
        rows = race(made, methods, factors, rounds, bases)
        equal = equal_codes(made, methods, factors)
        result["layers"][f"{m} x {n}"] = {"rounds": rounds, "equal_codes": equal, "race": rows}
        if len(result["layers"]) == 1:
            result["ablation_layer"] = f"{m} x {n}"
            result["ablation"] = ablation(made, ablated, factors, rounds, ablated_bases)
    return result


def print_race(title: str, found: dict[str, Any]) -> None:
    """Print what `measure` returned for one size."""
    rows, equal = found["race"], found["equal_codes"]
    print(f"\n{title}, {found['rounds']} rounds; CPU time, times as fast as the published loop: median (quartiles)")
    print('  ("columns" is without the products between blocks, the same on both sides; "products" is the loop against')
    print('  them alone; "whole" is with what finds U and P, on either side its own)')
    for name, row in rows.items():
        same = ", ".join(f"{share:.4%} in {kind}" for kind, share in equal[name].items())
        parts = ", ".join(f"{word} {spread(row[part])}" for word, part in WORDS.items())
        print(f"  {name:14} {row['ms']:8.1f} ms  {spread(row)}, {parts}  equal codes: {same}")
        if "extra" in row:
            extra = row["extra"]
            print(f"  {'':14} {spread(extra)} x {extra['base']}, {spread(extra['whole'])} with U and P")


def print_ablation(title: str, rows: dict[str, dict[str, Any]]) -> None:
    """Print one table of `ablation`."""
    print(f"\n{title}; time divided by the base's: median (quartiles), and the output error on other inputs")
    for name, row in rows.items():
        print(f"  {name:28} {row['ms']:8.1f} ms  {spread(row)} of {row['base']:22} {row['error']:.4f}")
