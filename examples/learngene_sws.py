"""Do networks of any depth that begin with a few shared layers need fewer epochs than those that begin with nothing?

A vision transformer of six layers in three stages, the layers of a stage sharing their weights, learns digits from a
small convolutional network. Its three blocks are all that is kept. Networks of several depths begin with copies of them
and are trained for one and for three epochs, beside the same networks

- from scratch, for eight times as many epochs, each with a schedule of its own;
- with the stages in reversed order, and with the first stage everywhere;
- with the first layers of a network of twelve layers, and with entries selected from a wider one (weight selection).
  Both learned from the same teacher, for as many layers times epochs as the auxiliary network.

    python examples/learngene_sws.py                               # two seeds, 3 and 6 layers
    python examples/learngene_sws.py --seeds 3 --depths 3 4 6 8 10 12
    python examples/learngene_sws.py --tune --depths 6             # the grid that the learning rates came from
"""

import shutil
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _depth_family import (
    LONGEST,
    REPEATS,
    SHAPE,
    STAGES,
    WARMUP,
    WIDE,
    auxiliary,
    checkpoint_bytes,
    digits,
    fine_tune,
    learngene_bytes,
    longest,
    longest_epochs,
    select,
    teacher_of,
    training_flops,
)
from _grid import tune
from _harness import Column, Estimate, Results, Settings, arguments, conclude, run_all
from _plots import draw_lines, plot
from _quantized_vit import accuracy
from torch import nn

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.learngene_sws import stage_map
from lightning_weights.modules import CompactViT, expand, extract_learngene

DEPTHS, AUX_EPOCHS = (3, 6), 40
EPOCHS, LONGER = (1, 3), 8  # epochs of fine-tuning, and how many times as many from scratch
SWS, REVERSED, SINGLE = "SWS", "SWS, stages reversed", "SWS, first stage everywhere"
FIRST, SELECTED, SCRATCH = "first layers", "weight selection", "from scratch, 8x epochs"
BASELINES, CONTROLS = (FIRST, SELECTED, SCRATCH), (REVERSED, SINGLE)
# in the order in which they run: what others begin with comes first
SETTINGS = {
    SWS: {"lr": 2.5e-4, "source_lr": 2e-3},
    FIRST: {"lr": 2.5e-4, "source_lr": 2e-3},
    SELECTED: {"lr": 1e-3, "source_lr": 2e-3},
    REVERSED: {"lr": 1e-3, "source_lr": 2e-3},
    SINGLE: {"lr": 5e-4, "source_lr": 2e-3},
    SCRATCH: {"lr": 2e-3},
}
RATES, SOURCE_RATES = [2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3], [1e-3, 2e-3, 4e-3]
GRID: dict[str, dict[str, list[float]]] = {
    **{method: {"lr": RATES, "source_lr": SOURCE_RATES} for method in (SWS, FIRST, SELECTED)},
    **{method: {"lr": RATES, "source_lr": [SETTINGS[SWS]["source_lr"]]} for method in CONTROLS},
    SCRATCH: {"lr": RATES},
}
TUNING_SEEDS = (100,)


def source(method: str, lr: float, seed: int, aux_epochs: int, folder: Path) -> CompactViT:
    """Return the trained network from which a method takes weights."""
    if method in (FIRST, SELECTED):
        return longest(seed, lr, aux_epochs, folder, wide=method == SELECTED)
    return auxiliary(seed, lr, aux_epochs, folder)


def begin(method: str, depth: int, seed: int, trained: CompactViT | None) -> nn.Module:
    """Return a network of a depth as a method begins with it."""
    torch.manual_seed(seed)
    if trained is None:
        return CompactViT(**SHAPE, depth=depth)
    if method in (FIRST, SELECTED):
        return select(trained.state_dict(), CompactViT(**SHAPE, depth=depth))
    mapping = stage_map(depth, STAGES)
    if method == REVERSED:
        mapping = [STAGES - 1 - stage for stage in mapping]
    if method == SINGLE:
        mapping = [0] * depth
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LightningWeightsWarning)  # it says that reversed stages go back
        return expand(extract_learngene(trained), mapping=mapping)


def stored(method: str, depths: Sequence[int]) -> int:
    """Return the bytes of the files that have to be kept to make networks of all depths."""
    if method == SCRATCH:
        return sum(checkpoint_bytes(CompactViT(**SHAPE, depth=depth)) for depth in depths)
    if method in (FIRST, SELECTED):
        return checkpoint_bytes(CompactViT(**(WIDE if method == SELECTED else SHAPE), depth=LONGEST))
    return learngene_bytes()


