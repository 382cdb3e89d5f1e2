"""Is a network that grows out of two half-width ones better than one that grows otherwise, or does not grow?

Two members of width 8 are trained for 16 epochs each on MNIST-1D and put together, with every way to begin the new
blocks; the network of width 16 is then trained for 4 epochs. Beside it: a network of width 8, trained for as many
epochs and then widened by Net2Wider or padded with random weights, and networks of width 16 from scratch, with as many
floating-point operations in all, with a third more, and with a third of them, which are the epochs of a grown network.
Operations of training steps are counted by torch.utils.flop_counter, those of mixing included: convolutions and matrix
products, forward and backward.

    python examples/mixture_growth.py                  # three seeds
    python examples/mixture_growth.py --width 8        # members of width 4, which are too narrow for the task
    python examples/mixture_growth.py --tune           # learning rates of every method, on other seeds

Members are trained once per seed; each variant goes on from their checkpoint.
"""

import shutil
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _grid import tune
from _growing_networks import BATCH, GROW, Track, accuracy, batches, classifier, operations, signals, train
from _harness import Column, Results, Settings, arguments, conclude, quiet_trainer, run_all
from _plots import looks, plot
from lightning.pytorch import Callback

from lightning_weights.callbacks import ExactResume, MixtureGrowth
from lightning_weights.functional.whole_files import replacing_file
from lightning_weights.modules import PooledConvNet1d, mixturize, set_mode

WIDTH = 16
ZERO, PAPER = "growth, zero", "growth, orthogonal"
HALF, SCRATCH, LONGER, SHORT = "half width", "from scratch", "from scratch, 4/3", "from scratch, 1/3"
RIVALS = ("Net2Wider", "random padding")
# In the order in which they run: those that others go on from come first. Learning rates are what --tune found.
METHODS: dict[str, Settings] = {
    ZERO: {"init": "zero", "lr": 0.2, "grown_lr": 0.01},
    HALF: {"lr": 0.2},
    SCRATCH: {"share": 1.0, "lr": 0.2},
    LONGER: {"share": 4 / 3, "lr": 0.05},
    SHORT: {"share": 1 / 3, "lr": 0.1},
    PAPER: {"init": "orthogonal", "lr": 0.2, "grown_lr": 0.03},
    "growth, scaled 0.1": {"init": "scaled", "scale": 0.1, "lr": 0.2, "grown_lr": 0.1},
    "growth, none": {"init": "none", "lr": 0.2, "grown_lr": 0.03},
    "growth, copy": {"init": "copy", "scale": 0.0, "lr": 0.2, "grown_lr": 0.03},
    "Net2Wider": {"grow": "Net2Wider", "lr": 0.2, "grown_lr": 0.03},
    "random padding": {"grow": "random padding", "lr": 0.1, "grown_lr": 0.01},
}
WHOLE = (SCRATCH, LONGER, SHORT)
BASELINES = (HALF, *WHOLE, *RIVALS)
# the same rates for everybody, and for what is trained after growth those of it, too
AXES = {"lr": [0.05, 0.1, 0.2], "grown_lr": [0.01, 0.03, 0.1]}
GRID = {name: {axis: AXES[axis] for axis in AXES if axis in settings} for name, settings in METHODS.items()}
FIRST_TUNING_SEED = 100
X_AND_Y, TICKS = ("gflops", "accuracy"), (2, 3, 5, 10, 20, 50, 90)


@dataclass(frozen=True)
class Plan:
    """How large everything is: width of the whole network, epochs of a member, epochs after growth, signals."""

    width: int
    epochs: int
    grown: int
    samples: int

    def whole(self) -> PooledConvNet1d:
        return PooledConvNet1d(width=self.width)

    def equal_epochs(self) -> float:
        """Return for how many epochs a whole network has as many operations as members and a grown one."""
        network = mixturize(self.whole())
        half = operations(network)
        set_mode(network, "grown")
        return (2 * self.epochs * half + self.grown * operations(network)) / operations(self.whole())

    def file(self, name: str, lr: float, seed: int) -> str:
        """Return a name for what others go on from."""
        return f"{name}-{self.width}-{lr:g}-{self.epochs}-{self.samples}-{seed}.pt"


class KeepMembers(Callback):
    """Saves a checkpoint after the members' last epoch, and ends the run there."""

    def __init__(self, epochs: int, path: Path) -> None:
        self.epochs, self.path = epochs, path

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch + 1 == self.epochs:
            with replacing_file(self.path) as path:
                trainer.save_checkpoint(path)
            trainer.should_stop = True


