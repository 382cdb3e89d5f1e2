"""Do normalised rows and projected gradients train as well as LoRA, DoRA, GaLore and AdamW, with less memory?

Three parts, each with every method at the best learning rate of its grid:

- fine-tuning: a network that knows upright digits learns 300 digits that lie on their side, low-rank and projected;
- mlp: the same network from random weights on upright digits, with whole directions that are projected (mode "full");
- lm: a small Llama from random weights on the bytes of Python's documentation.

    python examples/gradnorm_lorp.py                 # five seeds, of the language model three
    python examples/gradnorm_lorp.py --scale full    # the language model twice as wide, ten times as long, all seeds
    python examples/gradnorm_lorp.py --tune          # the grids that the settings came from
"""

from functools import partial
from pathlib import Path
from typing import Any

from _grid import tune
from _harness import Column, Results, arguments, conclude, run_all
from _plots import draw_bars, draw_lines, plot
from _projected_training import (
    ADAMW,
    DORA,
    FROZEN_LORA,
    FROZEN_OURS,
    FULL,
    FULL_8BIT,
    GALORE,
    LORA,
    MERGING,
    OURS,
    OURS_EXACT,
    OURS_HALF,
    OURS_QUARTER,
    fine_tuning,
    language_model,
    mlp_from_scratch,
)

LRS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SIZES = {"default": {"steps": 200, "width": 64}, "full": {"steps": 2000, "width": 128}}  # of the language model
TUNING_SEEDS = (100, 101, 102)
BASELINES = (LORA, DORA, GALORE, ADAMW, FROZEN_LORA)
# What `python examples/gradnorm_lorp.py --tune` chose: highest accuracy, lowest perplexity.
TUNED: dict[str, dict[str, dict[str, float]]] = {
    "fine-tuning": {
        LORA: {"lr": 0.01},
        DORA: {"lr": 0.01},
        GALORE: {"lr": 0.01},
        OURS: {"lr": 0.01},
        OURS_EXACT: {"lr": 0.01},
        OURS_HALF: {"lr": 0.01},
        OURS_QUARTER: {"lr": 0.01},
    },
    "mlp": {
        ADAMW: {"lr": 0.003},
        GALORE: {"lr": 0.03, "scale": 0.25},
        FULL: {"lr": 0.01, "scale": 0.25},
        FROZEN_LORA: {"lr": 0.01},
        FROZEN_OURS: {"lr": 0.01},
        MERGING: {"lr": 0.01},
    },
    "lm": {
        ADAMW: {"lr": 0.003},
        GALORE: {"lr": 0.1, "scale": 0.25},
        FULL: {"lr": 0.1, "scale": 0.25},
        FULL_8BIT: {"lr": 0.1, "scale": 0.25},  # as in 32 bits
    },
}
_BOTH = {"lr": LRS, "scale": (0.25, 1.0)}
GRID: dict[str, dict[str, dict[str, Any]]] = {
    "fine-tuning": {method: {"lr": LRS} for method in TUNED["fine-tuning"]},
    "mlp": {method: _BOTH if method in (GALORE, FULL) else {"lr": LRS} for method in TUNED["mlp"]},
    "lm": {ADAMW: {"lr": LRS}, **{method: {"lr": (*LRS, 0.3), "scale": (0.25,)} for method in (GALORE, FULL)}},
}
BEST = {"fine-tuning": "accuracy", "mlp": "accuracy", "lm": "minus_loss"}


def train_one(settings: dict[str, Any], seed: int, part: str, **size: int) -> dict[str, float]:
    """Train once and return what came out; the size is that of the language model."""
    if part == "fine-tuning":
        return fine_tuning(settings, seed)
    if part == "mlp":
        return mlp_from_scratch(settings, seed)
    metrics = language_model(settings, seed, **size)
    return {**metrics, "minus_loss": -metrics["loss"]}


def at_every_rate(settings: dict[str, Any], seed: int) -> dict[str, float]:
    """Fine-tune with all learning rates: the metrics at the tuned one, and some at each."""
    runs = {lr: fine_tuning({**settings, "lr": lr}, seed) for lr in LRS}
    shown = {f"{name}_{lr:g}": runs[lr][name] for lr in LRS for name in ("accuracy", "loss_early")}
    return {**runs[settings["lr"]], **shown}


