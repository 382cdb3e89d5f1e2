"""The rows of the example of robust weight signatures: ways to change a clean network, tested on each corruption."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from _files import Run
from _harness import Results, Settings
from _rws_training import SEEN, STRENGTHS, Part, Task, accuracy, corrupted, dead, network, parts, task, train
from torch import Tensor, nn

from lightning_weights.modules import (
    RobustWeightSignature,
    ShallowSelector,
    extract_rws,
    patched,
    reestimate_batch_norm,
)

SHALLOW, LEVELS, MIX = 3, 16, 0.5
CLEAN, ROBUST, WISE = "clean", "robust", f"WiSE-FT, {MIX:g}"
FEW, ALL = f"RWS, {SHALLOW} layers", "RWS, all layers"
PACKED, WRONG, MOVED = f"{FEW}, {LEVELS} levels", f"{FEW}, wrong corruption", f"{FEW}, transferred"
ALL_WRONG, ALL_MOVED = f"{ALL}, wrong corruption", f"{ALL}, transferred"
SUM, PUBLISHED = f"{FEW}, two summed", f"{FEW}, two as published"
PLAIN, ALL_PLAIN = f"difference, {SHALLOW} layers", "difference, all layers"
NORMS, FEW_NORMS, ALL_NORMS = "batch norm alone", f"{FEW}, batch norm", f"{ALL}, batch norm"
MOVED_NORMS = f"{MOVED}, batch norm"
BASELINES = (CLEAN, ROBUST, WISE, PLAIN, ALL_PLAIN, NORMS)
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
BATCHES = 128
BLUR = "gaussian_blur"
CLASSES = range(5)  # of the networks that are patched
# where the weights before and the transferred signatures come from
ORIGINS = {"digits": ("digits", range(5, 10)), "mnist1d": ("mnist1d", range(5, 10)), "letters": ("digits", CLASSES)}
Signatures = dict[str, dict[str, RobustWeightSignature]]


@dataclass(frozen=True)
class Plan:
    """How long and how fast: before, and from there."""

    pretraining: int
    epochs: int
    lr: float


@dataclass(frozen=True)
class Networks:
    """One task's networks: clean, and one per corruption."""

    data: str
    part: Task
    pretrained: nn.Module
    standard: nn.Module
    robust: dict[str, nn.Module]

    def signatures(self, layers: int | None, mode: str = "projected") -> dict[str, RobustWeightSignature]:
        """Return one signature per corruption."""
        select = ShallowSelector(layers)
        return {
            name: extract_rws(self.pretrained, self.standard, robust, select, corruption=name, mode=mode)
            for name, robust in self.robust.items()
        }


def train_all(pretrained: nn.Module, data: str, classes: range, seed: int, plan: Plan) -> Networks:
    """Train one task's networks, all alike but for the inputs."""
    part, options = task(data, classes), {"epochs": plan.epochs, "lr": plan.lr, "seed": seed}
    standard = train(pretrained, part, **options)
    robust = {
        name: train(pretrained, part, **options, change=partial(change, data=data, name=name, seed=seed))
        for name in STRENGTHS[data]
    }
    return Networks(data, part, pretrained, standard, robust)


def count_dead(networks: Networks, seed: int) -> int:
    """Count the clean and robust networks that are dead to validation samples of their kind."""
    x = networks.part.val.x
    robust = [(net, corrupted(networks.data, name, x, seed, SEEN)) for name, net in networks.robust.items()]
    return sum(dead(net, inputs) for net, inputs in ((networks.standard, x), *robust))


def change(x: Tensor, first: int, *, data: str, name: str, seed: int) -> Tensor:
    """Return corrupted inputs, for a training loop."""
    return corrupted(data, name, x, seed, first)