def grow(settings: Settings, seed: int, folder: Path, plan: Plan) -> dict[str, Any]:
    """Train the members, unless there is a checkpoint of them, and go on from it with one kind of new blocks."""
    path = folder / plan.file("members", settings["lr"], seed)
    members = 2 * plan.epochs
    options: dict[str, Any] = {"member_epochs": (plan.epochs, plan.epochs), "verbose": False}
    options |= {"grown_lr": settings["grown_lr"], "grown_lr_min": 0.0, "grown_lr_cycles": 1, "grown_warmup_epochs": 0}

    def fit(callbacks: list[Callback], **resumed: Any) -> PooledConvNet1d:
        torch.manual_seed(seed)
        network = mixturize(plan.whole())
        trainer = quiet_trainer(max_epochs=members + plan.grown, callbacks=callbacks, limit_val_batches=0)
        trainer.fit(classifier(network, settings["lr"], plan.epochs), batches(plan.samples, seed), **resumed)
        return network

    if not path.exists():
        fit([MixtureGrowth(**options, coefficient_init="zero"), ExactResume(), KeepMembers(members, path)])
    scale = settings.get("scale", 1.0)
    growth = MixtureGrowth(**options, coefficient_init=settings["init"], coefficient_scale=scale, seed=seed)
    track = Track(plan.samples, start=members)
    network = fit([growth, ExactResume(), track], ckpt_path=path, weights_only=True)
    set_mode(network, "member0")
    half = operations(network)
    set_mode(network, "grown")
    return {"path": track.path, "growth_seconds": growth.growth_seconds, "steps": (half, operations(network))}


