"""Which way to pulse the devices of a synapse survives their non-linearity?

Digits, a network of 64-64-10 without biases whose weights are pairs of devices with 128 states (or single devices
against a fixed reference), trained with pulses, eight images per update. Ways to update are compared over the
non-linearity ν of the devices (0, 2, 5) at two learning rates, and at the higher one on devices with another curve
(exp), with a measured-like curve that is steep down and flat up (table), and that all differ (σ = 0.3 of ln ν and of
ln N); plain SGD on floating-point weights is the baseline.

    python examples/hw_synapse.py                # three seeds

Nothing is tuned: both learning rates are reported, and the criteria take the better one of each way and ν.
"""

import math
import tempfile
from copy import copy
from functools import cache, partial
from pathlib import Path
from statistics import fmean

import torch
from _harness import Column, Estimate, Results, Settings, arguments, conclude, quiet_trainer, run_all
from _plots import draw_lines, looks, plot
from torch import nn

from lightning_weights.callbacks import HardwareSynapses
from lightning_weights.data import Digits
from lightning_weights.modules import Classifier, DeviceModel
from lightning_weights.modules.synapse_array import COUNTS, SynapseArray
from lightning_weights.optimizers import PulseSGD

EPOCHS, BATCH, STATES, W_SCALE = 5, 8, 128, 1.5
RATES, NUS = (0.05, 0.2), (0, 2, 5)
DEVICES: dict[str, Settings] = {  # at the higher rate
    "soft": {"nu_ltp": 2},
    "exp": {"kind": "exp", "nu_ltp": 2},
    "table": {"kind": "table"},
    "spread": {"nu_ltp": 2, "d2d_states": 0.3, "d2d_nu": 0.3},
}
TITLES = {"soft": "ν 2", "exp": "exp, ν 2", "table": "table", "spread": "ν 2, σ 0.3"}

FLOAT, SINGLE, BOTH, SPLIT = "float SGD", "single", "bidirectional", "bidirectional, split"
ONE_WAY, UNREFRESHED = "unidirectional", "unidirectional, never refreshed"
METHODS: dict[str, Settings] = {
    FLOAT: {},
    SINGLE: {"mode": "single"},
    BOTH: {"mode": "bidirectional"},
    SPLIT: {"mode": "bidirectional", "split": True},
    UNREFRESHED: {"mode": "unidirectional", "refresh": "never"},
    ONE_WAY: {"mode": "unidirectional"},
}
OTHERS = (SINGLE, BOTH, SPLIT)


def key(rate: float, nu: float) -> str:
    """Return the metric of a learning rate and a ν."""
    return f"accuracy_{rate:g}_{nu:g}"


def conditions() -> dict[str, tuple[float, Settings]]:
    """Return learning rate and device of every metric."""
    found: dict[str, tuple[float, Settings]] = {key(rate, nu): (rate, {"nu_ltp": nu}) for rate in RATES for nu in NUS}
    return found | {f"accuracy_{name}": (RATES[-1], device) for name, device in DEVICES.items()}


def train_one(settings: Settings, seed: int, epochs: int = EPOCHS) -> dict[str, float]:
    """Train for every learning rate and device; runs that would be the same are one."""
    found: dict[str, float] = {}
    runs: dict[str, dict[str, float]] = {}
    for metric, (rate, device) in conditions().items():
        same = repr((rate, sorted(device.items()) if "mode" in settings else None))
        if same not in runs:
            runs[same] = train_network(settings, rate, device, seed, epochs)
        name = metric.removeprefix("accuracy")
        found |= {f"{kind}{name}": value for kind, value in runs[same].items()}
    return found | {"accuracy": fmean(found[key(rate, nu)] for rate in RATES for nu in NUS)}


