"""What the example of robust weight signatures trains: tasks, corruptions, networks, and the loop."""

import copy
from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import torch
from _rws_letters import letters
from torch import Tensor, nn

from lightning_weights.data import MNIST1D, Digits
from lightning_weights.functional.corruptions import corrupt
from lightning_weights.functional.evaluation_mode import evaluation_mode
from lightning_weights.modules import VGG

BATCH, DECAY, MOMENTUM, CLIP, SEEN = 32, 5e-4, 0.9, 1.0, 10**9
LARGEST = 4.0  # standard deviations of MNIST-1D's values that count as black and white
WIDTHS = ([8, 8], [16, 16], [24, 24])
# far stronger than severity 5, which is mild on images of 16 pixels and on signals; lengths are for 32 pixels
STRENGTHS: dict[str, dict[str, float]] = {
    "digits": {"gaussian_noise": 0.6, "impulse_noise": 0.3, "gaussian_blur": 4.0, "pixelate": 0.3, "contrast": 0.15},
    "mnist1d": {"gaussian_noise": 0.15, "impulse_noise": 0.15, "gaussian_blur": 1.5, "pixelate": 0.3, "contrast": 0.15},
}
STRENGTHS["letters"] = STRENGTHS["digits"]


class Part(NamedTuple):
    """Inputs and labels."""

    x: Tensor
    y: Tensor


class Task(NamedTuple):
    """A task's samples; nothing is chosen by those of the test."""

    train: Part
    val: Part
    test: Part


@cache
def parts(data: str) -> Task:
    """Return all classes, the same samples for all seeds: inputs in [0, 1]."""
    if data == "digits":
        x, y, test_x, test_y = Digits(test_size=500, as_images=True, image_size=16).load()
    elif data == "letters":
        x, y, test_x, test_y = letters()
    else:
        x, y, test_x, test_y = MNIST1D(num_samples=2000).load()
        x, test_x = ((part.clamp(-LARGEST, LARGEST) + LARGEST) / (2 * LARGEST) for part in (x, test_x))
    held = len(x) // 6
    return Task(Part(x[held:], y[held:]), Part(x[:held], y[:held]), Part(test_x, test_y))


def task(data: str, classes: range) -> Task:
    """Return the samples of some classes, whose labels stay what they are."""
    chosen = []
    for part in parts(data):
        rows = (part.y >= classes.start) & (part.y < classes.stop)
        chosen.append(Part(part.x[rows], part.y[rows]))
    return Task(*chosen)


def corrupted(data: str, name: str, x: Tensor, seed: int, first: int) -> Tensor:
    """Return corrupted inputs, numbered from ``first``: other numbers are other noise."""
    return corrupt(x, name, strength=STRENGTHS[data][name], seed=seed, indices=range(first, first + len(x)))


class Residual(nn.Module):
    """Two normalised convolutions and a way around them."""

    def __init__(self, conv: type[nn.Module], norm: type[nn.Module], in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = conv(width, width, 3, padding=1, bias=False)
        self.bn2 = norm(width)
        self.downsample = nn.Sequential(conv(in_channels, width, 1, stride=stride, bias=False), norm(width))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(inner)) + self.downsample(x)).relu()


class ResNet(nn.Module):
    """A stem, three residual blocks with batch normalisation, the mean over places, and a linear layer."""

    def __init__(self, signals: bool) -> None:
        super().__init__()
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if signals else (nn.Conv2d, nn.BatchNorm2d)
        width = WIDTHS[0][0]
        self.conv1 = conv(1, width, 3, padding=1, bias=False)
        self.bn1 = norm(width)
        blocks = []
        for number, (wider, _) in enumerate(WIDTHS):
            blocks.append(Residual(conv, norm, width, wider, stride=1 + (number > 0)))
            width = wider
        self.layer = nn.Sequential(*blocks)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.bn1(self.conv1(x)).relu()).flatten(2).mean(2))


def network(data: str, kind: str) -> nn.Module:
    """Return a network with random weights for a data set."""
    signals = data == "mnist1d"
    return VGG(in_channels=1, stages=WIDTHS, signals=signals) if kind == "vgg" else ResNet(signals)


@torch.no_grad()
def accuracy(net: nn.Module, part: Part) -> float:
    """Return the percentage that is classified right."""
    with evaluation_mode(net):
        return 100 * float((net(part.x).argmax(1) == part.y).float().mean())


@torch.no_grad()
def dead(net: nn.Module, x: Tensor) -> bool:
    """Tell whether a network is dead to its inputs: all of them get the same class."""
    with evaluation_mode(net):
        return len(net(x).argmax(1).unique()) == 1


def train(
    start: nn.Module,
    data: Task,
    *,
    epochs: int,
    lr: float,
    seed: int,
    change: Callable[[Tensor, int], Tensor] | None = None,
) -> nn.Module:
    """Return a trained copy: of the last epoch, or, with a change of the inputs, of the best changed validation.

    Args:
        start: Network to begin with.
        data: Task; the order of its samples is the seed's, with a change or without.
        epochs: Epochs; the learning rate falls to a tenth after two and after four fifths.
        lr: Learning rate.
        seed: Seed of the order.
        change: Turns inputs and the number of the first into corrupted inputs, anew in every epoch.
    """
    net = copy.deepcopy(start)
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=MOMENTUM, weight_decay=DECAY)
    falls = [2 * epochs // 5, 4 * epochs // 5]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, falls, gamma=0.1)
    best: tuple[float, Mapping[str, Tensor]] = (-1.0, net.state_dict())
    val = data.val if change is None else Part(change(data.val.x, SEEN), data.val.y)
    for epoch in range(epochs):
        x = data.train.x if change is None else change(data.train.x, epoch * len(data.train.x))
        net.train()
        for rows in torch.randperm(len(x), generator=order).split(BATCH):
            loss = nn.functional.cross_entropy(net(x[rows]), data.train.y[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimizer.step()
        schedule.step()
        if change is not None and (score := accuracy(net, val)) > best[0]:
            best = score, copy.deepcopy(net.state_dict())
    if change is not None:
        net.load_state_dict(best[1])
    return net.eval()
