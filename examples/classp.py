"""Does CLASSP forget less than SGD, Adam and Adagrad, and what do tuned EWC and SI reach that keep more per weight?

Three tasks (digits, then the same digits under two fixed permutations of the pixels) are learned one after another by
one network with one head, without replay. Accuracy and forgetting are measured on 500 held-out images of every task.

    python examples/classp.py                  # five seeds of the settings below
    python examples/classp.py --tune           # the grid that they came from; takes half an hour
"""

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from _baselines import EWC, SI
from _grid import tune
from _harness import Column, Results, Settings, arguments, conclude, quiet_trainer, run_all
from _plots import draw_bars, draw_lines, plot
from _probes import UpdatedShare, numbers_kept
from lightning.pytorch import Callback

from lightning_weights.callbacks import CLASSPPhases, TaskStream
from lightning_weights.callbacks.task_stream import format_matrix
from lightning_weights.data import PermutedDigits
from lightning_weights.functional.continual import average_accuracy, forgetting
from lightning_weights.modules import MLP, Classifier
from lightning_weights.optimizers import CLASSP

OURS, OURS_WITHOUT_THRESHOLD = "CLASSP, phases", "CLASSP, phases, τ₂ = 0"
# What `python examples/classp.py --tune` chose: best average accuracy over seeds 100, 101 and 102.
TUNED = {
    "SGD": {"lr": 0.1},
    "Adam": {"lr": 3e-4},
    "Adagrad": {"lr": 0.003},
    "EWC": {"lr": 1.0, "strength": 30.0},
    "SI": {"lr": 1.0, "strength": 0.003},
    "CLASSP, τ = 0": {"lr": 0.1},
    "CLASSP": {"lr": 0.2, "threshold": 1e-6},
    OURS: {"lr": 0.5},
    OURS_WITHOUT_THRESHOLD: {"lr": 0.3},
}
# Where the best value was the first or last of its list, the list was made longer.
GRID = {
    "SGD": {"lr": [0.003, 0.01, 0.03, 0.1, 0.3]},
    "Adam": {"lr": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]},
    "Adagrad": {"lr": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3]},
    "EWC": {"lr": [0.03, 0.1, 0.3, 1.0, 3.0], "strength": [10.0, 30.0, 60.0, 100.0, 200.0]},
    "SI": {"lr": [0.03, 0.1, 0.3, 1.0, 3.0], "strength": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]},
    "CLASSP, τ = 0": {"lr": [0.03, 0.1, 0.2, 0.3, 0.5, 1.0]},
    "CLASSP": {"lr": [0.01, 0.03, 0.1, 0.2, 0.3], "threshold": [1e-7, 1e-6, 1e-5, 1e-4]},
    OURS: {"lr": [0.03, 0.1, 0.2, 0.3, 0.5, 1.0]},
    OURS_WITHOUT_THRESHOLD: {"lr": [0.03, 0.1, 0.2, 0.3, 0.5, 1.0]},
}
TUNING_SEEDS = (100, 101, 102)
BASELINES = ("SGD", "Adam", "Adagrad", "EWC", "SI")


def ingredients(settings: Settings, epochs: int) -> tuple[Any, list[Callback], float | None]:
    """Return what makes the optimizer, the callbacks, and the norm that gradients are clipped to."""
    method, lr = settings["method"], settings["lr"]
    if method in ("SGD", "Adam", "Adagrad"):
        return partial(getattr(torch.optim, method), lr=lr), [], None
    if method in ("EWC", "SI"):
        penalty = {"EWC": EWC, "SI": SI}[method](settings["strength"], epochs)
        return partial(torch.optim.SGD, lr=lr), [penalty], 1.0  # unclipped, a strong penalty diverges
    later = {OURS: 1e-4, OURS_WITHOUT_THRESHOLD: 0.0}
    phases = [CLASSPPhases(later_threshold=later[method], unit="task")] if method in later else []
    return partial(CLASSP, lr=lr, threshold=settings.get("threshold", 0.0)), phases, None


