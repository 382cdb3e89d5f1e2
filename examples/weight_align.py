"""Does Weight Aligning give old and new classes a fair chance, and what do its parts do?

Ten classes arrive two at a time, with a small memory of exemplars. One network is trained step by step with each of
the methods below, and every step is measured twice on the same network: before the alignment, or before BiC's second
stage, and after.

    python examples/weight_align.py                    # scikit-learn's digits, five seeds
    python examples/weight_align.py --data mnist1d --out results/weight_align/mnist1d    # takes four times as long
"""

from functools import cache, partial
from pathlib import Path
from statistics import mean

from _harness import Column, Results, Settings, arguments, conclude, hush, run_all
from _incremental_baselines import BalancedHoldout, BiC, FitBiasLayer, JudgedByNearestMean, Probe
from _plots import draw_bars, draw_lines, plot

from lightning_weights.callbacks import WeightAligning
from lightning_weights.data import MNIST1D, ClassificationData, Digits, ExemplarMemory
from lightning_weights.modules import MLP, ClassIncrementalModule, ConvNet1d
from lightning_weights.runners import IncrementalRunner

STEPS = 5
FULL, CLIPPED = "KD + clipping + aligning", "KD + clipping"
METHODS = {
    "cross-entropy": {},
    "KD": {"kd": True},
    "KD + aligning": {"kd": True, "align": True},
    CLIPPED: {"kd": True, "clip": True},
    FULL: {"kd": True, "clip": True, "align": True},
    "BiC": {"kd": True, "bic": True},
}
BASELINES = ("cross-entropy", "KD", "BiC")
MEMORY = {"digits": 50, "mnist1d": 100}


@cache
def source(name: str) -> ClassificationData:
    """Return the data, which are the same for all seeds."""
    return {"mnist1d": MNIST1D, "digits": Digits}[name]()


def train_one(settings: Settings, seed: int, data: str, epochs: int) -> dict[str, float]:
    """Train on all groups and return percentages and γ."""
    hush()
    backbone = {"mnist1d": ConvNet1d, "digits": partial(MLP, 64, (128, 64), None)}[data]()
    options = {"lr": 0.05, "milestones": (), "kd_weight": "auto" if settings.get("kd") else 0.0}
    module = (BiC if settings.get("bic") else ClassIncrementalModule)(backbone, 64, **options)
    kind = BalancedHoldout if settings.get("bic") else JudgedByNearestMean
    # the order of the classes, the weights and the batches are the seed's
    groups = kind(source(data), [2] * STEPS, ExemplarMemory(MEMORY[data]), 1993 + seed, batch_size=64, seed=10 * seed)
    groups.nearest, groups.module = [], module
    before: list[dict[str, float]] = []
    aligning = WeightAligning(clip=bool(settings.get("clip")), align=bool(settings.get("align")))
    callbacks = [Probe(groups, before), FitBiasLayer() if settings.get("bic") else aligning]
    trainer = {"max_epochs": epochs, "accelerator": "cpu", "devices": 1, "barebones": True, "callbacks": callbacks}
    trainer |= {"limit_val_batches": 0}
    results = IncrementalRunner(trainer, module, groups, folder=None, seed=10 * seed).run()
    parts = zip(results.accuracy, results.old, results.new, strict=True)
    after = [{"all": 100 * accuracy, "old": 100 * (old or 0.0), "new": 100 * new} for accuracy, old, new in parts]
    nearest = {"nearest_average": mean(row["all"] for row in groups.nearest), "nearest_last": groups.nearest[-1]["all"]}
    return summary(before, after) | nearest


def summary(before: list[dict[str, float]], after: list[dict[str, float]]) -> dict[str, float]:
    """Return one number per name: accuracies after each step, before and after, and γ."""
    values = {"average": mean(row["all"] for row in after)}
    values |= {f"seen_after_{step}": row["all"] for step, row in enumerate(after)}
    for name in ("all", "old", "new"):
        values[f"last_{name}"], values[f"raw_{name}"] = after[-1][name], before[-1][name]
        values[f"gain_{name}"] = after[-1][name] - before[-1][name]
    gammas = {step: row["gamma"] for step, row in enumerate(before) if "gamma" in row}
    values |= {f"gamma_{step}": gamma for step, gamma in gammas.items()}
    return values | {"gamma": mean(gammas.values())}


