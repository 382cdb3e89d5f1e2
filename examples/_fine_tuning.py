"""One small fine-tuning task for several examples: a network trained on upright digits learns digits on their side.

network = pretrained(seed)                     # a fresh copy, the same for all methods of a seed
network = with_peft(network, "DoRA", r=8)      # a peer, or the way in of the method at hand
metrics = fine_tune(network, partial(torch.optim.AdamW, lr=1e-2), seed)
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from statistics import mean
from typing import Any

import torch
from _harness import quiet_trainer
from lightning.pytorch import Callback
from torch import Tensor, nn

from lightning_weights.data import ClassificationData, Digits
from lightning_weights.errors import MissingDependencyError
from lightning_weights.functional.evaluation_mode import evaluation_mode
from lightning_weights.modules import MLP, Classifier

HIDDEN = (128, 128, 128)
LAYERS = ("body.1", "body.4", "body.7")  # the hidden ones; the head stays as it is
UPRIGHT, TURNED, STEPS, BATCH = 900, 300, 100, 50  # images and steps
PEERS = ("LoRA", "DoRA", "PiSSA", "MiSS", "bat")


class Upright(Digits):
    """Digits as they are, standardised."""

    def load(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        train_x, train_y, test_x, test_y = _standardised(*super().load())
        return train_x[:UPRIGHT], train_y[:UPRIGHT], test_x, test_y


class Turned(Digits):
    """A few digits turned by 90 degrees, none of which the network has seen upright, and the same held-out images."""

    def load(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        train_x, train_y, test_x, test_y = _standardised(*super().load())
        few = slice(len(train_x) - TURNED, None)
        return _turn(train_x[few]), train_y[few], _turn(test_x), test_y


def _standardised(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give the pixels mean 0 and deviation 1 over the images that the network is pretrained on."""
    seen = train_x[:UPRIGHT]
    mean, deviation = seen.mean(), seen.std()
    return (train_x - mean) / deviation, train_y, (test_x - mean) / deviation, test_y


def _turn(images: Tensor) -> Tensor:
    return images.reshape(-1, 8, 8).rot90(dims=(1, 2)).reshape(-1, 64)


def pretrained(seed: int) -> MLP:
    """Return a copy of the network that has learned upright digits; the global generators stay where they are."""
    return copy.deepcopy(_pretrained(seed))


@cache
def _pretrained(seed: int) -> MLP:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = MLP(64, HIDDEN, 10)
        model = Classifier(network, optimizer=partial(torch.optim.AdamW, lr=2e-3))
        quiet_trainer(max_epochs=15, limit_val_batches=0).fit(model, Upright(BATCH, seed=seed))
    return network


def with_peft(
    network: nn.Module, peer: str, r: int, alpha: float | None = None, layers: Sequence[str] = LAYERS
) -> nn.Module:
    """Freeze a network and give some of its layers the adapters of a method that peft has.

    Args:
        network: Network, which is changed.
        peer: One of ``PEERS``; ``bat`` is MiSS with ``init_weights="bat"``, the column form of Bone.
        r: Rank or block size.
        alpha: α of the LoRA kinds. ``None``: 2 r, except 1 r for PiSSA, whose residual depends on it.
        layers: Names of the layers, as peft takes them.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingDependencyError("peft", "peft", "Comparing with LoRA and its kin") from error
    common = {"r": r, "target_modules": list(layers)}
    if peer in ("MiSS", "bat"):
        config = peft.MissConfig(init_weights="bat" if peer == "bat" else True, **common)
    else:
        scaled = (r if peer == "PiSSA" else 2 * r) if alpha is None else alpha
        start = "pissa" if peer == "PiSSA" else True
        config = peft.LoraConfig(lora_alpha=scaled, use_dora=peer == "DoRA", init_lora_weights=start, **common)
    return peft.get_peft_model(network, config)


class _Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(outputs["loss"].item())


def fine_tune(
    network: nn.Module,
    make_optimizer: Callable[..., torch.optim.Optimizer],
    seed: int,
    callbacks: Iterable[Callback] = (),
    steps: int = STEPS,
    data: ClassificationData | None = None,
) -> dict[str, float]:
    """Train a network on few digits that lie on their side, and measure it.

    Args:
        network: Network, whose parameters with gradients are trained.
        make_optimizer: Makes the optimizer from the parameters.
        seed: Seed of the data's split and order; dropout and adapters draw from the global generators.
        callbacks: The callbacks of a method.
        steps: Optimizer steps.
        data: Other data. ``None``: digits on their side.

    Returns:
        ``loss_early`` (mean of the losses of steps 20 to 40), ``loss_late`` (of the last 20), ``accuracy`` on held-out
        images as trained on and ``kept`` on the upright ones, in %; ``state_bytes`` of the optimizer, ``trained``
        parameters.
    """
    losses, data = _Losses(), Turned(BATCH, seed=seed) if data is None else data
    network.train()  # Lightning leaves a network in the mode that it finds
    model = Classifier(network, optimizer=make_optimizer)
    trainer = quiet_trainer(max_steps=steps, limit_val_batches=0, callbacks=[*callbacks, losses])
    trainer.fit(model, data)
    (optimizer,) = trainer.optimizers
    return {
        "loss_early": mean(losses.values[20:40] or losses.values),
        "loss_late": mean(losses.values[-20:]),
        "accuracy": accuracy(model, data),
        "kept": accuracy(model, Upright(seed=seed)),
        "state_bytes": state_bytes(optimizer),
        "trained": sum(param.numel() for param in model.parameters() if param.requires_grad),
    }


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return how much an optimizer keeps per parameter, without counters of steps."""
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(value.nbytes for value in kept if value.ndim > 0)


def accuracy(network: nn.Module, data: ClassificationData) -> float:
    """Return the percentage of held-out images that are classified correctly."""
    _, _, x, y = data.tensors()
    with evaluation_mode(network), torch.no_grad():
        return 100 * float((network(x).argmax(dim=1) == y).float().mean())