class Bench:
    """Tests ways to change the clean network, on every corruption, and gives the network back as it was."""

    def __init__(self, networks: Networks, seed: int) -> None:
        self.networks, self.part = networks, networks.part
        self.net = copy.deepcopy(networks.standard)
        data, test, train_x = networks.data, self.part.test, self.part.train.x
        self.tests = {name: Part(corrupted(data, name, test.x, seed, 2 * SEEN), test.y) for name in networks.robust}
        self.inputs = {name: corrupted(data, name, train_x, seed, 0) for name in networks.robust}
        self.metrics: dict[str, float] = {}

    def note(self, row: str, name: str, net: nn.Module) -> None:
        """Keep what a network does on one corruption and on clean data."""
        self.metrics[f"{row}|{name}"] = accuracy(net, self.tests[name])
        self.metrics[f"{row}|clean {name}"] = accuracy(net, self.part.test)

    def patch(self, row: str, chosen: dict[str, list[RobustWeightSignature]], scale: float = 1.0, **how: Any) -> None:
        """Patch with the signatures of each corruption; ``norms`` says that batch norm is measured anew."""
        norms = how.pop("norms", False)
        for name, signatures in chosen.items():
            with patched(self.net, signatures, scale, **how) as control:
                if norms:
                    control.reestimate(self.inputs[name].split(BATCHES))
                self.note(row, name, self.net)

    def replace(self, row: str, nets: dict[str, nn.Module]) -> None:
        """Take another network for each corruption."""
        for name, net in nets.items():
            self.note(row, name, net)

    def restored(self) -> bool:
        """Tell whether the network has every bit that it began with."""
        before = self.networks.standard.state_dict()
        return all(torch.equal(value, before[name]) for name, value in self.net.state_dict().items())


def singly(signatures: dict[str, RobustWeightSignature]) -> dict[str, list[RobustWeightSignature]]:
    return {name: [signature] for name, signature in signatures.items()}


def shifted(signatures: dict[str, RobustWeightSignature]) -> dict[str, list[RobustWeightSignature]]:
    """Give each corruption the signature of the next one, which is a wrong one."""
    names = list(signatures)
    return {name: [signatures[other]] for name, other in zip(names, [*names[1:], names[0]], strict=True)}


def distinct(signatures: list[RobustWeightSignature]) -> list[RobustWeightSignature]:
    """Leave out what is there twice: where a network was dead before, all signatures are the same."""
    return list({signature.digest: signature for signature in signatures}.values())


def mixed(networks: Networks) -> dict[str, nn.Module]:
    """Return networks half way between clean and robust, all layers, WiSE-FT (Wortsman et al., 2022)."""
    found = {}
    for name, robust in networks.robust.items():
        net = copy.deepcopy(networks.standard)
        goal = robust.state_dict()
        net.load_state_dict(
            {
                key: torch.lerp(value, goal[key], MIX) if value.is_floating_point() else value
                for key, value in net.state_dict().items()
            }
        )
        found[name] = net
    return found


def adapted(networks: Networks, inputs: dict[str, Tensor]) -> dict[str, nn.Module]:
    """Return clean networks whose running statistics are those of corrupted training data."""
    found = {}
    for name, x in inputs.items():
        found[name] = copy.deepcopy(networks.standard)
        reestimate_batch_norm(found[name], x.split(BATCHES))
    return found


def cosine(one: RobustWeightSignature, other: RobustWeightSignature) -> float:
    """Return the cosine of the angle between two signatures."""
    flat = [torch.cat([value.flatten() for value in each.dequantize().values()]) for each in (one, other)]
    return float(torch.cosine_similarity(*flat, dim=0))


def facts(first: Networks, few: Signatures, all_layers: Signatures) -> dict[str, float]:
    """Return how far layers moved, and how alike signatures are."""
    standard = first.standard.state_dict()
    found = {}
    for place, names in enumerate(ShallowSelector(None).units(first.standard).values()):
        shares = []
        for robust in first.robust.values():
            goal = robust.state_dict()
            moved, length = (
                sum(float(tensor.square().sum()) for tensor in tensors)
                for tensors in ([goal[n] - standard[n] for n in names], [standard[n] for n in names])
            )
            shares.append((moved / length) ** 0.5)
        found[f"facts|layer {place}"] = sum(shares) / len(shares)
    ours, theirs = all_layers["ours"], all_layers["theirs"]
    found["facts|same corruption"] = sum(cosine(ours[name], theirs[name]) for name in ours) / len(ours)
    pairs = [cosine(ours[a], ours[b]) for a, b in pairwise(ours)]
    found["facts|other corruption"] = sum(pairs) / len(pairs)
    found["facts|saving"] = next(iter(few["ours"].values())).quantized(LEVELS).saving
    return found