def train_network(settings: Settings, rate: float, device: Settings, seed: int, epochs: int) -> dict[str, float]:
    """Train one network; return its accuracy on held-out images, and pulses and refreshes per weight."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 10, bias=False))
    model = Classifier(network, optimizer=partial(torch.optim.SGD, lr=rate))
    callbacks = []
    if "mode" in settings:
        chosen = {name: settings[name] for name in ("mode", "split") if name in settings}
        callbacks = [HardwareSynapses(made(device), w_scale=W_SCALE, seed=seed, **chosen)]
        model.optimizer = partial(PulseSGD, lr=rate, refresh=settings.get("refresh", "ideal"), seed=seed)
    data = copy(loaded(BATCH, seed))  # its own order of images, but images that are read once
    quiet_trainer(max_epochs=epochs, limit_val_batches=0, callbacks=callbacks).fit(model, data)
    with torch.no_grad():
        _, _, x, y = data.tensors()
        accuracy = 100 * float((model.eval()(x).argmax(1) == y).float().mean())
    arrays = [part for part in model.modules() if isinstance(part, SynapseArray)]
    weights = sum(array.plus.numel() for array in arrays) or 1
    total = {name: sum(int(array.counts[place]) for array in arrays) for place, name in enumerate(COUNTS)}
    return {"accuracy": accuracy, **{name: total[name] / weights for name in ("pulses", "refreshes")}}


@cache
def loaded(batch_size: int, seed: int) -> Digits:
    """Return the images, without loaders."""
    data = Digits(batch_size=batch_size, seed=seed)
    data.tensors()
    return data


def made(device: Settings) -> DeviceModel:
    """Return a device, for ``table`` with curves as one measures them: up flattens slowly, down falls at once."""
    if device.get("kind") != "table":
        return DeviceModel(n_states=STATES, **device)
    up = [math.log1p(10 * n / STATES) for n in range(STATES + 1)]
    down = [math.exp(-5 * n / STATES) for n in range(STATES + 1)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "curve.csv")
        path.write_text(
            "\n".join(["n,ltp,ltd", *(f"{n},{u},{d}" for n, (u, d) in enumerate(zip(up, down, strict=True)))])
        )
        return DeviceModel(table=str(path), **device)


def best(results: Results, method: str, nu: float) -> tuple[float, str]:
    """Return the learning rate with the better mean, and its metric."""
    rate = max(RATES, key=lambda rate: results.estimate(key(rate, nu), method).mean)
    return rate, key(rate, nu)


def gap(results: Results, method: str, other: str, nu: float) -> Estimate:
    """Return how much more accurate one way is, each at its better learning rate, paired seed by seed."""
    (_, mine), (_, its) = best(results, method, nu), best(results, other, nu)
    ours, theirs = results.values(mine, method), results.values(its, other)
    return Estimate.of([value - theirs[seed] for seed, value in ours.items()])


def draw(results: Results, path: Path) -> None:
    """Draw accuracy against ν for both learning rates, and by the kind of device for the higher one."""
    with plot(path, widths=(3.2, 3.2, 5.2), height=3.6) as axes:
        for axis, rate in zip(axes, RATES, strict=False):
            draw_lines(axis, results, {nu: key(rate, nu) for nu in NUS}, baselines=(FLOAT,))
            axis.set(title=f"soft devices, learning rate {rate:g}", xlabel="non-linearity ν")
        for number, (method, look) in enumerate(looks(results, (FLOAT,)).items()):
            found = [results.estimate(f"accuracy_{name}", method) for name in TITLES]
            places = [place + 0.1 * (number - 2.5) for place in range(len(TITLES))]
            means, errors = [value.mean for value in found], [value.error for value in found]
            axes[2].errorbar(places, means, errors, label=method, markersize=5, **{**look, "linestyle": "none"})
        axes[2].set(title=f"other devices, learning rate {RATES[-1]:g}")
        axes[2].set_xticks(range(len(TITLES)), TITLES.values())
        axes[0].set(ylabel="accuracy, %")
        axes[2].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def advantage(title: str, gaps: dict[str, Estimate]) -> tuple[str, bool]:
    """Return a criterion: better than each of the others by more than two standard errors."""
    shown = ", ".join(f"{found:+.1f} ({other})" for other, found in gaps.items())
    return f"{title}: {shown}", all(found.mean > 2 * found.error for found in gaps.values())


def report(results: Results, out: Path) -> None:
    """Print what came out, next to what was asked."""
    columns = [Column(key(rate, nu), f"η {rate:g}, ν {nu:g}") for rate in RATES for nu in NUS]
    columns += [
        Column(f"accuracy_{name}", f"η {RATES[-1]:g}, {title}") for name, title in TITLES.items() if name != "soft"
    ]
    notes = [
        "accuracy on 500 held-out images, in %; η: learning rate; σ: spread of ln ν and ln N from device to device"
    ]
    for nu in NUS:
        gaps = ", ".join(f"{gap(results, ONE_WAY, other, nu):+.1f} ({other})" for other in OTHERS)
        notes.append(f"unidirectional against the others at ν = {nu:g}, each at its better rate, in points: {gaps}")
    for name in ("pulses", "refreshes"):
        metric = f"{name}_{RATES[-1]:g}_{NUS[-1]:g}"
        texts = [f"{method} {results.estimate(metric, method).mean:.0f}" for method in (*OTHERS, ONE_WAY)]
        notes.append(f"{name} per weight at η = {RATES[-1]:g}, ν = {NUS[-1]:g}: {', '.join(texts)}")
    linear = gap(results, ONE_WAY, FLOAT, 0)
    criteria = [(f"linear devices, unidirectional, at most 2 points below float SGD: {linear:+.1f}", linear.mean >= -2)]
    strong = {other: gap(results, ONE_WAY, other, NUS[-1]) for other in OTHERS}
    criteria.append(
        advantage(f"at ν = {NUS[-1]:g} unidirectional is better than the others by more than noise", strong)
    )
    for title, metric in {"at the higher rate": key(RATES[-1], NUS[-1]), "on the table": "accuracy_table"}.items():
        criteria.append(advantage(title, {o: results.difference(metric, ONE_WAY, o) for o in OTHERS}))
    plain, varied = (results.values(f"accuracy_{name}", ONE_WAY) for name in ("soft", "spread"))
    lost = Estimate.of([value - plain[seed] for seed, value in varied.items()])
    criteria.append((f"devices that differ cost unidirectional at most 3 points: {lost:+.1f}", lost.mean >= -3))
    claim = "linear devices train like software, and unidirectional pulses bear non-linear ones best"
    conclude(results, columns, criteria, out, claim=claim, notes=notes)


def main() -> None:
    parser = arguments("hw_synapse", "Ways to pulse devices, against their ν.", seeds=3)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs of every run (%(default)s)")
    options = parser.parse_args()
    common = {"epochs": options.epochs}
    train = partial(train_one, **common)
    shared = {"common": common, "resume": options.resume, "workers": options.workers}
    results = run_all(METHODS, range(options.seeds), train, options.out, watch="accuracy", **shared)
    draw(results, options.out / "hw_synapse.png")
    report(results, options.out)


if __name__ == "__main__":
    main()
