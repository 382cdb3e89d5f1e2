"""Small networks on small data, recorded while they forget."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from _harness import quiet_trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_convert

from lightning_weights.callbacks import ProgressiveForgetting
from lightning_weights.data import MNIST1D, BatchDataset, Digits
from lightning_weights.modules import MLP, Classifier, ConvNet1d

SESSIONS = 7
CLASSES = 10
DIGITS_HELD, SMALLEST_BATCH, LARGEST_BATCH, MOST_EPOCHS = 297, 8, 128, 8
WRONG_LABELS = 0.3
Name = Literal["digits", "noisy digits", "mnist1d", "cancer", "generated"]


class ConvNet2d(nn.Module):
    """Classify images of 8 x 8 with convolutions, the second and third of which halve the size, and two linear layers.

    Args:
        channels: Channels of every convolution.
        features: Width of the hidden linear layer.
        batch_norm: Whether batch normalisation follows each convolution.
        num_classes: Number of outputs.
    """

    def __init__(
        self, channels: Sequence[int], features: int, batch_norm: bool = False, num_classes: int = CLASSES
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, size = 1, 8
        for place, outputs in enumerate(channels):
            stride = 2 if place in (1, 2) else 1
            layers.append(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1))
            layers += [nn.BatchNorm2d(outputs)] if batch_norm else []
            layers.append(nn.ReLU())
            inputs, size = outputs, -(-size // stride)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs * size * size, features), nn.ReLU())
        self.head = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of images, which may be flat."""
        return self.head(self.body(x.view(-1, 1, 8, 8)))


@dataclass(frozen=True)
class Architecture:
    """A multilayer perceptron of some widths, or with ``features`` a convolutional network of some channels."""

    widths: tuple[int, ...]
    features: int = 0

    def __str__(self) -> str:
        return f"{'conv' if self.features else 'mlp'} {'-'.join(map(str, self.widths))}"

    def network(self, data: Name) -> nn.Module:
        """Make the network for a data set; signals get convolutions of one width."""
        values = inputs_and_labels(data)[0].shape[-1]
        if not self.features:
            return MLP(values, self.widths, CLASSES)
        if data.endswith("digits"):
            return ConvNet2d(self.widths, self.features)
        sizes = {"channels": self.widths[0], "layers": len(self.widths), "features": self.features}
        return ConvNet1d(**sizes, num_classes=CLASSES, length=values)


@cache
def inputs_and_labels(data: Name) -> tuple[Tensor, Tensor]:
    """Return a data set's training samples: flat digits, or signals of one channel.

    Args:
        data: ``digits``; ``noisy digits``, of which 30 % have a label drawn at random; ``mnist1d``; ``cancer``, the
            breast cancer data that come with scikit-learn; ``generated``, clusters in 40 dimensions.
    """
    if data.endswith("digits"):
        x, y = Digits(test_size=DIGITS_HELD).tensors()[:2]
        generator = torch.Generator().manual_seed(0)
        wrong = torch.rand(len(y), generator=generator, device="cpu") < WRONG_LABELS
        drawn = torch.randint(CLASSES, (len(y),), generator=generator, device="cpu")
        return x, y.where(~wrong, drawn) if data.startswith("noisy") else y
    if data == "mnist1d":
        return MNIST1D().tensors()[:2]
    from sklearn.datasets import load_breast_cancer, make_classification

    if data == "cancer":
        x, y = load_breast_cancer(return_X_y=True)
    else:
        dimensions = {"n_features": 40, "n_informative": 16, "n_redundant": 8, "n_clusters_per_class": 2}
        x, y = make_classification(3000, n_classes=CLASSES, class_sep=1.5, random_state=0, **dimensions)
    standard = (x - x.mean(0)) / x.std(0)
    return torch.from_numpy(standard).float()[:, None], torch.from_numpy(y).long()


def draw(samples: int, seed: int) -> dict[str, Any]:
    """Draw how a network is trained: the rate, the learning rate, the batch size and the epochs per session.

    As in the paper, r ~ U(0.3, 0.9), the learning rate ~ U(1e-5, 4e-3) and batches fit into the smallest subset; small
    data need a larger r, so that this subset holds a sample per class.

    Args:
        samples: Samples of the data.
        seed: Seed of the draws.
    """
    u = torch.rand(4, generator=torch.Generator().manual_seed(seed), device="cpu").tolist()
    least = max(0.3, ((CLASSES + 1) / samples) ** (1 / (SESSIONS - 1)))
    rate = least + u[0] * (0.9 - least)
    smallest = min(LARGEST_BATCH, math.floor(samples * rate ** (SESSIONS - 1)))
    return {
        "rate": rate,
        "lr": 1e-5 + u[1] * (4e-3 - 1e-5),
        "batch_size": SMALLEST_BATCH + int(u[2] * (smallest - SMALLEST_BATCH + 1)),
        "epochs": 1 + int(u[3] * MOST_EPOCHS),
    }


def record(
    network: nn.Module,
    samples: tuple[Tensor, Tensor],
    *,
    rate: float,
    lr: float,
    batch_size: int,
    epochs: int,
    sessions: int = SESSIONS,
    seed: int = 0,
    folder: Path | None = None,
) -> ProgressiveForgetting:
    """Train a network on ever smaller parts of its data, as the paper does, and return what has taken the snapshots.

    Args:
        network: The network; it is trained.
        samples: Inputs and labels.
        rate: Share of the data that each session keeps.
        lr: Learning rate of Adam.
        batch_size: Samples per batch; the last batch of an epoch is left out if it is smaller.
        epochs: Epochs of each session.
        sessions: Number of sessions.
        seed: Seed of the subsets and of the order of samples.
        folder: Where snapshots are written. ``None``: they stay in memory.
    """
    place = None if folder is None else str(folder)
    forgetting = ProgressiveForgetting(rate, sessions, epochs, subset_seed=seed, snapshot_dir=place)
    loader = DataLoader(
        BatchDataset(*samples),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=default_convert,
        generator=torch.Generator().manual_seed(seed),
    )
    module = Classifier(network, num_classes=CLASSES, optimizer=partial(torch.optim.Adam, lr=lr))
    quiet_trainer(max_epochs=sessions * epochs, callbacks=[forgetting]).fit(module, loader)
    return forgetting


def record_at_random(architecture: Architecture, data: Name, seed: int, folder: Path) -> dict[str, Any]:
    """Record a network with numbers drawn from a seed, unless the folder holds it already; return these numbers.

    Args:
        architecture: Which network.
        data: Which data.
        seed: Seed of everything.
        folder: Where its snapshots are written.
    """
    samples = inputs_and_labels(data)
    numbers = draw(len(samples[1]), seed)
    if len(list(folder.glob("session_*.safetensors"))) < SESSIONS:
        for old in folder.glob("session_*.safetensors"):
            old.unlink()  # of a run that was stopped
        torch.manual_seed(seed)
        record(architecture.network(data), samples, **numbers, seed=seed, folder=folder)
    return numbers
