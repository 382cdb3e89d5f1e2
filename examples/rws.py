"""Does the part of robustness in a few shallow layers, added to a clean network, make it robust?

Per seed a network is pre-trained on ten classes and fine-tuned from there on classes 0 to 4, once on clean data and
once on each of five corruptions, with the same seed and order; the same for classes 5 to 9, whose signatures are
transferred. Every row changes the clean network of classes 0 to 4 in another way and tests it on the corrupted test
samples. Letters are another data set, printed ones from A to J: there the weights before and the transferred signatures
are those of handwritten digits.

    python examples/rws.py                                   # digits of 16 x 16 pixels and a small VGG, three seeds
    python examples/rws.py --settings letters-vgg digits-resnet mnist1d-vgg mnist1d-resnet
    python examples/rws.py --epochs 60 --seeds 5

MNIST-1D's values from -4 to 4 standard deviations count as 0 to 1.

Strengths of the corruptions are in _rws_training.py, far above those of severity 5, which is mild at this size.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from _harness import Column, Estimate, Results, arguments, conclude, run_all
from _plots import COLOURS, draw_bars, plot
from _rws_rows import (
    ALL,
    BASELINES,
    BLUR,
    CLEAN,
    FEW,
    LEVELS,
    ORIGINS,
    PACKED,
    SCALES,
    WRONG,
    Plan,
    by_row,
    scale_row,
    train_one,
)
from _rws_training import STRENGTHS

RECIPES = {
    "digits-vgg": Plan(pretraining=12, epochs=40, lr=0.1),
    "digits-resnet": Plan(pretraining=6, epochs=20, lr=0.1),
    "letters-vgg": Plan(pretraining=12, epochs=40, lr=0.1),
    "mnist1d-vgg": Plan(pretraining=60, epochs=40, lr=0.1),
    "mnist1d-resnet": Plan(pretraining=6, epochs=20, lr=0.1),
}


def judge(results: Results) -> list[tuple[str, bool]]:
    """Return what the paper says, and whether it holds here."""
    right, wrong, packed = (
        results.difference("corrupted", *pair) for pair in ((FEW, CLEAN), (WRONG, CLEAN), (PACKED, FEW))
    )
    every, drop = results.difference("corrupted", ALL, CLEAN), results.difference("clean", FEW, CLEAN)
    blur = [results.estimate(BLUR, scale_row(scale)).mean for scale in SCALES if scale <= 1]
    restored = min(results.values("restored", "facts").values())
    return [
        (f"the right signature in {FEW[5:]} raises corrupted accuracy: {right:+.1f}", right.mean > 0),
        (f"the one in all layers does: {every:+.1f}", every.mean > 0 and not every.within_noise()),
        (f"a wrong one does not: {wrong:+.1f}", wrong.mean < right.mean and (wrong.mean <= 0 or wrong.within_noise())),
        (f"{LEVELS} levels cost less than 1 point: {packed:+.1f}", packed.mean > -1),
        (f"clean accuracy falls by less than 3 points: {drop:+.1f}", drop.mean > -3),
        (f"accuracy on blur rises with α up to 1: {', '.join(f'{value:.1f}' for value in blur)}", blur == sorted(blur)),
        ("every bit is restored", restored == 1),
    ]


def describe(results: Results, setting: str, plan: Plan) -> list[str]:
    """Return what the table does not say."""
    facts = next(run for run in results.runs if run.method == "facts").metrics
    data = setting.split("-")[0]
    origin, classes = ORIGINS[data]
    dead = ", ".join(f"{count:g}" for count in results.values("dead", "facts").values())
    layers = [metric for metric in facts if metric.startswith("layer")]
    moved = ", ".join(f"{results.estimate(metric, 'facts'):.2f}" for metric in layers)
    alike = [results.estimate(f"{kind} corruption", "facts") for kind in ("same", "other")]
    strengths = ", ".join(f"{name} {value:g}" for name, value in STRENGTHS[data].items())
    return [
        f"{setting}: {plan.pretraining} epochs before, {plan.epochs} of fine-tuning, learning rate {plan.lr:g}; "
        f"accuracies in %, corrupted ones as means over {strengths}",
        f"relative difference between robust and clean networks, layer by layer: {moved}",
        f"transferred signatures come from classes {classes[0]} to {classes[-1]} of {origin}",
        f"cosine between signatures: {alike[0]:.2f} for one corruption and these, {alike[1]:.2f} for another "
        f"corruption and the same samples",
        f"a signature of {FEW[5:]} with {LEVELS} levels is {facts['saving']:.1f} times smaller than the network",
        f"networks that are dead to their inputs, with one class for all validation samples of their kind: {dead} of "
        f"{2 + 2 * len(STRENGTHS[data])}, seed by seed; they count as the others do",
    ]


def table(results: Results) -> Results:
    """Return the rows that the table shows."""
    hidden = {"facts", *map(scale_row, SCALES)}
    return Results([run for run in results.runs if run.method not in hidden])


def draw(found: dict[str, Results], path: Path) -> None:
    """Draw accuracies of the first setting, how far layers moved in all, and re-scaling in the first."""
    first = next(iter(found.values()))
    shown = table(first)
    with plot(path, widths=(5.6, 3.4, 3.4), height=6.0) as (left, middle, right):
        draw_bars(left, shown, "corrupted", [name for name in BASELINES if name in shown.methods])
        left.set(title="corrupted test accuracy, %")
        for number, (setting, results) in enumerate(found.items()):
            facts = next(run for run in results.runs if run.method == "facts").metrics
            layers = [metric for metric in facts if metric.startswith("layer")]
            line(middle, range(1, len(layers) + 1), [results.estimate(m, "facts") for m in layers], setting, number)
        middle.set(title="robust minus clean, relative", xlabel="layer or block", ylim=(0, None))
        for number, name in enumerate((*STRENGTHS[next(iter(found)).split("-")[0]], "clean")):
            line(right, SCALES, [first.estimate(name, scale_row(scale)) for scale in SCALES], name, number)
        right.set(title=f"{FEW} times α", xlabel="α", ylabel="test accuracy, %")
        for axis in (middle, right):
            axis.legend()


def line(axis: Any, places: Any, estimates: list[Estimate], label: str, number: int) -> None:
    """Draw means with standard errors."""
    look = {"color": COLOURS[number % len(COLOURS)], "marker": "o", "markersize": 4, "linewidth": 1.3}
    axis.errorbar(list(places), [e.mean for e in estimates], [e.error for e in estimates], label=label, **look)


def main() -> None:
    parser = arguments("rws", "Robustness as something that is added to weights.", seeds=3)
    parser.add_argument("--settings", nargs="+", choices=RECIPES, default=["digits-vgg"], help="data and network")
    parser.add_argument("--pretraining", type=int, help="epochs on ten classes, instead of the setting's own")
    parser.add_argument("--epochs", type=int, help="epochs of each fine-tuning, instead of the setting's own")
    parser.add_argument("--lr", type=float, help="learning rate, instead of the setting's own")
    options = parser.parse_args()
    given = {name: getattr(options, name) for name in ("pretraining", "epochs", "lr")}
    given = {name: value for name, value in given.items() if value is not None}
    plans = {setting: replace(RECIPES[setting], **given) for setting in options.settings}
    settings = {setting: {"setting": setting, **asdict(plan)} for setting, plan in plans.items()}
    shared = {"resume": options.resume, "workers": options.workers}
    results = run_all(settings, range(options.seeds), train_one, options.out, watch="corrupted", **shared)
    found = {setting: by_row([r for r in results.runs if r.method == setting]) for setting in options.settings}
    for setting, own in found.items():
        shown = table(own)
        columns = [Column("corrupted", "corrupted"), Column("clean", "clean")]
        columns += [Column(name, name.replace("_", " ")) for name in STRENGTHS[setting.split("-")[0]]]
        notes = describe(own, setting, plans[setting])
        conclude(shown, columns, judge(own), options.out / setting, claim=f"{setting}: robust by a patch", notes=notes)
    draw(found, options.out / "rws.png")


if __name__ == "__main__":
    main()