def train_one(settings: Settings, seed: int, tasks: int, epochs: int) -> dict[str, float]:
    """Train on all tasks and return percentages."""
    optimizer, callbacks, clip = ingredients(settings, epochs)
    stream, share = TaskStream(epochs_per_task=epochs), UpdatedShare()
    trainer = quiet_trainer(
        max_epochs=tasks * epochs,
        check_val_every_n_epoch=epochs,
        gradient_clip_val=clip,
        callbacks=[stream, share, *callbacks],
    )
    model = Classifier(MLP(64, (128,), 10), optimizer=optimizer)
    trainer.fit(model, datamodule=PermutedDigits(tasks, batch_size=32, test_size=500, seed=seed))
    cells = {f"task_{j}_after_{i}": 100 * stream.matrix[i, j] for i, j in product(range(tasks), repeat=2)}
    seen = {f"seen_after_{i}": 100 * average_accuracy(stream.matrix, after=i) for i in range(tasks)}
    return {
        "average_accuracy": seen[f"seen_after_{tasks - 1}"],
        "forgetting": 100 * forgetting(stream.matrix),
        "updated": 100 * share.mean(),
        "state": numbers_kept(trainer.optimizers[0], callbacks),
        **seen,
        **cells,
    }


def draw(results: Results, tasks: int, path: Path) -> None:
    """Draw accuracy over the stream, at its end, and forgetting."""
    with plot(path, widths=(4.2, 4.2, 2.8), height=4.1) as (left, middle, right):
        draw_lines(left, results, {i + 1: f"seen_after_{i}" for i in range(tasks)}, BASELINES)
        left.set(title="accuracy on the tasks learned so far", xlabel="tasks learned", ylabel="%")
        left.set_xticks(range(1, tasks + 1))
        left.figure.legend(loc="outside lower center", ncols=5)
        draw_bars(middle, results, "average_accuracy", BASELINES)
        middle.set(title="average accuracy at the end (more is better)", xlabel="%, with standard error", xlim=(0, 105))
        draw_bars(right, results, "forgetting", BASELINES)
        right.set(title="forgetting (less is better)", xlabel="points, with standard error", yticklabels=[])


def report(results: Results, tasks: int, out: Path) -> None:
    """Print what came out, next to what was asked."""
    shown = next(run for run in results.runs if run.method == OURS)
    cells = [[shown.metrics[f"task_{j}_after_{i}"] / 100 for j in range(tasks)] for i in range(tasks)]
    notes = [
        "accuracy: mean over all tasks after the last one, in %\n"
        "forgetting: points lost since a task's best accuracy\n"
        "changed: weights that a step gave another value, in %\n"
        "state: numbers that the method keeps per weight",
        f"{OURS}, seed {shown.seed}:\n{format_matrix(torch.tensor(cells))}",
    ]
    for other in ("EWC", "SI"):
        gain = results.difference("average_accuracy", OURS, other)
        word = "level within two standard errors" if gain.within_noise() else "better" if gain.mean > 0 else "worse"
        notes.append(f"{OURS} against tuned {other}: {gain:+.1f} points of average accuracy: {word}")
    criteria = []
    for other, least in (("SGD", 9), ("Adam", 7), ("Adagrad", 5)):
        gain = results.difference("average_accuracy", OURS, other)
        text = f"{OURS} beats {other} by at least {least} points of average accuracy: {gain:+.1f}"
        criteria.append((text, gain.mean >= least))
    lost, allowed = results.estimate("forgetting", OURS), results.estimate("forgetting", "SGD").mean / 2
    criteria.append((f"it forgets at most half as much as SGD, {allowed:.1f} points: {lost}", lost.mean <= allowed))
    columns = [
        Column("average_accuracy", "accuracy"),
        Column("forgetting", "forgetting"),
        Column("updated", "changed", ".0f"),
        Column("state", "state", ".0f"),
    ]
    claim = "more accurate than SGD, Adam and Adagrad with half of SGD's forgetting"
    conclude(results, columns, criteria, out, claim=claim, notes=notes)


def main() -> None:
    parser = arguments("classp", "Forgetting with CLASSP against SGD, Adam, Adagrad and tuned EWC and SI.")
    parser.add_argument("--tasks", type=int, default=3, help="number of tasks (%(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="epochs per task (%(default)s)")
    parser.add_argument("--tune", action="store_true", help="search the grid instead, on seeds of its own")
    options = parser.parse_args()
    common = {"tasks": options.tasks, "epochs": options.epochs}
    train = partial(train_one, **common)
    if options.tune:
        again = {"common": common, "resume": options.resume, "workers": options.workers}
        tune(GRID, TUNING_SEEDS, train, options.out, best="average_accuracy", **again)
        return
    methods = {method: {"method": method, **settings} for method, settings in TUNED.items()}
    shared = {"watch": "average_accuracy", "common": common, "resume": options.resume, "workers": options.workers}
    results = run_all(methods, range(options.seeds), train, options.out, **shared)
    draw(results, options.tasks, options.out / "classp.png")
    report(results, options.tasks, options.out)


if __name__ == "__main__":
    main()
