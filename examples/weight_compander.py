"""Do companded weights use more of a network, and does it generalise better for that?

Digits, 100 or 300 training images, the latter also with 30 % of the labels wrong; a network of 64-256-256-10 with batch
normalisation. Companding is compared with plain training and with what it might be mistaken for: a larger learning
rate, more weight decay, clipping at the same bound, a mere gain, and another function of the same bound and gain.
Statistics are of the effective weights of both hidden layers.

    python examples/weight_compander.py                # three seeds
    python examples/weight_compander.py --seeds 20     # what the documentation shows
    python examples/weight_compander.py --tune         # chooses the weight decay, on other seeds

Only the weight decay of plain weights is tuned; elsewhere it is 5e-4. κ and β are the defaults.
"""

from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from _grid import tune
from _harness import Column, Results, Settings, arguments, conclude, quiet_trainer, run_all
from _plots import draw_bars, plot
from _weight_controls import ClipWeights, amplify
from lightning.pytorch import Callback
from torch import Tensor, nn

from lightning_weights.callbacks import WeightCompander
from lightning_weights.data import Digits
from lightning_weights.functional.weight_compander import kurtosis, near_zero_share, participation_ratio
from lightning_weights.modules import MLP, Classifier

LR, DECAY, EPOCHS, TEST_IMAGES = 0.05, 5e-4, 60, 997
KAPPA, BETA = 3.0, 2.0
GAIN = KAPPA / BETA
TASKS = {"100": (100, 0.0), "300": (300, 0.0), "noise": (300, 0.3)}  # images, share of wrong labels
TITLES = {"100": "100 images", "300": "300 images", "noise": "300, 30 % wrong"}

BASELINE, COMPANDED, LEARNED = "plain", "companded", "companded, a and b learned"
DECAYED, BOTH = "weight decay, tuned", "companded, the same decay"
METHODS: dict[str, Settings] = {
    BASELINE: {},
    f"learning rate × {GAIN**2:g}": {"lr": LR * GAIN**2},
    DECAYED: {"decay": 0.05},
    "clipped at the same bound": {"control": "clip"},
    f"gain of {GAIN:g} alone": {"control": "gain"},
    COMPANDED: {"function": "arctan", "kappa": KAPPA, "beta": BETA},
    BOTH: {"function": "arctan", "kappa": KAPPA, "beta": BETA, "decay": 0.05},
    LEARNED: {"function": "arctan", "kappa": 2.5, "beta": 1.5, "learnable": True},
}
CONTROLS = tuple(method for method in METHODS if method not in (COMPANDED, BOTH, LEARNED))
TUNING_SEEDS = range(100, 103)
GRID = {DECAYED: {"decay": (5e-4, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1)}}


class FewDigits(Digits):
    """Digits of which few are for training, some of them with wrong labels."""

    def __init__(self, images: int, wrong: float, seed: int) -> None:
        super().__init__(batch_size=32, test_size=TEST_IMAGES, seed=seed)
        self.images, self.wrong = images, wrong

    def load(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, y, test_x, test_y = super().load()
        x, y = x[: self.images], y[: self.images].clone()
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(y), generator=generator)[: round(self.wrong * len(y))]
        y[chosen] = (y[chosen] + torch.randint(1, 10, chosen.shape, generator=generator)) % 10
        return x, y, test_x, test_y


def parts(settings: Settings) -> tuple[nn.Module, list[Callback]]:
    """Return the network of a method and its callbacks."""
    network, callbacks = MLP(64, (256, 256), 10, batch_norm=True), []
    if settings.get("control") == "gain":
        network = amplify(network, GAIN)
    elif settings.get("control") == "clip":
        callbacks = [ClipWeights(KAPPA)]
    elif "function" in settings:
        names = ("function", "kappa", "beta", "learnable")
        callbacks = [WeightCompander(**{name: settings[name] for name in names if name in settings})]
    return network, callbacks


def train_one(settings: Settings, seed: int, epochs: int = EPOCHS) -> dict[str, float]:
    """Train on all three tasks and measure."""
    settings = {**METHODS[settings["method"]], **settings}
    found: dict[str, float] = {}
    for task, (images, wrong) in TASKS.items():
        torch.manual_seed(seed)
        network, callbacks = parts(settings)
        optimizer = {"lr": settings.get("lr", LR), "weight_decay": settings.get("decay", DECAY)}
        model = Classifier(
            network,
            optimizer=partial(torch.optim.SGD, momentum=0.9, nesterov=True, **optimizer),
            lr_scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        )
        data = FewDigits(images, wrong, seed)
        quiet_trainer(max_epochs=epochs, limit_val_batches=0, callbacks=callbacks).fit(model, data)
        found |= {f"{name}_{task}": value for name, value in measure(network, data).items()}
    return found | {"accuracy": fmean(found[f"accuracy_{task}"] for task in TASKS)}


@torch.no_grad()
def measure(network: nn.Module, data: Digits) -> dict[str, float]:
    """Return the accuracy on the held-out images and the means of both hidden layers' statistics."""
    _, _, x, y = data.load()
    correct = network.eval()(x).argmax(1) == y
    weights = [layer.weight for layer in network.body if isinstance(layer, nn.Linear)]
    return {
        "accuracy": 100 * float(correct.float().mean()),
        "near_zero": 100 * fmean(map(near_zero_share, weights)),
        "kurtosis": fmean(map(kurtosis, weights)),
        "participation": 100 * fmean(participation_ratio(weight) / weight.numel() for weight in weights),
        "largest": fmean(float(weight.abs().max() / weight.std(correction=0)) for weight in weights),
    }