def cost(method: str, depths: Sequence[int], count: int, aux_epochs: int) -> float:
    """Return the operations of some epochs for networks of all depths, and of training what they begin with."""
    tuning = sum(training_flops(CompactViT(**SHAPE, depth=depth), count) for depth in depths)
    if method == SCRATCH:
        return LONGER * tuning
    if method in (FIRST, SELECTED):
        network = CompactViT(**(WIDE if method == SELECTED else SHAPE), depth=LONGEST)
        return tuning + training_flops(network, longest_epochs(aux_epochs), taught=True)
    return tuning + training_flops(CompactViT(**SHAPE, depth=sum(REPEATS)), aux_epochs, taught=True)


def train_one(settings: Settings, seed: int, depths: Sequence[int], aux_epochs: int, folder: Path) -> dict[str, float]:
    """Train networks of all depths with one method and return their accuracies in %."""
    method, lr, found = settings["method"], settings["lr"], {}
    test = digits(seed).load()[2:]
    trained = None
    if method != SCRATCH:
        trained = source(method, settings["source_lr"], seed, aux_epochs, folder)
        found["source"] = accuracy(trained, *test)
    for depth in depths:
        start = partial(begin, method, depth, seed, trained)
        if method == SCRATCH:
            runs = [fine_tune(start(), seed, lr, [LONGER * count], WARMUP) for count in EPOCHS]
            measured = [runs[0][0], *(after for _, after in runs)]
        else:
            measured = fine_tune(start(), seed, lr, EPOCHS)
        found |= {f"after_{after}_{depth}": value for after, value in zip((0, *EPOCHS), measured, strict=True)}
    for after in (0, *EPOCHS):
        found[f"after_{after}"] = sum(found[f"after_{after}_{depth}"] for depth in depths) / len(depths)
    if method == SWS:
        found["teacher"] = accuracy(teacher_of(seed, folder), *test)
        found["own_map_gap"] = own_map_gap(trained, *test)
    found["kilobytes"] = stored(method, depths) / 1e3
    return found | {f"gigaflops_{count}": cost(method, depths, count, aux_epochs) / 1e9 for count in EPOCHS}


@torch.no_grad()
def own_map_gap(network: CompactViT, x: torch.Tensor, y: torch.Tensor) -> float:
    """Return how far the auxiliary network's logits are from those of its expansion by its own map."""
    return float((network.eval()(x) - expand(extract_learngene(network)).eval()(x)).abs().max())


def draw(results: Results, depths: Sequence[int], path: Path) -> None:
    """Draw the accuracy over the depth, before training and after some epochs."""
    with plot(path, widths=(3.7,) * (1 + len(EPOCHS)), height=3.9) as axes:
        for axis, after in zip(axes, (0, *EPOCHS), strict=True):
            draw_lines(axis, results, {float(depth): f"after_{after}_{depth}" for depth in depths}, BASELINES)
            longer = f" ({LONGER * after} from scratch)" if after else ""
            axis.set(title=f"after {epochs(after)}{longer}", xlabel="layers", xticks=list(depths))
            if after != EPOCHS[-1]:  # at the end all are close to each other
                axis.set(ylim=(0, 102))
        axes[0].set(ylabel="accuracy on held-out images, %")
        axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(SETTINGS))


def gains(results: Results, depths: Sequence[int], mine: int, theirs: int, other: str) -> list[Estimate]:
    """Return how many points SWS is above another method at every depth, paired seed by seed."""
    found = []
    for depth in depths:
        others = results.values(f"after_{theirs}_{depth}", other)
        own = results.values(f"after_{mine}_{depth}", SWS)
        found.append(Estimate.of([value - others[seed] for seed, value in own.items()]))
    return found


def epochs(count: int) -> str:
    """Return a number of epochs as text."""
    return f"{count} epoch{'' if count == 1 else 's'}"


def above(gain: Estimate) -> bool:
    """Tell whether a gain is above zero, and not by noise."""
    return gain.mean > 0 and not gain.within_noise()


def shown(results: Results, method: str, depth: int) -> str:
    """Return the accuracies of one depth, before training and after some epochs."""
    values = [results.estimate(f"after_{after}_{depth}", method) for after in (0, *EPOCHS)]
    return f"{depth} layers {' / '.join(map(format, values))}"


def times_as_much(results: Results, mine: int, theirs: int) -> float:
    """Return the cost of training from scratch, divided by that of SWS with its auxiliary network and teacher."""
    return results.estimate(f"gigaflops_{theirs}", SCRATCH).mean / results.estimate(f"gigaflops_{mine}", SWS).mean


