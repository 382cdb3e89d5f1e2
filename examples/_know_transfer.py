"""Small tasks for weights that were predicted: a network that has learned, recorded while it forgets, and few shots."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from _trajectories import record
from torch import Tensor, nn, vmap
from torch.func import functional_call, stack_module_state
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_weights.data import MNIST1D, Digits
from lightning_weights.functional.evaluation_mode import evaluation_mode
from lightning_weights.modules import MLP, ConvNet1d, reestimate_batch_norm
from lightning_weights.modules.weight_kinds import normalisation_layers

Samples = tuple[Tensor, Tensor]
OLD = 5  # of ten classes, in tasks with new classes
FEW_PIXELS, NOISE = 1, 0.25  # what is done to digits in the task with other images
BATCH, HEAD_STEPS, STEPS = 25, 40, 200  # of few shots
DIGITS_HELD = 597


@dataclass(frozen=True)
class Task:
    """What is learned first, from twice as many samples as the network will see, and what is learned from few.

    Args:
        network: Makes the network for a number of classes; none that the bank was trained on has its widths.
        source: Samples of the first task; the network learns from the first half of them.
        source_test: Held-out samples of the first task.
        pool: Samples from which few are drawn.
        test: Held-out samples of the second task.
        plan: Learning rate, batch size and epochs of a session.
    """

    network: Callable[[int], nn.Module]
    source: Samples
    source_test: Samples
    pool: Samples
    test: Samples
    plan: dict[str, float]

    @property
    def half(self) -> Samples:
        """Samples of the first task that the network sees."""
        x, y = self.source
        return x[: len(y) // 2], y[: len(y) // 2]


def classes_of(y: Tensor) -> int:
    """Return the number of classes."""
    return int(y.max()) + 1


@cache
def task(name: str, seed: int, batch_norm: bool = False) -> Task:
    """Divide the data of a task anew.

    Args:
        name: ``digits, new classes``: 0 to 4, then 5 to 9. ``digits, other images``: all, then shifted by a pixel with
            noise. ``mnist1d, new classes``.
        seed: Seed of the division.
        batch_norm: Whether batch normalisation follows every layer of the network's body.
    """
    if batch_norm:
        found = task(name, seed)
        return replace(found, network=partial(_normalised, found.network))
    if name.startswith("mnist1d"):
        network = partial(_convolutional, channels=20, layers=3, features=40)
        return _new_classes(network, *_signals(seed), {"lr": 2e-3, "batch_size": 50, "epochs": 15})
    data = Digits(test_size=DIGITS_HELD, seed=seed).tensors()
    if name.endswith("new classes"):
        return _new_classes(_perceptron, data[:2], data[2:], {"lr": 1e-3, "batch_size": 16, "epochs": 20})
    x, y = data[2:]
    others = _changed(x, seed), y
    few, held = slice(100), slice(100, None)
    parts = [(x[held], y[held]), *((others[0][part], y[part]) for part in (few, held))]
    return Task(_perceptron, data[:2], *parts, {"lr": 2e-3, "batch_size": 32, "epochs": 15})


def _new_classes(network: Callable[[int], nn.Module], train: Samples, test: Samples, plan: dict[str, float]) -> Task:
    old, old_test = ((x[y < OLD], y[y < OLD]) for x, y in (train, test))
    new, new_test = ((x[y >= OLD], y[y >= OLD] - OLD) for x, y in (train, test))
    rest = tuple(torch.cat([part[200:], more]) for part, more in zip(new, new_test, strict=True))
    return Task(network, old, old_test, (new[0][:200], new[1][:200]), rest, plan)


def _perceptron(classes: int) -> nn.Module:
    return MLP(64, (100, 40), classes)


def _convolutional(classes: int, **sizes: int) -> nn.Module:
    return ConvNet1d(**sizes, num_classes=classes)


def _normalised(network: Callable[[int], nn.Module], classes: int) -> nn.Module:
    made = network(classes)
    for place, layer in enumerate(made.body):
        if isinstance(layer, nn.Linear | nn.Conv1d):
            made.body[place] = nn.Sequential(layer, nn.BatchNorm1d(len(layer.weight)))
    return made


@cache
def _all_signals() -> tuple[Samples, Samples]:
    x, y, *test = MNIST1D().tensors()
    return (x, y), tuple(test)


def _signals(seed: int) -> tuple[Samples, Samples]:
    (x, y), test = _all_signals()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed), device="cpu")
    return (x[order], y[order]), test


def _changed(x: Tensor, seed: int) -> Tensor:
    """Shift images by a pixel and add noise."""
    images = x.reshape(-1, 8, 8).roll(FEW_PIXELS, dims=2)
    images[:, :, :FEW_PIXELS] = 0
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed), device="cpu")
    return (images + NOISE * noise).flatten(1)


def learn_and_forget(found: Task, sessions: int, seed: int, folder: Path) -> None:
    """Train a network on half of the first task's samples, then on ever fewer, with snapshots in the folder."""
    torch.manual_seed(seed)
    network = found.network(classes_of(found.source[1]))
    record(network, found.half, rate=0.5, **found.plan, sessions=sessions, seed=seed, folder=folder)