def draw(results: Results, path: Path) -> None:
    """Draw accuracy over the steps, at the last one, and γ."""
    with plot(path, widths=(4.2, 4.2, 4.2), height=4.3) as (left, middle, right):
        draw_lines(left, results, {2 * step + 2: f"seen_after_{step}" for step in range(STEPS)}, BASELINES)
        left.set(title="accuracy on all classes seen", xlabel="classes seen", ylabel="%")
        left.figure.legend(loc="outside lower center", ncols=6)
        draw_bars(middle, results, "last_all", BASELINES)
        middle.set(title="accuracy after the last step", xlabel="%, with standard error")
        draw_lines(right, results, {step: f"gamma_{step}" for step in range(1, STEPS)}, BASELINES)
        right.axhline(1.0, color="#404040", linewidth=0.8)
        right.set(title="γ: mean norm of old rows / new rows", xlabel="step")
        right.set_xticks(range(1, STEPS))


def report(results: Results, data: str, out: Path) -> None:
    """Print what came out, next to what was asked."""
    steps = [f"gamma_{step}" for step in range(1, STEPS)]
    below = [value < 1 for step in steps for value in results.values(step, FULL).values()]
    notes = [
        f"data: {data}, 5 groups of 2 classes, memory of {MEMORY[data]} exemplars\n"
        "average: mean over the steps of the accuracy on all classes seen, in %\n"
        "last, old, new: accuracy after the last step on all classes, on the old and on the new ones, in %\n"
        "γ: ratio of the mean norms before aligning, mean over the steps\n"
        "nearest mean: as last, but by the nearest mean of exemplars; with KD alone, that is how iCaRL classifies",
        f"γ of {FULL}: {', '.join(f'{results.estimate(step, FULL):.2f}' for step in steps)}; "
        f"below 1 in {sum(below)} of {len(below)} steps",
    ]
    notes += [
        f"{method}, same network before and after: all {results.estimate('gain_all', method):+.1f}, old "
        f"{results.estimate('gain_old', method):+.1f}, new {results.estimate('gain_new', method):+.1f} points"
        for method in ("KD + aligning", FULL, "BiC")
    ]
    gain, old, new = (results.estimate(f"gain_{name}", FULL) for name in ("all", "old", "new"))
    largest = max(results.estimate(step, FULL).mean for step in steps)
    unclipped = results.estimate("gain_all", "KD + aligning")
    clipped, plain = results.difference("average", FULL, CLIPPED), results.difference("last_all", FULL, "KD")
    criteria = [
        (f"with clipping the mean γ of every step is below 1: at most {largest:.2f}", largest < 1),
        (f"aligning raises the last accuracy of the same network: {gain:+.1f}", gain.mean > 2 * gain.error),
        (f"old classes gain, new ones lose: {old:+.1f}, {new:+.1f}", old.mean > 0 > new.mean),
        (f"the average is higher than without aligning: {clipped:+.1f}", clipped.mean > 0),
        (f"without clipping, aligning does not help after KD: {unclipped:+.1f}", unclipped.mean <= 0),
        (f"the last accuracy is higher than that of KD alone: {plain:+.1f}", plain.mean > 0),
    ]
    columns = [Column("average", "average"), Column("last_all", "last"), Column("last_old", "old")]
    columns += [Column("last_new", "new"), Column("gamma", "γ", ".2f"), Column("nearest_last", "nearest mean")]
    claim = "clipping and aligning are fair to old and new classes"
    conclude(results, columns, criteria, out, claim=claim, notes=notes)


def main() -> None:
    parser = arguments("weight_align", "Class-incremental learning with Weight Aligning, its parts, BiC and iCaRL.")
    parser.add_argument("--data", choices=MEMORY, default="digits", help="data set (%(default)s)")
    parser.add_argument("--epochs", type=int, default=40, help="epochs per step (%(default)s)")
    options = parser.parse_args()
    common = {"data": options.data, "epochs": options.epochs}
    shared = {"watch": "average", "common": common, "resume": options.resume, "workers": options.workers}
    results = run_all(METHODS, range(options.seeds), partial(train_one, **common), options.out, **shared)
    draw(results, options.out / "weight_align.png")
    report(results, options.data, options.out)


if __name__ == "__main__":
    main()