def from_scratch(settings: dict[str, Any], seed: int) -> dict[str, float]:
    """Train from scratch with the tuned settings; GaLore and ours once more with the same ones for both."""
    metrics = mlp_from_scratch(settings, seed)
    if settings["method"] in (GALORE, FULL):
        metrics["shared"] = mlp_from_scratch({**settings, "lr": 0.01, "scale": 0.25}, seed)["accuracy"]
    return metrics


def draw(results: dict[str, Results], path: Path) -> None:
    """Draw the range of good learning rates, and both kinds of training from scratch."""
    with plot(path, widths=(4.6, 3.9, 3.9), height=4.1) as (left, middle, right):
        places = {float(number): f"accuracy_{lr:g}" for number, lr in enumerate(LRS)}
        draw_lines(left, results["fine-tuning"], places, BASELINES)
        left.set_xticks(range(len(LRS)), [f"{lr:g}" for lr in LRS])
        left.set(title="fine-tuning: accuracy at each learning rate", xlabel="learning rate", ylabel="%")
        left.legend(loc="lower center", fontsize=7)
        draw_bars(middle, results["mlp"], "accuracy", BASELINES)
        middle.set(title="MLP from scratch: accuracy", xlabel="%, with standard error")
        draw_bars(right, results["lm"], "perplexity", BASELINES, ".2f")
        right.set(title="Llama from scratch: perplexity per byte", xlabel="less is better")


def report_fine_tuning(results: Results, out: Path) -> None:
    """Print what came out of the fine-tuning, next to what was asked."""
    criteria = []
    for other in (LORA, DORA):
        gaps = {lr: results.difference(f"loss_early_{lr:g}", OURS, other) for lr in (1e-2, 3e-2)}
        text = ", ".join(f"{gap:+.2f} at {lr:g}" for lr, gap in gaps.items())
        criteria.append(
            (f"{OURS}: less loss in steps 20 to 40 than {other}: {text}", max(g.mean for g in gaps.values()) < 0)
        )
    half, share = results.difference("accuracy", OURS_HALF, DORA), _share(results, OURS_HALF, DORA)
    criteria.append(
        (
            f"{OURS_HALF}: at most 3 points below DoRA with 56 % of its state: {half:+.1f}, {share:.0f} %",
            half.mean >= -3 and share <= 56,
        )
    )
    for other in (LORA, DORA, GALORE):
        gain = results.difference("accuracy", OURS, other)
        criteria.append(
            (f"{OURS}: more accurate than {other}, each at its best rate: {gain:+.1f}", gain.mean > 2 * gain.error)
        )
    rate = results.difference("accuracy_0.03", OURS, LORA)
    criteria.append((f"{OURS}: more accurate than LoRA at the rate 0.03: {rate:+.1f}", rate.mean > 2 * rate.error))
    columns = [Column("accuracy", "accuracy"), Column("loss_early", "loss 20-40", ".2f")]
    columns += [Column("loss_late", "last 20", ".2f"), Column("kept", "upright", ".0f")]
    columns += [Column(f"accuracy_{lr:g}", f"at {lr:g}") for lr in LRS] + [Column("state_bytes", "bytes", ".0f")]
    note = (
        "accuracy, upright: held-out digits on their side, and as they were learned first, in %; bytes: optimizer state"
    )
    conclude(results, columns, criteria, out, claim="faster and more accurate than LoRA, DoRA and GaLore", notes=[note])