def learn_from_all(found: Task, seed: int) -> dict[str, Tensor]:
    """Train the same network on twice as many samples, in the same way, and return its weights."""
    torch.manual_seed(seed)
    network = found.network(classes_of(found.source[1]))
    sessions = 2  # the fewest there can be; the second has a batch or two
    forgetting = record(network, found.source, rate=0.05, **found.plan, sessions=sessions, seed=seed)
    return dict(forgetting.snapshots[-1])


def few_shots(pool: Samples, shots: int, seed: int) -> Samples:
    """Draw samples, as many of each class as of any other."""
    x, y = pool
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed), device="cpu")
    classes = classes_of(y)
    each = [order[y[order] == label] for label in range(classes)]
    rows = torch.cat([own[: shots // classes + (label < shots % classes)] for label, own in enumerate(each)])
    return x[rows], y[rows]


def fine_tune(networks: Sequence[nn.Module], samples: Sequence[Samples], lr: float, seeds: Sequence[int]) -> None:
    """Give networks new heads and train them in the paper's two phases: head and norms, then all along a cosine.

    Statistics of batch normalisation are first averaged over the few samples. The networks are trained side by side, as
    stacks of weights. Adam treats every entry by itself, so each ends where it would have ended alone.

    Args:
        networks: Networks of one architecture with a linear ``head``, which are changed.
        samples: The few samples of each, as many as those of any other.
        lr: Learning rate of Adam.
        seeds: Seeds of the heads and of the orders.
    """
    classes = classes_of(samples[0][1])
    for network, seed, (inputs, _) in zip(networks, seeds, samples, strict=True):
        reestimate_batch_norm(network, [inputs])
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network.head = nn.Linear(network.head.in_features, classes)
    stacked, statistics = stack_module_state(list(networks))
    skeleton = copy.deepcopy(networks[0]).to("meta")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    x, y = (torch.stack(parts) for parts in zip(*samples, strict=True))
    which = torch.arange(len(networks))[:, None]

    def loss(weights: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(functional_call(skeleton, (weights, buffers), (inputs,)), labels)

    layers = {"head", *normalisation_layers({name: weight.shape[1:] for name, weight in stacked.items()})}
    first = {name: weight for name, weight in stacked.items() if name.rpartition(".")[0] in layers}
    order: list[Tensor] = []
    for steps, trained in ((HEAD_STEPS, first), (STEPS, stacked)):
        optimizer = torch.optim.Adam(trained.values(), lr=lr, fused=True)
        schedule = CosineAnnealingLR(optimizer, steps) if trained is stacked else None
        for _ in range(steps):
            if not order:
                rows = torch.stack([torch.randperm(y.shape[1], generator=own, device="cpu") for own in generators])
                order = list(rows.split(BATCH, dim=1))
            rows = order.pop()
            optimizer.zero_grad()
            vmap(loss)(stacked, statistics, x[which, rows], y[which, rows]).sum().backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
    for place, network in enumerate(networks):
        network.load_state_dict({name: value[place].detach() for name, value in {**stacked, **statistics}.items()})


def loss_and_accuracy(network: nn.Module, samples: Samples) -> tuple[float, float]:
    """Return cross-entropy, and how many are right in %."""
    x, y = samples
    with evaluation_mode(network), torch.no_grad():
        logits = network(x)
    return float(cross_entropy(logits, y)), 100 * float((logits.argmax(dim=1) == y).float().mean())
