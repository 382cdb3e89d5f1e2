"""Do weights that were predicted from forgetting transfer better than the weights they were predicted from?

A small network learns a first task and is then trained on ever smaller parts of the same data: five sessions, each with
half of the samples of the one before. From the five snapshots KNOWN predicts the weights of training on 2, 4 and 8
times the data. Then the network gets a new head and learns a second task from 25 or 100 samples. Beside the predictions
stand the weights as they were trained, a random start, shrinking (0.93 and 0.8 times all weights), the mean of the
snapshots, linear extrapolation, and the weights of a network that has really seen twice the samples.

    python examples/know.py --seeds 5
    python examples/know.py --seeds 5 --batch-norm --rates 0.001 --out results/know_batch_norm

All starts are trained with one learning rate, as in the paper, and with the best for each on a seed of its own.

Three tasks: digits 0 to 4 and then 5 to 9; digits and then digits shifted by a pixel, with noise; the same classes of
mnist1d, with convolutions. The bank has seen digits and mnist1d, but no network of these widths. A prediction is also
taken apart: a factor that it multiplies each tensor with, and the rest of it.
"""

import copy
import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from _files import Run
from _harness import Column, Estimate, Results, Settings, arguments, conclude, run_all
from _know_starts import NETWORK, SESSIONS, part_of, predicted, size_of
from _know_transfer import (
    Task,
    classes_of,
    few_shots,
    fine_tune,
    learn_and_forget,
    learn_from_all,
    loss_and_accuracy,
    task,
)
from _plots import COLOURS, GREYS, draw_bars, plot
from torch import nn

from lightning_weights.modules import (
    KNOWNBank,
    read_predicted,
    read_snapshots,
    reestimate_batch_norm,
    write_predicted,
)

TASKS = {"A": "digits, new classes", "B": "digits, other images", "C": "mnist1d, new classes"}
SHOTS = (25, 100)
PLACES = [f"{letter}{shots}" for letter in TASKS for shots in SHOTS]
DRAWS = 2  # of the few samples, per seed
NAIVE, RANDOM, SOUP, LINEAR, THRICE = "as trained", "random", "mean of snapshots", "linear", "linear, 3 times"
MORE = "twice the data, really"
FACTORS = ("shrink 0.93", "shrink 0.8")
OURS = {recursions: f"KNOWN ×{2**recursions}" for recursions in (1, 2, 3)}
LAST = OURS[3]
SIZE, DIRECTION = f"{LAST}: size alone", f"{LAST}: direction alone"
METHODS: dict[str, Settings] = {
    NAIVE: {"rule": "bank", "recursions": 0},
    RANDOM: {"rule": "random"},
    **{name: {"rule": name, "recursions": 1} for name in FACTORS},
    SOUP: {"rule": "mean", "recursions": 1},
    LINEAR: {"rule": "linear", "recursions": 1},
    THRICE: {"rule": "linear", "recursions": 3},
    **{name: {"rule": "bank", "recursions": recursions} for recursions, name in OURS.items()},
    SIZE: {"rule": "bank", "recursions": 3, "part": "size"},
    DIRECTION: {"rule": "bank", "recursions": 3, "part": "direction"},
    MORE: {"rule": "more"},
}
BASELINES = [name for name in METHODS if name not in OURS.values()]
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
LR = 1e-3  # common to all starts
TUNING_SEEDS = (100,)


def prepare(settings: Settings, seed: int, folder: Path) -> dict[str, float]:
    """Train the networks of a seed, which all starts are made from, and record how they forget."""
    accuracies = {}
    for letter, name in TASKS.items():
        found, place = task(name, seed, settings["batch_norm"]), folder / f"{letter} {seed}"
        for old in place.glob("*.safetensors"):
            old.unlink()
        learn_and_forget(found, SESSIONS, seed, place)
        write_predicted(place / "more.safetensors", learn_from_all(found, seed))
        network = with_weights(found, METHODS[NAIVE], seed, place, "digits")
        accuracies[f"{letter} accuracy"] = loss_and_accuracy(network, found.source_test)[1]
    return accuracies


