"""Is a regularized stack of 72 models better than simpler ways to combine them?

Three tables: digits read off as numbers, the progress of diabetes, and exam scores of made-up students, whose noise has
a standard deviation of 8. Each is divided anew for every seed. 68 models of scikit-learn and four small networks
predict every row without having seen it, in five folds, and are fitted once more to all rows for the test; all ways to
combine them get these same predictions.

    python examples/regularized_stacking.py                # three seeds

Nothing is tuned on anything that is reported: thresholds and grids are the paper's. Its thresholds are in squared units
of the target. Here they are shares of the target's variance, and as the paper has them in a row of their own.
"""

import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from _harness import Column, Estimate, Results, Settings, arguments, conclude, run_all
from _plots import COLOURS, draw_bars, plot
from _stacking_models import TESTS, columns
from _stacking_rivals import RIVALS

from lightning_weights.modules import RegularizedStacking

DATA = tuple(TESTS)
MEAN, BEST, OLS, NNLS, GREEDY = RIVALS
RIDGE, DEDUP, VARIANCE, STATISTICS, INTERACTIONS = "ridge", "+ dedup", "+ variance", "+ statistics", "+ interactions"
OURS, ABSOLUTE, NESTED = "+ blend: whole method", "thresholds in units", "whole method, nested"
PLAIN = {"tau_mse_mode": "relative", "statistics": False, "interactions": False, "learners": ["ridge"]}
ALL = {"tau_corr": 1.0, "tau_mse": 0.0, "tau_var": 0.0}  # copies in every bit are dropped all the same
METHODS: dict[str, Settings] = {
    **{name: {"rival": name} for name in RIVALS},
    RIDGE: {**PLAIN, **ALL},
    DEDUP: {**PLAIN, "tau_var": 0.0},
    VARIANCE: PLAIN,
    STATISTICS: {**PLAIN, "statistics": True},
    INTERACTIONS: {**PLAIN, "statistics": True, "interactions": True},
    OURS: {"tau_mse_mode": "relative"},
    ABSOLUTE: {},
    NESTED: {"tau_mse_mode": "relative", "nested": True},
}
BASELINES = (*RIVALS, RIDGE)
WIDE, RIDGE_MARGIN, GREEDY_MARGIN = 1.0, 0.5, 1.0  # in percent of the error


def prepare(settings: Settings, seed: int, folder: Path) -> dict[str, float]:
    """Train the base models, which all methods take from the folder."""
    found = columns(settings["data"], seed, folder)
    errors = (found["test"] - found["test_y"][:, None]).square().mean(0).sqrt()
    return {"models": len(errors), "best_test": float(errors.min()), "worst_test": float(errors.max())}


def train_one(settings: Settings, seed: int, folder: Path) -> dict[str, float]:
    """Combine the models on every table, and measure on rows that no model was fitted on."""
    measured = {"fit_seconds": 0.0}
    for data in DATA:
        found = columns(data, seed, folder)
        begun = time.process_time()
        predicted, kept = combine(settings, found)
        measured["fit_seconds"] += time.process_time() - begun
        measured[f"rmse_{data}"] = float((predicted - found["test_y"]).square().mean().sqrt())
        measured |= {f"{name}_{data}": value for name, value in kept.items()}
    return measured


def combine(settings: Settings, found: dict[str, Any]) -> tuple[torch.Tensor, dict[str, float]]:
    """Return predictions of the test rows, how many models they need, and what else there is to know."""
    if "rival" in settings:
        weight, constant = RIVALS[settings["rival"]](found["oof"], found["y"])
        return found["test"] @ weight + constant, {"kept": float((weight != 0).sum())}
    stack = RegularizedStacking(**settings).fit(found["oof"], found["y"], names=found["names"])
    report = stack.report_
    known = {
        "kept": float(len(report["selected"])),
        "kappa_before": report["condition_before"],
        "kappa_after": report["condition_after"],
    }
    known |= {f"weight_{name}": learner["weight"] for name, learner in report["learners"].items()}
    return stack.predict(found["test"]), known


def gain(results: Results, method: str, other: str, data: tuple[str, ...] = DATA) -> Estimate:
    """Return by how many percent the error of a method is smaller than that of another, over seeds and tables."""
    values = []
    for table in data:
        others = results.values(f"rmse_{table}", other)
        values += [100 * (1 - v / others[seed]) for seed, v in results.values(f"rmse_{table}", method).items()]
    return Estimate.of(values)