def notes(results: Results, depths: Sequence[int]) -> list[str]:
    """Return what to say beside the table."""
    first, last = EPOCHS
    rates = "; ".join(f"{method} {', '.join(f'{v:g}' for v in chosen.values())}" for method, chosen in SETTINGS.items())
    kilobytes = [results.estimate("kilobytes", method).mean for method in (SCRATCH, SWS)]
    texts = [
        f"accuracy on held-out images in %, mean over {', '.join(map(str, depths))} layers, after 0, {first} and "
        f"{last} epochs; from scratch after 0, {LONGER * first} and {LONGER * last} epochs\n"
        f"kept: kilobytes of files from which all depths are made; cost: billions of operations to train all depths, "
        f"what they begin with, and its teacher",
        f"learning rates, and those of what they begin with: {rates}",
        f"accuracy of the teacher {results.estimate('teacher', SWS)}; of what methods begin with: auxiliary network "
        f"{results.estimate('source', SWS)}, {LONGEST} layers {results.estimate('source', FIRST)}, {LONGEST} wide "
        f"layers {results.estimate('source', SELECTED)}",
        *(f"{method}: {'; '.join(shown(results, method, d) for d in depths)}" for method in results.methods),
    ]
    for mine, theirs in ((first, first), (last, last), (first, last)):
        ratio = times_as_much(results, mine, theirs)
        texts.append(f"{LONGER * theirs} epochs from scratch cost {ratio:.2f} times as much as SWS with {mine}")
    texts.append(
        f"separate checkpoints take {kilobytes[0]:.1f} kB on disk, the learngene {kilobytes[1]:.1f} kB: "
        f"{kilobytes[0] / kilobytes[1]:.1f} times as much"
    )
    return texts


def report(results: Results, depths: Sequence[int], out: Path) -> None:
    """Print what came out, next to what was asked."""
    first, last = EPOCHS
    aux, gap = results.estimate("source", SWS), max(results.values("own_map_gap", SWS).values())
    criteria: list[tuple[str, bool]] = [
        (f"the auxiliary network is above 95 %: {aux}", aux.mean > 95),
        (f"expanded with its own map it is the same network: logits differ by {gap:g}", gap == 0),
    ]
    for mine, theirs in ((first, first), (last, last), (first, last)):
        found = gains(results, depths, mine, theirs, SCRATCH)
        text = f"SWS with {epochs(mine)} is better than scratch with {LONGER * theirs} at every depth"
        criteria.append((f"{text}: {', '.join(f'{gain:+.1f}' for gain in found)}", all(map(above, found))))
    ratio = times_as_much(results, last, last)
    text = f"training all depths for {last} epochs costs less than {LONGER * last} from scratch, teacher and all"
    criteria.append((f"{text}: {ratio:.2f} times less", ratio > 1))
    for other in CONTROLS:
        gain = results.difference(f"after_{last}", SWS, other)
        text = f"after {last} epochs at least 10 points above {other}: {gain:+.1f}"
        criteria.append((text, above(gain) and gain.mean >= 10))
    for other in (FIRST, SELECTED):
        for after in (0, *EPOCHS):
            gain = results.difference(f"after_{after}", SWS, other)
            criteria.append((f"after {epochs(after)} better than {other}: {gain:+.1f}", above(gain)))
    columns = [Column(f"after_{count}", epochs(count), ".2f") for count in (0, *EPOCHS)]
    columns += [Column("kilobytes", "kept", ".1f")]
    columns += [Column(f"gigaflops_{count}", f"cost, {epochs(count)}", ".0f") for count in EPOCHS]
    claim = "networks of any depth from one set of shared layers, better after a few epochs than with 8 times as many"
    conclude(results, columns, criteria, out, claim=claim, notes=notes(results, depths))


def main() -> None:
    parser = arguments("learngene_sws", "Networks of many depths from one set of shared layers.", seeds=2)
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS, help="numbers of layers (%(default)s)")
    parser.add_argument("--aux-epochs", type=int, default=AUX_EPOCHS, help="epochs of distillation (%(default)s)")
    parser.add_argument("--tune", action="store_true", help="search the grid instead, on seeds of its own")
    options = parser.parse_args()
    if not all(1 <= depth <= LONGEST for depth in options.depths):
        parser.error(f"--depths are {options.depths}; allowed are 1 to {LONGEST}")
    common: dict[str, Any] = {"depths": list(options.depths), "aux_epochs": options.aux_epochs}
    weights = options.out / ".weights"
    if not options.resume:
        shutil.rmtree(weights, ignore_errors=True)
    run = partial(train_one, folder=weights, **common)
    shared = {"common": common, "resume": options.resume, "workers": options.workers}
    if options.tune:
        tune(GRID, TUNING_SEEDS, run, options.out, best=f"after_{EPOCHS[-1]}", **shared)
        return
    methods = {method: {"method": method, **chosen} for method, chosen in SETTINGS.items()}
    results = run_all(methods, range(options.seeds), run, options.out, watch=f"after_{EPOCHS[-1]}", **shared)
    draw(results, options.depths, options.out / "learngene_sws.png")
    report(results, options.depths, options.out)


if __name__ == "__main__":
    main()
