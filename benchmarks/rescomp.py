"""What the column solver costs with GPTQ, GPTAQ and ResComp: python benchmarks/rescomp.py [--quick] [--out FILE].

Each method against the column loop of its published implementation, written from the equations (`_published_loops.py`),
with U and P given to both, and with what finds them: 3 bits, groups and blocks of 128. ResComp's matrix R is given to
the published loop, and not needed by ours. Codes are compared in float32, where sums are rounded in another order,
and in float64. Then the compensation-aware error on and off, for each value that later blocks can be told. One thread,
CPU time of the process, contestants taking turns in random order within every round. GPU numbers are estimates from
the cost model.
"""

from typing import Any

from _columns import config, measure, print_ablation, print_race
from _measure import PEAK_BANDWIDTH, arguments, conclude, prepare

from lightning_weights.kernels.compensate_columns.cost import cost, cost_column_loop

METHODS = {name: config(name) for name in ("gptq", "gptaq", "rescomp_gptq", "rescomp")}
BASES = {"rescomp": "gptaq", "rescomp_gptq": "gptq"}
OUTER = ("current", "quantized", "clamped")
ABLATION = {
    f"{method}, {outer}": config(method, outer=outer)
    for outer in OUTER
    for method in ("gptaq", "rescomp", "gptq", "rescomp_gptq")
}
ABLATION_BASES = {f"{name}, {outer}": f"{base}, {outer}" for name, base in BASES.items() for outer in OUTER}
BLOCK = 128


def estimates() -> list[dict[str, Any]]:
    """Time of all blocks of a 4096 x 4096 layer at peak memory bandwidth, without the products between blocks."""
    blocks = 4096 // BLOCK
    kinds = {
        "one launch per block": cost(BLOCK, 4096, pairs=2, drifts=True, search=BLOCK),
        "column loop": cost_column_loop(BLOCK, 4096, pairs=2, drifts=True),
    }
    return [
        {"gpu": gpu, "kind": kind, "estimate_ms": 1e3 * blocks * (moved.bytes_read + moved.bytes_written) / bandwidth}
        for kind, moved in kinds.items()
        for gpu, bandwidth in PEAK_BANDWIDTH.items()
    ]


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    for name, rows in result["layers"].items():
        print_race(name, rows)
    print_ablation(f"compensation-aware error on and off, {result['ablation_layer']}", result["ablation"])
    print("\nestimate, not measured: ResComp's blocks of a 4096 x 4096 layer at the GPU's peak bandwidth")
    for row in result["estimates"]:
        print(f"  {row['gpu']:10}  {row['kind']:22} {row['estimate_ms']:7.3f} ms (estimate)")


def main() -> None:
    """Measure, print and write."""
    options = arguments("rescomp", __doc__).parse_args()
    prepare()
    result = measure(METHODS, BASES, ABLATION, ABLATION_BASES, options.quick)
    conclude(options, {**result, "estimates": estimates()}, report)


if __name__ == "__main__":
    main()