def draw(results: Results, path: Path) -> None:
    """Draw accuracy, and what happens to the weights."""
    panels = [("accuracy_100", "accuracy, %", "100 images"), ("accuracy_noise", "accuracy, %", TITLES["noise"])]
    panels += [
        ("near_zero_100", "weights within 0.1 σ of zero, %", "100 images"),
        ("kurtosis_100", "kurtosis", "100 images"),
    ]
    with plot(path, widths=(4.6, 2.8, 2.8, 2.8), height=3.4) as axes:
        for axis, (metric, label, title) in zip(axes, panels, strict=True):
            draw_bars(axis, results, metric, CONTROLS, spec=".2f" if "kurtosis" in metric else ".1f")
            axis.set(title=title, xlabel=label)
            if "accuracy" in metric:
                means = [results.estimate(metric, method).mean for method in results.methods]
                axis.set(xlim=(max(min(means) - 5, 0), max(means) + 5))
            if axis is not axes[0]:
                axis.set(yticklabels=[])


def report(results: Results, out: Path) -> None:
    """Print what came out, next to what was asked."""
    notes = ["accuracy on 997 held-out images, in %; near 0: weights within 0.1 standard deviations of zero, in %"]
    seeds = list(results.values("accuracy", BASELINE))
    for method in (COMPANDED, BOTH, LEARNED):
        for other in CONTROLS:
            gains = {task: results.difference(f"accuracy_{task}", method, other) for task in TASKS}
            texts = [
                f"{TITLES[task]} {gain:+.2f}{' (noise)' if gain.within_noise() else ''}" for task, gain in gains.items()
            ]
            notes.append(f"{method} against {other}, points of accuracy: {', '.join(texts)}")
    for name in ("near_zero", "kurtosis", "participation", "largest", "accuracy"):
        for task in TASKS:
            pairs = [results.values(f"{name}_{task}", method) for method in (BASELINE, COMPANDED)]
            text = ", ".join(f"{pairs[0][seed]:.3g} to {pairs[1][seed]:.3g}" for seed in seeds)
            notes.append(f"{name}, {TITLES[task]}, plain to companded, every seed: {text}")
    criteria = [falls(results, "near_zero", "share of weights near zero"), falls(results, "kurtosis", "kurtosis")]
    gain = results.difference("accuracy", COMPANDED, BASELINE)
    criteria.append(
        (f"more accurate than plain training, by more than noise: {gain:+.2f} points", gain.mean > 2 * gain.error)
    )
    gains = {other: results.difference("accuracy", COMPANDED, other) for other in CONTROLS[1:]}
    shown = ", ".join(f"{gain:+.2f} ({other})" for other, gain in gains.items())
    criteria.append((f"and than every control: {shown}", all(gain.mean > 2 * gain.error for gain in gains.values())))
    gain = results.difference("accuracy", BOTH, DECAYED)
    text = f"more accurate by more than noise with the decay that is best for plain weights in both: {gain:+.2f} points"
    criteria.append((text, gain.mean > 2 * gain.error))
    columns = [Column("accuracy", "accuracy, mean", ".2f")]
    columns += [Column(f"accuracy_{task}", title, ".2f") for task, title in TITLES.items()]
    for name, title in (
        ("near_zero", "near 0"),
        ("kurtosis", "kurtosis"),
        ("participation", "taking part, %"),
        ("largest", "max/σ"),
    ):
        columns.append(Column(f"{name}_100", f"{title}, 100", ".2f"))
    claim = "fewer dead and fewer huge weights, and better accuracy for it"
    conclude(results, columns, criteria, out, claim=claim, notes=notes)


def falls(results: Results, name: str, title: str) -> tuple[str, bool]:
    """Return the criterion that a statistic falls for every seed of every task."""
    counts = {}
    for task in TASKS:
        before, after = (results.values(f"{name}_{task}", method) for method in (BASELINE, COMPANDED))
        counts[task] = sum(after[seed] < before[seed] for seed in before), len(before)
    text = ", ".join(f"{TITLES[task]} {less} of {total}" for task, (less, total) in counts.items())
    return f"companding lowers the {title} for every seed: {text}", all(
        less == total for less, total in counts.values()
    )


def main() -> None:
    parser = arguments("weight_compander", "Companded weights against plain training and controls.", seeds=3)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs of every run (%(default)s)")
    parser.add_argument("--tune", action="store_true", help="run the grid instead and print its winners")
    options = parser.parse_args()
    common = {"epochs": options.epochs}
    train = partial(train_one, **common)
    shared = {"common": common, "resume": options.resume, "workers": options.workers}
    if options.tune:
        tune(GRID, TUNING_SEEDS, train, options.out, best="accuracy", **shared)
        return
    methods = {method: {"method": method, **settings} for method, settings in METHODS.items()}
    results = run_all(methods, range(options.seeds), train, options.out, watch="accuracy", **shared)
    draw(results, options.out / "weight_compander.png")
    report(results, options.out)


if __name__ == "__main__":
    main()