def with_weights(found: Task, settings: Settings, seed: int, place: Path, bank: str) -> nn.Module:
    """Return the first task's network with the weights of a start, and statistics of its samples."""
    torch.manual_seed(1000 + seed)
    network = found.network(classes_of(found.source[1]))
    if settings["rule"] == "more":
        weights = read_predicted(place / "more.safetensors")[0]
        network.load_state_dict({name.removeprefix(NETWORK): tensor for name, tensor in weights.items()})
    elif settings["rule"] != "random":
        snapshots = read_snapshots(sorted(place.glob("session_*.safetensors")))
        weights = predicted(snapshots, settings["rule"], settings["recursions"], bank)
        if "part" in settings:
            weights = part_of(weights, predicted(snapshots, "bank", 0, bank), settings["part"])
        network.load_state_dict(weights)
    reestimate_batch_norm(network, [found.half[0]])
    return network


def train_one(settings: Settings, seed: int, folder: Path, bank: str) -> dict[str, float]:
    """Learn the second tasks from all starts, and return what came out under ``start: quantity``.

    Args:
        settings: The learning rate, and whether networks have batch normalisation.
        seed: Seed of the networks, the divisions and the draws.
        folder: Where `prepare` has written.
        bank: Name or file of the bank.
    """
    measured: dict[str, float] = {}
    seeds = [seed + 1000 * draw for draw in range(DRAWS)]
    for letter, name in TASKS.items():
        found, place = task(name, seed, settings["batch_norm"]), folder / f"{letter} {seed}"
        starts = {start: with_weights(found, how, seed, place, bank) for start, how in METHODS.items()}
        old = starts[NAIVE].state_dict()
        for start, network in starts.items():
            loss, right = loss_and_accuracy(network, found.source_test)
            size = size_of(network.state_dict(), old)
            measured |= {f"{start}: {letter} {key}": v for key, v in (("loss", loss), ("first", right), ("size", size))}
        for shots in SHOTS:
            networks = [copy.deepcopy(network) for network in starts.values() for _ in seeds]
            few = [few_shots(found.pool, shots, own) for own in seeds] * len(starts)
            fine_tune(networks, few, settings["lr"], seeds * len(starts))
            right = [loss_and_accuracy(network, found.test)[1] for network in networks]
            for number, start in enumerate(starts):
                own = right[number * DRAWS : (number + 1) * DRAWS]
                measured[f"{start}: {letter}{shots}"] = statistics.fmean(own)
    return measured


def rate_of(start: str, rated: Results, rates: Sequence[float]) -> float:
    """Return the learning rate that is best for a start on the tuning seeds, over all tasks and shots."""
    scores = {}
    for rate in rates:
        values = [rated.values(f"{start}: {place}", label(rate)) for place in PLACES]
        scores[rate] = statistics.fmean(own[seed] for own in values for seed in TUNING_SEEDS)
    return max(scores, key=lambda rate: scores[rate])


def label(rate: float) -> str:
    """Return the name of the runs with a learning rate."""
    return f"rate {rate:g}"


def by_start(rated: Results, rates: Mapping[str, float]) -> Results:
    """Return the results of every start: with the common learning rate and with its own, and gains over `NAIVE`.

    Args:
        rated: Results of the learning rates that are needed, for all starts.
        rates: Learning rate of each start.
    """
    table = {(run.method, run.seed): run.metrics for run in rated.runs}
    seeds = sorted({run.seed for run in rated.runs})
    metrics: dict[tuple[str, int], dict[str, float]] = {}
    for seed in seeds:
        for start in METHODS:
            found: dict[str, float] = {}
            for kind, rate in {"": LR, " own": rates[start]}.items():
                row = table[label(rate), seed]
                found |= {f"{place}{kind}": row[f"{start}: {place}"] for place in PLACES}
                found |= {f"{t}{kind}": statistics.fmean(found[f"{t}{n}{kind}"] for n in SHOTS) for t in TASKS}
                found[f"score{kind}"] = statistics.fmean(found[f"{place}{kind}"] for place in PLACES)
            for name in ("loss", "first", "size"):
                found |= {f"{letter} {name}": row[f"{start}: {letter} {name}"] for letter in TASKS}
                found[name] = statistics.fmean(found[f"{letter} {name}"] for letter in TASKS)
            metrics[start, seed] = found
    for start, seed in metrics:
        naive = metrics[NAIVE, seed]
        gains = {f"{name} gain": value - naive[name] for name, value in metrics[start, seed].items() if name in naive}
        metrics[start, seed] = {**metrics[start, seed], **gains}
    return Results([Run(start, seed, "", found) for (start, seed), found in metrics.items()])


