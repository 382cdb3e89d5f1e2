"""Vision transformers of several depths on digits, and networks that they may begin with."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from _harness import quiet_trainer
from _quantized_vit import accuracy, kept
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lightning_weights.data import Digits
from lightning_weights.modules import Classifier, CompactViT, SWSDistillation, extract_learngene

BATCH, TEST_IMAGES = 32, 597
TRAIN_IMAGES = 1797 - TEST_IMAGES
SHAPE: dict[str, Any] = {"width": 32, "heads": 2, "mlp_ratio": 2.0}
WIDE: dict[str, Any] = {**SHAPE, "width": 48, "heads": 3}  # heads of the same width
STAGES, REPEATS, LONGEST = 3, [2, 2, 2], 12
TEACHER_EPOCHS, TEACHER_LR = 12, 2e-3
WARMUP = 3  # epochs of every training from random weights in which the learning rate grows


def digits(seed: int) -> Digits:
    """Return the data of a seed."""
    return Digits(batch_size=BATCH, test_size=TEST_IMAGES, as_images=True, seed=seed)


def adamw(params: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=lr, weight_decay=0.05, fused=True)  # a loop over small tensors takes longer


def cosine(optimizer: torch.optim.Optimizer, epochs: int, warmup: int = 0) -> Any:
    """Return a cosine from the learning rate to nearly zero, after epochs in which it grows."""
    warmup = min(warmup, epochs - 1)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs - warmup)
    if not warmup:
        return fall
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=warmup)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[warmup])


def teacher_network() -> nn.Sequential:
    """Return a small convolutional network."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )


class After(Callback):
    """Measures the accuracy before training and after some epochs."""

    def __init__(self, epochs: Sequence[int], seed: int) -> None:
        self.epochs, self.test = epochs, digits(seed).load()[2:]
        self.accuracies: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.accuracies.append(accuracy(pl_module, *self.test))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch + 1 in self.epochs:
            self.accuracies.append(accuracy(pl_module, *self.test))


def fine_tune(
    network: nn.Module, seed: int, lr: float, epochs: Sequence[int], warmup: int | None = None
) -> list[float]:
    """Train on labels and return the accuracies before and after the given numbers of epochs.

    The learning rate is constant, or falls along a cosine after ``warmup`` epochs in which it grows.
    """
    torch.manual_seed(seed)
    after, last = After(epochs, seed), max(epochs)
    schedule = None if warmup is None else partial(cosine, epochs=last, warmup=warmup)
    model = Classifier(network, optimizer=partial(adamw, lr=lr), lr_scheduler=schedule)
    quiet_trainer(max_epochs=last, limit_val_batches=0, callbacks=[after]).fit(model, digits(seed))
    return after.accuracies


def train_teacher(seed: int) -> dict[str, Tensor]:
    """Train the teacher and return its weights."""
    torch.manual_seed(seed)
    network = teacher_network()
    fine_tune(network, seed, TEACHER_LR, [TEACHER_EPOCHS], warmup=0)
    return network.state_dict()


def teacher_of(seed: int, folder: Path) -> nn.Module:
    """Return the trained teacher."""
    network = teacher_network()
    network.load_state_dict(kept(folder / f"teacher-{seed}.pt", partial(train_teacher, seed)))
    return network


def distill(
    seed: int, lr: float, epochs: int, folder: Path, shape: Mapping[str, Any], repeats: list[int]
) -> dict[str, Tensor]:
    """Train a network on the teacher's answers alone and return its weights."""
    teacher = teacher_of(seed, folder)
    torch.manual_seed(seed)
    network = CompactViT(**shape, depth=sum(repeats), repeats=repeats)
    schedule = partial(cosine, epochs=epochs, warmup=WARMUP)
    model = SWSDistillation(network, teacher, optimizer=partial(adamw, lr=lr), lr_scheduler=schedule)
    quiet_trainer(max_epochs=epochs, limit_val_batches=0).fit(model, digits(seed))
    return network.state_dict()


def auxiliary(seed: int, lr: float, epochs: int, folder: Path) -> CompactViT:
    """Return the auxiliary network of shared stages, trained for some epochs."""
    network = CompactViT(**SHAPE, depth=sum(REPEATS), repeats=REPEATS)
    make = partial(distill, seed, lr, epochs, folder, SHAPE, REPEATS)
    network.load_state_dict(kept(folder / f"auxiliary-{lr:g}-{epochs}-{seed}.pt", make))
    return network


def longest(seed: int, lr: float, epochs: int, folder: Path, wide: bool) -> CompactViT:
    """Return the longest network, which shares nothing, trained for as many layers times epochs as the auxiliary."""
    epochs, shape = longest_epochs(epochs), WIDE if wide else SHAPE
    network = CompactViT(**shape, depth=LONGEST, repeats=[1] * LONGEST)
    make = partial(distill, seed, lr, epochs, folder, shape, [1] * LONGEST)
    network.load_state_dict(kept(folder / f"{'wide' if wide else 'longest'}-{lr:g}-{epochs}-{seed}.pt", make))
    return network


def longest_epochs(epochs: int) -> int:
    """Return for how many epochs the longest network is trained, if the auxiliary one takes ``epochs``."""
    return max(1, epochs * sum(REPEATS) // LONGEST)


def select(source: Mapping[str, Tensor], network: nn.Module) -> nn.Module:
    """Give a network entries of a deeper, perhaps wider one: its first layers, and in them every n-th entry."""
    chosen = {}
    for name, tensor in network.state_dict().items():
        value = source[name]
        for dim, size in enumerate(tensor.shape):
            value = value.index_select(dim, torch.arange(size) * value.shape[dim] // size)
        chosen[name] = value
    network.load_state_dict(chosen)
    return network


def forward_flops(network: nn.Module) -> int:
    """Count the operations of a forward pass of one 8 x 8 image."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused attention of CPUs is not counted
        network.eval()(torch.zeros(1, 1, 8, 8))
    return int(counter.get_total_flops())


def training_flops(network: nn.Module, epochs: int, taught: bool = False) -> float:
    """Count the operations of a training: a backward pass costs two forward passes.

    A teacher answers once per image and epoch, and was trained on labels before.
    """
    total = 3 * forward_flops(network) * epochs
    if taught:
        total += forward_flops(teacher_network()) * (epochs + 3 * TEACHER_EPOCHS)
    return float(total * TRAIN_IMAGES)


def learngene_bytes() -> int:
    """Return the size of the file of the shared stages."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "learngene.safetensors")
        extract_learngene(CompactViT(**SHAPE, depth=sum(REPEATS), repeats=REPEATS)).save(path)
        return path.stat().st_size


def checkpoint_bytes(network: nn.Module) -> int:
    """Return the size of a file with a network's weights and nothing else."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "network.safetensors")
        save_file(network.state_dict(), path)
        return path.stat().st_size