def draw(results: Results, path: Path) -> None:
    """Draw the errors on all tables, and how many models each way needs."""
    names = {"digits": "digits", "diabetes": "diabetes", "scores": "exam scores"}
    with plot(path, widths=(4.2, 2.7, 2.7, 2.6), height=3.9) as (*axes, sizes):
        for axis, data in zip(axes, DATA, strict=True):
            draw_bars(axis, results, f"rmse_{data}", BASELINES, ".3f")
            means = [results.estimate(f"rmse_{data}", method).mean for method in results.methods]
            axis.set_xlim(0.98 * min(means), 1.02 * sorted(means)[-2] + 0.25 * (sorted(means)[-2] - min(means)))
            axis.set_title(f"{names[data]}: test RMSE")
        draw_bars(sizes, results, "kept_scores", BASELINES, ".0f")
        sizes.set_title("exam scores: models needed")
        sizes.axvline(72, color=COLOURS[3], linewidth=0.8)
        for axis in (*axes[1:], sizes):
            axis.set_yticklabels([])


def report(results: Results, out: Path) -> None:
    """Print what came out, next to what was asked."""
    table = [Column(f"rmse_{data}", f"RMSE {data}", ".4g" if data == "diabetes" else ".4f") for data in DATA]
    table += [Column(f"kept_{data}", f"models {data}", ".0f") for data in DATA]
    table.append(Column("fit_seconds", "CPU seconds, all three", ".3f"))
    kappas = {
        when: [results.estimate(f"kappa_{when}_{data}", OURS).mean for data in DATA] for when in ("before", "after")
    }
    fewer = [results.estimate(f"kept_{data}", OURS).mean for data in DATA]
    against = {name: gain(results, OURS, name) for name in (MEAN, OLS, RIDGE, NNLS, GREEDY, BEST)}
    criteria = [
        (f"the error is smaller than the mean's, in percent: {against[MEAN]:+.2f}", against[MEAN].mean > WIDE),
        (f"than that of least squares: {against[OLS]:+.2f}", against[OLS].mean > WIDE),
        (
            f"at most {RIDGE_MARGIN} % larger than that of ridge: {against[RIDGE]:+.2f}",
            against[RIDGE].mean > -RIDGE_MARGIN,
        ),
        (
            f"at most {GREEDY_MARGIN} % larger than that of greedy selection: {against[GREEDY]:+.2f}",
            against[GREEDY].mean > -GREEDY_MARGIN,
        ),
        (
            "the condition number of the correlations does not rise: "
            + "; ".join(f"{b:.2e} to {a:.2e}" for b, a in zip(*kappas.values(), strict=True)),
            all(after <= before for before, after in zip(*kappas.values(), strict=True)),
        ),
        (f"fewer than 72 models are needed: {', '.join(f'{count:.0f}' for count in fewer)}", max(fewer) < 72),
    ]
    stages = (RIDGE, DEDUP, VARIANCE, STATISTICS, INTERACTIONS, OURS)
    steps = [f"{name} {gain(results, name, before):+.2f}" for before, name in pairwise(stages)]
    learners = ("ridge", "lasso", "elasticnet")
    weights = [[results.estimate(f"weight_{name}_{data}", OURS).mean for name in learners] for data in DATA]
    notes = [
        f"smaller errors in percent, over all tables and seeds, against NNLS {against[NNLS]:+.2f}, the best single "
        f"model {against[BEST]:+.2f}",
        f"what each stage adds, in percent: {'; '.join(steps)}",
        f"weights of the learners: {'; '.join(', '.join(f'{w:.3f}' for w in row) for row in weights)}",
    ]
    claim = (
        "a regularized stack is far better than a mean and least squares, and not worse than ridge and greedy stacks"
    )
    conclude(results, table, criteria, out, claim=claim, notes=notes)


def main() -> None:
    parser = arguments("regularized_stacking", "Ways to combine 72 models.", seeds=3)
    options = parser.parse_args()
    models = options.out / "models"
    shared = {"resume": options.resume, "workers": options.workers}
    tables = {data: {"data": data} for data in DATA}
    run_all(tables, range(options.seeds), partial(prepare, folder=models), models, watch="best_test", **shared)
    train = partial(train_one, folder=models)
    results = run_all(METHODS, range(options.seeds), train, options.out, watch="rmse_scores", **shared)
    draw(results, options.out / "regularized_stacking.png")
    report(results, options.out)


if __name__ == "__main__":
    main()