def widen(settings: Settings, seed: int, folder: Path, plan: Plan) -> dict[str, Any]:
    """Train a network of half the width, unless it has been, and go on from it twice as wide, if there is a way."""
    path = folder / plan.file("half", settings["lr"], seed)
    half, full = PooledConvNet1d(width=plan.width // 2), plan.whole()
    if not path.exists():
        train(half, settings["lr"], 2 * plan.epochs, plan.samples, seed, start=2 * plan.epochs)
        with replacing_file(path) as part:
            torch.save(half.state_dict(), part)
    half.load_state_dict(torch.load(path, weights_only=True))
    steps = operations(half), operations(full)
    if "grow" not in settings:
        return {"path": [accuracy(half, plan.samples)], "growth_seconds": 0.0, "steps": (steps[0], 0.0)}
    torch.manual_seed(seed)
    start = time.perf_counter()
    GROW[settings["grow"]](half, full)
    seconds = time.perf_counter() - start
    found = train(full, settings["grown_lr"], plan.grown, plan.samples, seed)
    return {"path": found, "growth_seconds": seconds, "steps": steps}


def train_one(settings: Settings, seed: int, folder: Path, plan: Plan) -> dict[str, float]:
    """Train one network with one method and measure."""
    settings = {**METHODS[settings["method"]], **settings}
    steps = len(signals(plan.samples)[0]) // BATCH
    if "share" in settings:
        length = max(1, round(settings["share"] * plan.equal_epochs()))
        network = plan.whole()
        path = train(network, settings["lr"], length, plan.samples, seed, start=length)
        return {"accuracy": path[-1], "gflops": length * steps * operations(network)}
    found = (grow if "init" in settings else widen)(settings, seed, folder, plan)
    half, full = found["steps"]
    values = {"accuracy": found["path"][-1], "gflops": steps * (2 * plan.epochs * half + plan.grown * full)}
    values["milliseconds"] = 1e3 * found["growth_seconds"]
    return values | {f"after_{epoch}": value for epoch, value in enumerate(found["path"])}


def draw(results: Results, grown: int, path: Path) -> None:
    """Draw accuracy against operations, and errors from growth on."""
    with plot(path, widths=(4.6, 4.6), height=4.8) as (left, right):
        whole = [[results.estimate(metric, name).mean for name in (SHORT, SCRATCH, LONGER)] for metric in X_AND_Y]
        left.plot(*whole, color="#a8a8a8", linestyle=":", zorder=0)
        for number, (method, look) in enumerate(looks(results, BASELINES).items()):
            style = {**look, "markersize": 5, "linewidth": 1.3, "elinewidth": 0.8}
            grows = "grown_lr" in METHODS[method]
            x, y = (results.estimate(metric, method) for metric in X_AND_Y)
            shift = grows * number * max(whole[0]) / 200  # so that error bars don't hide each other
            left.errorbar(x.mean + shift, y.mean, y.error, label=method, **{**style, "linestyle": "none"})
            if grows:
                path_of = [results.estimate(f"after_{epoch}", method) for epoch in range(grown + 1)]
                places = [epoch + number * grown / 200 for epoch in range(grown + 1)]
                right.errorbar(places, [100 - e.mean for e in path_of], [e.error for e in path_of], **style)
        left.set(title="accuracy", xlabel="operations of the whole training, 10⁹", ylabel="test accuracy, %")
        left.figure.legend(loc="outside lower center", ncols=4)
        right.set(title="from growth on", xlabel="epochs after growth", ylabel="test error, %", yscale="log")
        right.set_xticks(range(grown + 1))
        right.set_yticks(TICKS, map(str, TICKS))
        right.set_yticks([], minor=True)


def judge(results: Results) -> list[tuple[str, bool]]:
    """Return what the paper says, for its own new blocks and for those of zero, and whether it holds here."""
    criteria = []
    for method in (PAPER, ZERO):
        for rival in RIVALS:
            gain = results.difference("accuracy", method, rival)
            held = gain.mean >= 1 and not gain.within_noise()
            criteria.append((f"{method}: at least 1 point more than {rival}: {gain:+.1f}", held))
        for name, many in ((SCRATCH, "as many"), (LONGER, "a third more")):
            gain = results.difference("accuracy", method, name)
            level = gain.mean >= 0 or gain.within_noise()
            criteria.append((f"{method}: not less than from scratch with {many} operations: {gain:+.1f}", level))
    return criteria


def report(results: Results, options: Any) -> None:
    """Print what came out, next to what was asked."""
    spent = {name: results.estimate("gflops", name).mean for name in (ZERO, *BASELINES)}
    shares = ", ".join(f"{name} {value / spent[SCRATCH]:.2f}" for name, value in spent.items() if name != SCRATCH)
    notes = [
        f"MNIST-1D, {options.samples} signals, width {options.width}, members of {options.epochs} epochs each, "
        f"{options.grown_epochs} epochs after growth; accuracies in %, operations in 10⁹",
        f"operations, divided by those from scratch: {shares}",
        table(Results([run for run in results.runs if "after_1" in run.metrics]), options.grown_epochs),
    ]
    columns = [Column("accuracy", "accuracy"), Column("gflops", "operations", ".2f")]
    claim = "better than other ways to grow, and level with scratch"
    conclude(results, columns, judge(results), options.out, claim=claim, notes=notes)


def table(results: Results, grown: int) -> str:
    """Return accuracies from growth on, and how long it took, as a table."""
    lines = [
        f"| accuracy | at growth | {' | '.join(f'epoch {epoch}' for epoch in range(1, grown + 1))} | growth, ms |",
        f"|---|{(grown + 2) * '---|'}",
    ]
    for name in results.methods:
        accuracies = [f"{results.estimate(f'after_{epoch}', name)}" for epoch in range(grown + 1)]
        lines.append(f"| {name} | {' | '.join(accuracies)} | {results.estimate('milliseconds', name):.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = arguments(
        "mixture_growth", "Networks that grow out of two, against other ways to grow and from scratch.", seeds=3
    )
    parser.add_argument("--width", type=int, default=WIDTH, help="channels of the whole network (%(default)s)")
    parser.add_argument("--epochs", type=int, default=16, help="epochs of each member (%(default)s)")
    parser.add_argument("--grown-epochs", type=int, default=4, help="epochs after growth (%(default)s)")
    parser.add_argument("--samples", type=int, default=6000, help="signals in all (%(default)s)")
    parser.add_argument("--tune", action="store_true", help="try learning rates, on seeds from 100 on")
    options = parser.parse_args()
    plan = Plan(options.width, options.epochs, options.grown_epochs, options.samples)
    weights = options.out / ".weights"
    if not options.resume:
        shutil.rmtree(weights, ignore_errors=True)
    run = partial(train_one, folder=weights, plan=plan)
    shared = {"common": asdict(plan), "resume": options.resume, "workers": options.workers}
    if options.tune:
        seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + options.seeds)
        tune(GRID, seeds, run, options.out, best="accuracy", **shared)
        return
    methods = {name: {"method": name, **settings} for name, settings in METHODS.items()}
    results = run_all(methods, range(options.seeds), run, options.out, watch="accuracy", **shared)
    draw(results, options.grown_epochs, options.out / "mixture_growth.png")
    report(results, options)


if __name__ == "__main__":
    main()
