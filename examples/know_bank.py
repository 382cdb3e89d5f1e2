"""Makes the bank of hyper-models that comes with the package, and asks whether it predicts weights it never saw.

Seventy-five small networks, perceptrons and convolutional ones, learn digits, digits with wrong labels, and mnist1d, at
random rates, learning rates, batch sizes and epochs, and are recorded while they forget: seven sessions on ever smaller
parts of their data. From these three hyper-models learn how kernels, matrices and biases go on. They are compared with
extrapolations made by hand, and with least squares, fitted to the same recordings; on networks of architectures that
were left out, on data of the same kinds and on two data sets that were left out too.

    python examples/know_bank.py                    # about 15 minutes on one core
    python examples/know_bank.py --save             # and writes the bank into the package
"""

import statistics
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _files import Run, write_runs
from _harness import Column, Results, conclude, quiet_trainer
from _trajectories import CLASSES, SESSIONS, Architecture, Name, record_at_random
from lightning.pytorch import seed_everything
from rich.progress import track
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_weights import __version__
from lightning_weights.data import TrajectoryDataModule
from lightning_weights.data.trajectories import weight_histories
from lightning_weights.functional.weight_extrapolation import (
    extrapolate,
    fit_coefficients,
    least_squares_coefficients,
    shrink_coefficients,
)
from lightning_weights.modules import KNOWN, KNOWNBank, KNOWNMeta
from lightning_weights.modules.known_bank import BANKS
from lightning_weights.modules.weight_kinds import KINDS, Kind

WINDOW = 5
TRAINED_ON: tuple[Name, ...] = ("digits", "noisy digits", "mnist1d")
TESTED_ON: tuple[Name, ...] = ("digits", "mnist1d")
LEFT_OUT: tuple[Name, ...] = ("cancer", "generated")
PERCEPTRONS = [Architecture(widths) for widths in ((32,), (64,), (32, 32), (64, 32), (48, 48, 48))]
CONVOLUTIONAL = [
    Architecture(channels, features)
    for channels, features in (((8, 16), 32), ((12, 12, 12), 32), ((16, 16), 24), ((8, 8, 16), 16), ((16, 24), 16))
]
OTHERS = [
    Architecture((100,)),
    Architecture((40, 24, 24, 16)),
    Architecture((10, 20), 48),
    Architecture((6, 12, 12, 24), 20),
]
TEST_REPEATS = 2
MAX_WEIGHTS = 4000  # of a kind and a recording: each network shall count
TRAIN_SEED, TEST_SEED, META_SEED = 0, 2000, 0
# steps, batch size and learning rate of Adam, which falls to 0 along a cosine
META: dict[Kind, dict[str, Any]] = {
    "conv": {"steps": 3000, "batch_size": 4096, "lr": 1e-3},
    "fc": {"steps": 3000, "batch_size": 4096, "lr": 1e-3},
    "bias": {"steps": 3000, "batch_size": 2048, "lr": 1e-3},
}
BY_HAND = {
    "no change": shrink_coefficients(WINDOW, 1.0),
    "0.93 times": shrink_coefficients(WINDOW, 0.93),
    "linear": fit_coefficients(WINDOW, points=2),
    "half of linear": fit_coefficients(WINDOW, points=2, step=0.5),
    "line through 5": fit_coefficients(WINDOW),
    "log through 5": fit_coefficients(WINDOW, "log"),
}
FITTED, OURS = "least squares", "KNOWN"
PLACES = {"known data": TESTED_ON, "new data": LEFT_OUT}  # of networks of new architectures
Predictor = Callable[[Tensor], Tensor]


def plan(out: Path) -> list[tuple[Architecture, Name, int, Path]]:
    """Return all networks to record, with their data, seeds and folders."""
    rows: list[tuple[Architecture, Name, int, str]] = []
    for data in TRAINED_ON:
        rows += [(net, data, TRAIN_SEED + i, "train") for i, net in enumerate(PERCEPTRONS + 4 * CONVOLUTIONAL)]
    for data in (*TESTED_ON, *LEFT_OUT):
        rows += [(net, data, TEST_SEED + i, "test") for i, net in enumerate(OTHERS * TEST_REPEATS)]
    folder = out / "trajectories"
    return [(net, data, seed, folder / part / f"{data} {seed:04d} {net}") for net, data, seed, part in rows]


