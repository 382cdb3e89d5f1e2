"""What FOEM costs beside GPTQ: python benchmarks/foem.py [--quick] [--out FILE].

GPTQ and FOEM against the column loops of their published implementations, written from the equations
(`_published_loops.py`), with U given to both, and with what finds it: 3 bits, groups and blocks of 128. Then the pull
and the corrected error on and off. One thread, CPU time of the process, contestants taking turns in random order within
every round.
"""

from typing import Any

from _columns import config, measure, print_ablation, print_race
from _measure import arguments, conclude, prepare

METHODS = {"gptq": config("gptq"), "foem": config("foem")}
BASES = {"foem": "gptq"}
ABLATION = {
    "gptq": config("gptq"),
    "error alone": config("foem", pull="none"),
    "error and pull": config("foem"),
    "and at block starts": config("foem", pull_block_start=True),
    "all columns, every step": config("foem", pull="all"),
    "gptaq": config("gptaq"),
    "error, pull and gptaq": config("foem", alpha=0.25),
}
ABLATION_BASES = {**dict.fromkeys(list(ABLATION)[1:5], "gptq"), "error, pull and gptaq": "gptaq"}


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    for name, rows in result["layers"].items():
        print_race(name, rows)
    print_ablation(f"pull and corrected error on and off, {result['ablation_layer']}", result["ablation"])


def main() -> None:
    """Measure, print and write."""
    options = arguments("foem", __doc__).parse_args()
    prepare()
    result = measure(METHODS, BASES, ABLATION, ABLATION_BASES, options.quick)
    conclude(options, result, report)


if __name__ == "__main__":
    main()