def report_mlp(results: Results, out: Path) -> None:
    """Print what came out of the MLP."""
    shared, best = (results.difference(name, FULL, GALORE) for name in ("shared", "accuracy"))
    dense, share = results.difference("accuracy", FULL, ADAMW), _share(results, FULL, ADAMW)
    frozen = results.difference("accuracy", FULL, FROZEN_OURS)
    criteria = [
        (f"{FULL}: at least as accurate as GaLore at rate 0.01 and scale 0.25: {shared:+.1f}", shared.mean >= 0),
        (f"{FULL}: at least as accurate as GaLore, each at its best: {best:+.1f}", best.mean >= 0),
        (
            f"{FULL}: at most 2 points below AdamW with a sixth of its state: {dense:+.1f}, {share:.0f} %",
            dense.mean >= -2 and share < 17,
        ),
        (f"{FULL}: more accurate than a frozen random W₀: {frozen:+.1f}", frozen.mean > 0),
    ]
    columns = [Column("accuracy", "accuracy"), Column("loss_early", "loss 20-40", ".2f")]
    columns += [Column("loss_late", "last 20", ".2f"), Column("state_bytes", "bytes", ".0f")]
    note = "accuracy: held-out upright digits, in %; bytes: optimizer state"
    conclude(results, columns, criteria, out, claim="no worse than GaLore, close to AdamW", notes=[note])


def report_lm(results: Results, out: Path) -> None:
    """Print what came out of the language model."""
    galore, dense = (results.difference("loss", FULL, other) for other in (GALORE, ADAMW))
    bits, share = results.difference("loss", FULL_8BIT, FULL), _share(results, FULL_8BIT, ADAMW)
    criteria = [
        (f"{FULL}: loss not above GaLore's: {galore:+.3f}", galore.mean <= 0),
        (f"{FULL}: loss not above AdamW's: {dense:+.3f}", dense.mean <= 0),
        (f"8 bits cost less than 0.01 of loss: {bits:+.3f}", bits.mean < 0.01),
        (f"with 8 bits a third of AdamW's state: {share:.0f} %", share < 34),
    ]
    columns = [
        Column("loss", "loss", ".3f"),
        Column("perplexity", "perplexity", ".2f"),
        Column("state_bytes", "bytes", ".0f"),
    ]
    note = "loss, perplexity: per byte of held-out documents; bytes: optimizer state"
    conclude(results, columns, criteria, out, claim="as good as GaLore and AdamW", notes=[note])


def _share(results: Results, method: str, other: str) -> float:
    """Return the optimizer state of one method in % of another's."""
    return 100 * results.estimate("state_bytes", method).mean / results.estimate("state_bytes", other).mean


def main() -> None:
    parser = arguments("gradnorm_lorp", "Weight-normalised low-rank training against LoRA, DoRA, GaLore and AdamW.")
    parser.add_argument("--scale", choices=SIZES, default="default", help="size of the language model's run")
    parser.add_argument("--steps", type=int, help="steps of the language model, instead of those of the scale")
    parser.add_argument("--width", type=int, help="width of the language model, instead of that of the scale")
    parser.add_argument("--tune", action="store_true", help="search the grids instead, on seeds of their own")
    options = parser.parse_args()
    given = {"steps": options.steps, "width": options.width}
    size = SIZES[options.scale] | {name: value for name, value in given.items() if value}
    again = {"resume": options.resume, "workers": options.workers}
    if options.tune:
        for part, grid in GRID.items():
            seeds = TUNING_SEEDS[:1] if part == "lm" else TUNING_SEEDS
            common = {"part": part, **(size if part == "lm" else {})}
            train = partial(train_one, **common)
            tune(grid, seeds, train, options.out / "tuning" / part, best=BEST[part], common=common, **again)
        return
    runs = {"fine-tuning": at_every_rate, "mlp": from_scratch, "lm": partial(train_one, part="lm", **size)}
    results = {}
    for part, train in runs.items():
        methods = {method: {"method": method, **settings} for method, settings in TUNED[part].items()}
        seeds = range(min(options.seeds, 3) if part == "lm" and options.scale == "default" else options.seeds)
        shared = {
            "watch": "perplexity" if part == "lm" else "accuracy",
            "common": size if part == "lm" else {},
        }
        results[part] = run_all(methods, seeds, train, options.out / part, **shared, **again)
    draw(results, options.out / "gradnorm_lorp.png")
    report_fine_tuning(results["fine-tuning"], options.out / "fine-tuning")
    report_mlp(results["mlp"], options.out / "mlp")
    report_lm(results["lm"], options.out / "lm")


if __name__ == "__main__":
    main()