def record_all(out: Path) -> tuple[list[Path], dict[tuple[str, int], list[Path]]]:
    """Record every network that is not in the folder yet, and return the folders to learn from and to test on."""
    learn: list[Path] = []
    test: dict[tuple[str, int], list[Path]] = {}
    for network, data, seed, folder in track(plan(out), "recording"):
        record_at_random(network, data, seed, folder)
        if folder.parent.name == "train":
            learn.append(folder)
        else:
            place = next(place for place, names in PLACES.items() if data in names)
            test.setdefault((place, (seed - TEST_SEED) // len(OTHERS)), []).append(folder)
    return learn, test


def windows(folders: Sequence[Path], kind: Kind) -> list[tuple[Tensor, Tensor]]:
    """Return the histories and what followed of every network that has such weights."""
    found = []
    for folder in folders:
        rows = weight_histories(folder, kind).unfold(1, WINDOW + 1, 1).flatten(0, 1)
        found += [(rows[:, :-1], rows[:, -1])] if len(rows) else []
    return found


def meta_train(learn: Sequence[Path], kind: Kind, steps: int, batch_size: int, lr: float) -> KNOWN:
    """Train a hyper-model for one kind of weights.

    Args:
        learn: Folders to learn from.
        kind: Which weights.
        steps: Number of steps, which whole epochs come close to.
        batch_size: Weights per step.
        lr: First learning rate of Adam.
    """
    seed_everything(META_SEED, verbose=False)
    folders = [str(folder) for folder in learn]
    data = TrajectoryDataModule(folders, kind, WINDOW, batch_size, 0.0, MAX_WEIGHTS, seed=META_SEED)
    epochs = max(1, round(steps / len(data.train_dataloader())))
    meta = KNOWNMeta(WINDOW, lr=lr, lr_scheduler=partial(CosineAnnealingLR, T_max=epochs))
    quiet_trainer(max_epochs=epochs, limit_val_batches=0).fit(meta, datamodule=data)
    return meta.known.eval()


@torch.no_grad()
def error(predict: Predictor, histories: Tensor, following: Tensor) -> float:
    """Return the mean absolute error over the weights of a network, in thousandths."""
    return 1000 * (predict(histories) - following).abs().mean().item()


def compare(
    bank: KNOWNBank, learn: Sequence[Path], test: Mapping[tuple[str, int], Sequence[Path]]
) -> tuple[Results, list[str]]:
    """Return the errors of all predictors on networks that none has seen, and how many networks ours is better for."""
    metrics: dict[tuple[str, int], dict[str, float]] = {}
    notes = []
    for kind in KINDS:
        seen = windows(learn, kind)
        fitted = least_squares_coefficients(*(torch.cat(parts) for parts in zip(*seen, strict=True)))
        rules = {**BY_HAND, FITTED: fitted}
        predictors: dict[str, Predictor] = {name: partial(_rule, rule) for name, rule in rules.items()}
        predictors[OURS] = partial(_ours, bank, kind)
        ratios: dict[tuple[str, str], list[float]] = {}
        for (place, repeat), folders in test.items():
            networks = windows(folders, kind)
            errors = {name: [error(predict, *network) for network in networks] for name, predict in predictors.items()}
            for name, values in errors.items():
                metrics.setdefault((name, repeat), {})[f"{kind}, {place}"] = statistics.fmean(values)
                shares = [ours / value for ours, value in zip(errors[OURS], values, strict=True)]
                ratios.setdefault((place, name), []).extend(shares)
        for place in PLACES:
            compared = {name: ratios[place, name] for name in ("linear", FITTED)}
            texts = [
                f"{statistics.geometric_mean(shares):.3f} times that of {name}, less for "
                f"{sum(share < 1 for share in shares)} of {len(shares)} networks"
                for name, shares in compared.items()
            ]
            notes.append(f"{kind}, {place}: the error of {OURS} is {'; '.join(texts)} (geometric means).")
    return Results([Run(name, repeat, "", values) for (name, repeat), values in metrics.items()]), notes


def _rule(coefficients: Tensor, histories: Tensor) -> Tensor:
    return extrapolate(histories, coefficients)


def _ours(bank: KNOWNBank, kind: Kind, histories: Tensor) -> Tensor:
    return bank.nowcast(histories, kind).squeeze(-1)


def report(results: Results, notes: Sequence[str], out: Path) -> bool:
    """Print the table and whether ours has the smallest error everywhere."""
    columns = [Column(f"{kind}, {place}", f"{kind}, {place}", ".2f") for place in PLACES for kind in KINDS]
    criteria = []
    for column in columns:
        errors = {name: results.estimate(column.metric, name).mean for name in results.methods}
        ours = errors.pop(OURS)
        best = min(errors, key=lambda name: errors[name])
        share = 100 * (1 - ours / errors[best])
        criteria.append(
            (f"{column.title}: {ours:.2f} against {errors[best]:.2f} of {best} ({share:+.1f} %)", share > 0)
        )
    first = "Mean absolute errors of the next value, in thousandths, of networks of architectures that were left out."
    return conclude(results, columns, criteria, out, claim="predicts unseen weights best", notes=[first, *notes])


def provenance(results: Results, learn: Sequence[Path], numbers: Mapping[Kind, Mapping[str, Any]]) -> dict[str, Any]:
    """Return how the bank was made, and what it is worth; ``numbers`` are those of its meta-training."""
    names = [method for method in results.methods if method in ("no change", "linear", FITTED, OURS)]
    errors = {name: {m: results.estimate(m, name).mean for m in results.runs[0].metrics} for name in names}
    rounded = {name: {metric: round(value, 3) for metric, value in row.items()} for name, row in errors.items()}
    return {
        "made by": f"examples/know_bank.py of lightning_weights {__version__}, torch {torch.__version__}",
        "data": {
            "digits": "scikit-learn, 1500 images; once with 30 % of labels drawn at random",
            "mnist1d": "4000, seed 42",
        },
        "networks": sorted({f"{network} ({CLASSES} classes)" for network in PERCEPTRONS + CONVOLUTIONAL}),
        "recordings": len(learn),
        "sessions": SESSIONS,
        "forgetting": "sequential; rate U(0.3 or the least that leaves a sample per class, 0.9), Adam with lr "
        "U(1e-5, 4e-3), batches of U(8, min(128, smallest subset)), 1 to 8 epochs per session; a draw per recording",
        "meta-training": {
            kind: {**own, "optimizer": "Adam, cosine to 0", "loss": "L1"} for kind, own in numbers.items()
        },
        "penalties": {"kernels": 1e-6, "biases": 0.1},
        "weights of a kind per recording": f"at most {MAX_WEIGHTS}, drawn at random",
        "seeds": {"recordings": TRAIN_SEED, "meta-training": META_SEED},
        "errors on unseen networks, in thousandths": rounded,
        "licence": "as the package; no weights, code or data of the paper's authors went into it",
    }


def main() -> bool:
    parser = ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/know_bank"), help="folder for results (%(default)s)")
    parser.add_argument("--steps", type=int, help="steps of each meta-training, instead of 3000")
    parser.add_argument("--bank", help="compare this bank instead of training one: a name or a file")
    parser.add_argument("--save", action="store_true", help="write the bank into the package")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    learn, test = record_all(arguments.out)
    numbers = {kind: {**own, "steps": arguments.steps or own["steps"]} for kind, own in META.items()}
    if arguments.bank:
        bank = KNOWNBank.from_pretrained(arguments.bank)
    else:
        bank = KNOWNBank(**{kind: meta_train(learn, kind, **own) for kind, own in numbers.items()})
    results, notes = compare(bank, learn, test)
    write_runs(arguments.out / "runs.csv", results.runs)
    holds = report(results, notes, arguments.out)
    if not arguments.bank:
        bank.about = provenance(results, learn, numbers)
        bank.save(arguments.out / "bank.safetensors")
        if arguments.save:
            bank.save(BANKS / "digits.safetensors")
    return holds


if __name__ == "__main__":
    main()
