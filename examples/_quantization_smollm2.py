"""The runs with SmolLM2-135M that the examples of ResComp and FOEM share: all methods, at three bits and at two."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from _harness import Column, Estimate, Results, Settings, conclude, run_all
from _plots import looks, plot
from _quantization import DEPTHS, GRID, quantize_smollm2

FOLDER = Path("results") / "quantization"
METHODS = {
    "RTN": {"method": "rtn"},
    "GPTQ": {"method": "gptq"},
    "GPTAQ": {"method": "gptaq"},
    "ResComp on GPTAQ": {"method": "rescomp"},
    "FOEM": {"beta": 0.1},
    "FOEM on GPTAQ": {"beta": 0.1, "alpha": 0.25},
}
ABLATIONS = {  # with three bits, on three of the seeds
    "GPTAQ, outer mode current": {"method": "gptaq", "outer": "current"},
    "GPTAQ, outer mode clamped": {"method": "gptaq", "outer": "clamped"},
    "ResComp on GPTQ": {"method": "rescomp_gptq"},
    "ResComp on GPTAQ, blocks of 128": {"method": "rescomp", "block_size": 128},
    "ResComp, blocks of 128, last range": {"method": "rescomp", "block_size": 128, "clamp_scope": "block_last"},
}
BASELINES = ("RTN", "GPTQ", "GPTAQ", "GPTAQ, outer mode current", "GPTAQ, outer mode clamped")
COLUMNS = [
    Column("perplexity", "perplexity"),
    *(Column(f"error of block {depth}", f"block {depth}", ".3f") for depth in DEPTHS[::2]),
    Column("error of layers", "layers", ".4f"),
    Column("solve seconds", "seconds", ".0f"),
    Column("gigabytes", "GB", ".1f"),
    Column("share of bfloat16", "of bf16", ".3f"),
]


def run_smollm2(bits: int, seeds: int) -> Results:
    """Quantize with every method and seed, or take the runs from where an earlier call has left them."""
    found = _run(f"{bits} bits", METHODS, bits, seeds)
    return Results([*found.runs, *_run(f"{bits} bits, ablations", ABLATIONS, bits, 3).runs]) if bits > 2 else found


def _run(folder: str, methods: Mapping[str, Settings], bits: int, seeds: int) -> Results:
    plan = {name: {"bits": bits, **GRID, **settings} for name, settings in methods.items()}
    return run_all(plan, range(seeds), quantize_smollm2, FOLDER / folder, watch="perplexity", resume=True)


def draw_smollm2(runs: dict[int, Results], path: Path) -> None:
    """Draw the perplexity of every method over what a weight takes, all included, and close up with most bits."""
    most = runs[max(runs)]
    full = most.estimate("full precision", "RTN").mean
    with plot(path, widths=(5.0, 6.0), height=4.2) as (over_bits, close):
        for method, look in looks(most, BASELINES).items():
            points = [results for results in runs.values() if method in results.methods]
            sizes = [results.estimate("bits", method).mean for results in points]
            estimates = [results.estimate("perplexity", method) for results in points]
            means, errors = [e.mean for e in estimates], [e.error for e in estimates]
            if len(points) == len(runs):
                over_bits.errorbar(sizes, means, errors, label=method, markersize=5, linewidth=1.2, **look)
            own = most.estimate("perplexity", method)
            close.errorbar([own.mean], [method], xerr=[own.error], markersize=5, linewidth=1.2, **look)
        over_bits.axhline(full, color="black", linewidth=0.8)
        close.axvline(full, color="black", linewidth=0.8)
        over_bits.set(yscale="log", xlabel="bits per weight, scales and zeros included", ylabel="perplexity")
        over_bits.set_title("SmolLM2-135M-Instruct; black: full precision")
        over_bits.legend()
        close.set(xlabel="perplexity", title=f"{max(runs)} bits")
        close.invert_yaxis()


def compare(results: Results, better: str, worse: str) -> tuple[str, bool]:
    """Return the criterion that one method has a lower perplexity than another on three of four seeds or more.

    Only seeds with which both were run count.
    """
    others = results.values("perplexity", worse)
    gains = [value - others[seed] for seed, value in results.values("perplexity", better).items() if seed in others]
    wins = sum(gain < 0 for gain in gains)
    text = f"{better} has a lower perplexity than {worse}: {Estimate.of(gains):+.2f}, {wins} of {len(gains)} seeds"
    return text, 4 * wins >= 3 * len(gains)


def report_smollm2(pairs: Mapping[int, Sequence[tuple[str, str]]], seeds: int, out: Path, claim: str) -> None:
    """Quantize SmolLM2 with all methods, draw, and print what came out next to what was asked.

    Args:
        pairs: Methods of which the first is to be better than the second, by bits.
        seeds: Number of seeds with three bits.
        out: Folder of the example.
        claim: What the pairs stand for.
    """
    runs = {bits: run_smollm2(bits, seeds if bits > 2 else 3) for bits in pairs}
    draw_smollm2(runs, FOLDER / "quantization_smollm2.png")
    for bits, results in runs.items():
        full = results.estimate("full precision", "RTN").mean
        notes = [f"SmolLM2-135M, {bits} bits, groups and blocks of 64; full precision {full:.2f}"]
        criteria = [compare(results, *pair) for pair in pairs[bits]]
        conclude(results, COLUMNS, criteria, out / f"smollm2, {bits} bits", claim=claim, notes=notes)