def draw(results: Results, bank: str, path: Path) -> None:
    """Draw the errors on unseen weights that the bank remembers, the gains of all starts, and what it costs."""
    errors = KNOWNBank.from_pretrained(bank).about.get("errors on unseen networks, in thousandths", {})
    with plot(path, widths=(3.2, 4.4, *[2.4] * (len(TASKS) - 1), 2.6), height=3.9) as (weights, *gains, losses):
        rules = {rule: row for rule, row in errors.items() if rule != "no change"}
        for number, (rule, row) in enumerate(rules.items()):
            shares = [value / errors["no change"][name] for name, value in row.items()]
            places = [place + 0.25 * number for place in range(len(shares))]
            look = {"color": COLOURS[0]} if rule == "KNOWN" else {"color": GREYS[2 - number]}
            weights.bar(places, shares, width=0.22, label=rule, **look)
            names = [name.replace(", ", "\n").replace(" data", "") for name in row]
            weights.set_xticks([place + 0.25 for place in range(len(names))], names)
        weights.set_title("error of the next weight,\nshare of that of no change")
        weights.set_ylim(0.4, 1.0)
        weights.legend(loc="upper left", ncols=3, columnspacing=0.8, handlelength=1.0)
        others = Results([run for run in results.runs if run.method != NAIVE])
        for axis, (letter, name) in zip(gains, TASKS.items(), strict=True):
            draw_bars(axis, others, f"{letter} gain", BASELINES, "+.1f")
            axis.set_title(f"{name}:\npoints gained")
            axis.axvline(0, color="#404040", linewidth=0.8)
            axis.margins(x=0.3)
        draw_bars(losses, others, "loss", BASELINES, ".2f")
        losses.axvline(results.estimate("loss", NAIVE).mean, color=COLOURS[3], linewidth=0.8)
        losses.set_title("loss on the first task\n(line: as trained)")
        for axis in (*gains[1:], losses):
            axis.set_yticklabels([])


def losses_by_session(seeds: Iterable[int], folder: Path, batch_norm: bool) -> list[Estimate]:
    """Return the loss on the first tasks after every session, that on all samples first."""
    losses: dict[int, list[float]] = {}
    for seed in seeds:
        own: dict[int, list[float]] = {}
        for letter, name in TASKS.items():
            found, place = task(name, seed, batch_norm), folder / f"{letter} {seed}"
            network = with_weights(found, METHODS[RANDOM], seed, place, "")
            for snapshot in read_snapshots(sorted(place.glob("session_*.safetensors"))):
                network.load_state_dict({key.removeprefix(NETWORK): tensor for key, tensor in snapshot.items()})
                loss, _ = loss_and_accuracy(network, found.source_test)
                own.setdefault(snapshot.session, []).append(loss)
        for session, values in own.items():
            losses.setdefault(session, []).append(statistics.fmean(values))
    return [Estimate.of(losses[session]) for session in sorted(losses)]


