"""What the example of growing networks shares: data, training, counted operations, and other ways to grow."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import cache, partial
from typing import Any

import torch
from _harness import quiet_trainer
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_convert
from torch.utils.flop_counter import FlopCounterMode

from lightning_weights.data import MNIST1D, BatchDataset
from lightning_weights.functional.mixture_growth import grown_learning_rate
from lightning_weights.modules import Classifier, PooledConvNet1d, mixture_parts
from lightning_weights.modules.mixture_layer import MixtureLayer

BATCH, DECAY, NOISE = 100, 5e-4, 0.01


@cache
def signals(samples: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return MNIST-1D, four fifths for training; the same for all seeds."""
    return MNIST1D(num_samples=samples).load()


def batches(samples: int, seed: int) -> DataLoader:
    """Return training batches, in an order of the seed's."""
    order = torch.Generator().manual_seed(seed)
    dataset = BatchDataset(*signals(samples)[:2])
    return DataLoader(dataset, BATCH, shuffle=True, collate_fn=default_convert, generator=order, drop_last=True)


@torch.no_grad()
def accuracy(network: nn.Module, samples: int) -> float:
    """Return the percentage of test signals that are classified right."""
    _, _, x, y = signals(samples)
    training = network.training
    correct = network.eval()(x).argmax(1) == y
    network.train(training)
    return 100 * float(correct.float().mean())


def operations(network: nn.Module) -> float:
    """Count the floating-point operations of one training step, in 10⁹.

    Those of convolutions and matrix products, forward and backward, and of mixing: for every number of a weight a
    product and a sum per template, forward, to the templates and to the coefficients.
    """
    copied, x = deepcopy(network).train(), torch.randn(BATCH, 1, 40)
    with FlopCounterMode(display=False) as counter:
        nn.functional.cross_entropy(copied(x), torch.zeros(BATCH, dtype=torch.long)).backward()
    layers = [layer for layer in mixture_parts(network).values() if isinstance(layer, MixtureLayer)]
    mixing = sum(3 * 2 * layer.bank.num_templates * layer.weight.numel() for layer in layers)
    return (counter.get_total_flops() + mixing) / 1e9


class Track(Callback):
    """Measures the test accuracy when an epoch begins and after the last one, from one epoch on."""

    def __init__(self, samples: int, start: int = 0) -> None:
        self.samples, self.start, self.path = samples, start, []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch >= self.start:
            self.path.append(accuracy(pl_module.network, self.samples))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.path.append(accuracy(pl_module.network, self.samples))


def sgd(params: Iterable[Any], lr: float) -> torch.optim.Optimizer:
    """Return the paper's optimizer."""
    return torch.optim.SGD(params, lr=lr, momentum=0.9, nesterov=True, weight_decay=DECAY)


def cosine(optimizer: torch.optim.Optimizer, epochs: int) -> Any:
    """Return a learning rate that falls to nothing."""
    rate = partial(grown_learning_rate, epochs=epochs, lr=1.0, lr_min=0.0, cycles=1, warmup=0)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: rate(min(epoch, epochs - 1)))


def classifier(network: nn.Module, lr: float, epochs: int) -> Classifier:
    """Return a module that trains a network."""
    return Classifier(network, optimizer=partial(sgd, lr=lr), lr_scheduler=partial(cosine, epochs=epochs))


def train(network: nn.Module, lr: float, epochs: int, samples: int, seed: int, start: int = 0) -> list[float]:
    """Train a plain network and return the accuracies when epochs begin, from one on, and after the last."""
    track = Track(samples, start)
    trainer = quiet_trainer(max_epochs=epochs, callbacks=[track], limit_val_batches=0)
    trainer.fit(classifier(network, lr, epochs), batches(samples, seed))
    return track.path


def parts(network: PooledConvNet1d) -> tuple[list[nn.Conv1d], list[nn.BatchNorm1d]]:
    """Return convolutions and norms in their order."""
    convolutions = [part for part in network.body if isinstance(part, nn.Conv1d)]
    return convolutions, [part for part in network.body if isinstance(part, nn.BatchNorm1d)]


@torch.no_grad()
def widen(half: PooledConvNet1d, full: PooledConvNet1d) -> None:
    """Fill a network twice as wide with copies of channels, so that it computes the same but for a little noise.

    Chen, Goodfellow and Shlens 2016, arXiv:1511.05641: each new channel is a copy of a random one, and what reads
    copies divides by their number. Noise of a hundredth of the weights' deviation tells the copies apart.
    """
    source: Tensor | None = None
    for old, norm, new, new_norm in zip(*parts(half), *parts(full), strict=True):
        weight, width = old.weight, old.out_channels
        if source is not None:
            weight = weight[:, source] / source.bincount()[source].view(-1, 1)
        source = torch.cat([torch.arange(width), torch.randint(width, (width,))])
        new.weight.copy_(weight[source])
        new.weight[width:] += NOISE * new.weight.std() * torch.randn_like(new.weight[width:])
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(new_norm, name).copy_(getattr(norm, name)[source])
    full.head.weight.copy_(half.head.weight[:, source] / source.bincount()[source])


@torch.no_grad()
def pad(half: PooledConvNet1d, full: PooledConvNet1d) -> None:
    """Copy a network into the first channels of one twice as wide, whose other weights stay random."""
    for old, new in zip(half.modules(), full.modules(), strict=True):
        for kept, given in zip(new.parameters(recurse=False), old.parameters(recurse=False), strict=True):
            kept[tuple(slice(size) for size in given.shape)] = given
        if isinstance(old, nn.BatchNorm1d):
            new.running_mean[: old.num_features] = old.running_mean
            new.running_var[: old.num_features] = old.running_var


GROW: dict[str, Callable[[PooledConvNet1d, PooledConvNet1d], None]] = {"Net2Wider": widen, "random padding": pad}