def train_one(settings: Settings, seed: int) -> dict[str, float]:
    """Train all networks of a setting and measure all rows."""
    data, kind = settings["setting"].split("-")
    plan = Plan(settings["pretraining"], settings["epochs"], settings["lr"])
    origin, classes = ORIGINS[data]
    pretrained = train(network(data, kind), parts(origin), epochs=plan.pretraining, lr=plan.lr, seed=seed)
    first, second = (train_all(pretrained, *each, seed, plan) for each in ((data, CLASSES), (origin, classes)))
    bench = Bench(first, seed)
    few, every = ({"ours": first.signatures(n), "theirs": second.signatures(n)} for n in (SHALLOW, None))
    bench.replace(CLEAN, dict.fromkeys(first.robust, first.standard))
    bench.replace(ROBUST, first.robust)
    bench.replace(WISE, mixed(first))
    for row, wrong, transferred, signatures in ((FEW, WRONG, MOVED, few), (ALL, ALL_WRONG, ALL_MOVED, every)):
        bench.patch(row, singly(signatures["ours"]))
        bench.patch(wrong, shifted(signatures["ours"]))
        bench.patch(transferred, singly(signatures["theirs"]))
    bench.patch(PACKED, {name: [each.quantized(LEVELS)] for name, each in few["ours"].items()})
    two = {name: distinct([few["ours"][name], *others]) for name, others in shifted(few["ours"]).items()}
    bench.patch(SUM, two)
    bench.patch(PUBLISHED, two, weighting="published")
    for row, layers in ((PLAIN, SHALLOW), (ALL_PLAIN, None)):
        bench.patch(row, singly(first.signatures(layers, mode="difference")))
    for scale in SCALES:
        bench.patch(scale_row(scale), singly(few["ours"]), scale)
    if kind == "resnet":
        bench.replace(NORMS, adapted(first, bench.inputs))
        bench.patch(FEW_NORMS, singly(few["ours"]), norms=True)
        bench.patch(MOVED_NORMS, singly(few["theirs"]), norms=True)
        bench.patch(ALL_NORMS, singly(every["ours"]), norms=True)
    dead_ones = sum(count_dead(networks, seed) for networks in (first, second))
    own = {"facts|restored": float(bench.restored()), "facts|dead": float(dead_ones)}
    return {**bench.metrics, **facts(first, few, every), **own, "corrupted": mean_of(bench.metrics, FEW)}


def scale_row(scale: float) -> str:
    """Return the name of the row of a scale."""
    return f"α = {scale:g}"


def mean_of(metrics: dict[str, float], row: str, clean: bool = False) -> float:
    """Return the mean of a row over corruptions."""
    names = [key.split("|")[1] for key in metrics if key.startswith(f"{row}|")]
    chosen = [metrics[f"{row}|{name}"] for name in names if name.startswith("clean ") == clean]
    return sum(chosen) / len(chosen)


def by_row(runs: Sequence[Run]) -> Results:
    """Return a setting's results as if every row were a method of its own."""
    found = []
    for run in runs:
        rows = dict.fromkeys(key.split("|")[0] for key in run.metrics if "|" in key)
        for row in rows:
            own = {key.split("|")[1]: value for key, value in run.metrics.items() if key.startswith(f"{row}|")}
            if row != "facts":
                own |= {"corrupted": mean_of(run.metrics, row), "clean": mean_of(run.metrics, row, clean=True)}
            found.append(Run(row, run.seed, run.settings, own))
    return Results(found)