def report(results: Results, rates: Mapping[str, float], sessions: Sequence[Estimate], out: Path) -> None:
    """Print the gains and whether the claims hold."""
    columns = [Column(f"{place} gain", f"{place[0]}, {place[1:]} shots", "+.2f") for place in PLACES]
    columns += [Column("score gain", "all", "+.2f"), Column("score own gain", "own rates", "+.2f")]
    columns += [Column("loss", "first task's loss", ".3f"), Column("size", "size", ".3f")]

    def ahead(method: str, other: str, metric: str = "score") -> Estimate:
        return results.difference(metric, method, other)

    def clear(gain: Estimate) -> bool:
        return gain.mean > 0 and not gain.within_noise()

    steps = {name: ahead(name, before) for before, name in pairwise([NAIVE, *OURS.values()])}
    own = {name: ahead(name, NAIVE, "score own") for name in OURS.values()}
    losses = {name: ahead(name, NAIVE, "loss") for name in OURS.values()}
    criteria = [
        (f"{name} is ahead of what comes before it, by {step:+.2f} points", step.mean > 0)
        for name, step in steps.items()
    ]
    criteria += [(f"{LAST} is clearly ahead of {NAIVE}: {ahead(LAST, NAIVE):+.2f}", clear(ahead(LAST, NAIVE)))]
    criteria += [
        (f"{LAST} is clearly ahead of {other}: {ahead(LAST, other):+.2f}", clear(ahead(LAST, other)))
        for other in (*FACTORS, SOUP, LINEAR, THRICE, RANDOM)
    ]
    criteria += [(f"with rates of their own {LAST} is clearly ahead, too: {own[LAST]:+.2f}", clear(own[LAST]))]
    text = ", ".join(f"{name} {loss:+.3f}" for name, loss in losses.items())
    criteria += [(f"the first task's loss is smaller, as with more data: {text}", losses[OURS[1]].mean < 0)]
    estimates = {place: results.estimate(place, NAIVE) for place in PLACES}
    notes = [
        f"{NAIVE}, in %: " + ", ".join(f"{place} {estimate:.1f}" for place, estimate in estimates.items()),
        f"the first task's loss after each session: {', '.join(f'{loss:.3f}' for loss in sessions)}",
        f"of the gain of {LAST}, {ahead(LAST, NAIVE):+.2f}: size alone has {ahead(SIZE, NAIVE):+.2f}, direction "
        f"alone {ahead(DIRECTION, NAIVE):+.2f}",
        f"with rates of their own: {'; '.join(f'{name} {gain:+.2f}' for name, gain in own.items())}",
        f"{OURS[1]} less {LINEAR}: {ahead(OURS[1], LINEAR):+.2f}",
        f"the common rate is {LR:g}; own ones: {', '.join(f'{start} {rate:g}' for start, rate in rates.items())}",
    ]
    conclude(results, columns, criteria, out, claim="predicted weights transfer better", notes=notes)


def main() -> None:
    parser = arguments("know", "Few shots from weights that were predicted, and from others.", seeds=3)
    parser.add_argument("--bank", default="digits", help="name or file of the bank (%(default)s)")
    parser.add_argument("--batch-norm", action="store_true", help="networks with batch normalisation")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="learning rates to choose from")
    options = parser.parse_args()
    folder = options.out / "sources"
    tuning = TUNING_SEEDS if len(options.rates) > 1 else ()
    seeds = range(options.seeds)
    common = {"batch_norm": options.batch_norm}
    shared = {"resume": options.resume, "workers": options.workers}
    first = partial(prepare, folder=folder)
    run_all({"first tasks": common}, [*tuning, *seeds], first, folder, watch="A accuracy", **shared)
    run = partial(train_one, folder=folder, bank=options.bank)
    shared |= {"watch": f"{LAST}: {PLACES[0]}", "common": {"bank": options.bank}}
    rates = dict.fromkeys(METHODS, options.rates[0])
    if tuning:
        rated = {label(rate): {"lr": rate, **common} for rate in options.rates}
        tried = run_all(rated, tuning, run, options.out / "tuning", **shared)
        rates = {start: rate_of(start, tried, options.rates) for start in METHODS}
    needed = {label(rate): {"lr": rate, **common} for rate in sorted({LR, *rates.values()})}
    results = by_start(run_all(needed, seeds, run, options.out, **shared), rates)
    draw(results, options.bank, options.out / "know.png")
    report(results, rates, losses_by_session(seeds, folder, options.batch_norm), options.out)


if __name__ == "__main__":
    main()
