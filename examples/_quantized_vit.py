"""A small vision transformer on digits, trained at full precision and then with few bits, and what its codes do."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _harness import quiet_trainer
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_weights.data import Digits
from lightning_weights.errors import MissingDependencyError
from lightning_weights.functional.ofq import start_oscillation, update_oscillation
from lightning_weights.functional.whole_files import replacing_file
from lightning_weights.modules import Classifier, CompactViT, KDLoss, fake_quantized

EPOCHS, BATCH, DECAY, TEST_IMAGES = 25, 64, 0.05, 500
RATES = (1e-3, 2e-4)  # of quantization-aware training, from and to, along a cosine
LAST_STEPS, LAST_EPOCHS = 100, 5
Codes = Callable[[nn.Module], Mapping[str, Tensor]]


def digits(seed: int) -> Digits:
    """Return the data of a seed."""
    return Digits(batch_size=BATCH, test_size=TEST_IMAGES, as_images=True, seed=seed)


def cosine(optimizer: torch.optim.Optimizer, epochs: int, low: float) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs, eta_min=low)


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """Return what a file holds, or make it and keep it: several methods go on from the same weights."""
    if not path.exists():
        made = make()
        with replacing_file(path) as file:
            torch.save(made, file)
    return torch.load(path, weights_only=True)


def pretrain(seed: int, epochs: int) -> dict[str, Tensor]:
    """Train at full precision and return the weights."""
    torch.manual_seed(seed)
    network = CompactViT(mlp_ratio=2.0)
    model = Classifier(
        network,
        optimizer=partial(torch.optim.AdamW, lr=3e-3, weight_decay=DECAY),
        lr_scheduler=partial(cosine, epochs=epochs, low=0.0),
    )
    quiet_trainer(max_epochs=epochs, limit_val_batches=0).fit(model, digits(seed))
    return network.state_dict()


def pretrained(seed: int, epochs: int, folder: Path) -> CompactViT:
    """Return a network with the weights of full-precision training."""
    network = CompactViT(mlp_ratio=2.0)
    network.load_state_dict(kept(folder / f"full-{epochs}-{seed}.pt", partial(pretrain, seed, epochs)))
    return network


class Student(Classifier):
    """Learns from labels and from a teacher, with the same loss for every way of quantization."""

    distil: KDLoss  # set from outside: arguments of the constructor would become hyper-parameters

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return self.distil(x, self(x), y)


def own_codes(network: nn.Module) -> dict[str, Tensor]:
    """Return the codes of all weights that OFQ has quantized."""
    return {name: layer.weight_codes() for name, layer in fake_quantized(network).items()}


def torchao_codes(network: nn.Module) -> dict[str, Tensor]:
    """Return the codes of all weights that torchao has prepared."""
    found = {}
    for name, layer in network.named_modules():
        if hasattr(layer, "weight_fake_quantizer"):
            with torch.no_grad():
                values = layer.weight_fake_quantizer(layer.weight)
            scale = layer.weight_fake_quantizer.scale.reshape(-1, 1)
            found[name] = (values / scale).round().to(torch.int8)
    return found


def prepare_torchao(network: nn.Module, bits: int) -> None:
    """Let torchao quantize the weights between the edges, symmetrically with a scale per output channel."""
    try:
        from torchao.quantization import quantize_
        from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig
    except ImportError as error:
        raise MissingDependencyError("torchao", "none", "The comparison with torchao") from error
    weights = IntxFakeQuantizeConfig(getattr(torch, f"int{bits}"), "per_channel", is_symmetric=True)
    inner = ("attention.", "mlp.")
    quantize_(
        network,
        QATConfig(weight_config=weights, step="prepare"),
        filter_fn=lambda part, name: isinstance(part, nn.Linear) and any(word in name for word in inner),
    )


class Watch(Callback):
    """Follows the codes after every step, and the accuracy of the last epochs."""

    def __init__(self, codes: Codes, data: Digits) -> None:
        self.codes, self.test = codes, data.load()[2:]
        self.flips: list[Tensor] = []
        self.oscillating: list[Tensor] = []
        self.accuracies: list[float] = []
        self.state: Any = None

    def _all_codes(self, module: nn.Module) -> Tensor:
        return torch.cat([codes.flatten() for codes in self.codes(module).values()])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.state = start_oscillation(self._all_codes(pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        counts = update_oscillation(self._all_codes(pl_module), self.state)
        self.flips.append(counts.flips)
        self.oscillating.append(counts.oscillating)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch >= (trainer.max_epochs or 0) - LAST_EPOCHS:
            self.accuracies.append(accuracy(pl_module, *self.test))

    def share(self, counts: list[Tensor]) -> float:
        """Return the mean of counts in % of all weights."""
        return 100 * float(torch.stack(counts).float().mean()) / self.state.previous.numel()

    def summary(self) -> dict[str, float]:
        """Return accuracy at the end and over the last epochs, flips per step and the share that oscillates."""
        return {
            "accuracy": self.accuracies[-1],
            "last": sum(self.accuracies) / len(self.accuracies),
            "flips": self.share(self.flips[-LAST_STEPS:]),
            "oscillating": self.share(self.oscillating[-1:]),
        }

    def path(self, epochs: int, before: int = 0) -> dict[str, float]:
        """Return the share that oscillates at the end of every epoch."""
        steps = len(self.oscillating) // epochs
        ends = {epoch: self.oscillating[epoch * steps - 1] for epoch in range(1, epochs + 1)}
        return {f"oscillating_at_{before + epoch}": self.share([count]) for epoch, count in ends.items()}


@torch.no_grad()
def accuracy(module: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of right answers in %, and leave the module's mode as it is."""
    mode = module.training
    correct = module.eval()(x).argmax(1) == y
    module.train(mode)
    return 100 * float(correct.float().mean())


def train(
    network: nn.Module,
    teacher: nn.Module,
    seed: int,
    epochs: int,
    rates: tuple[float, float],
    codes: Codes,
    callbacks: list[Callback],
) -> Watch:
    """Train with few bits and return what was watched."""
    data = digits(seed)
    watch = Watch(codes, data)
    student = Student(
        network,
        optimizer=partial(torch.optim.AdamW, lr=rates[0], weight_decay=DECAY),
        lr_scheduler=partial(cosine, epochs=epochs, low=rates[1]),
    )
    student.distil = KDLoss(teacher)
    quiet_trainer(max_epochs=epochs, limit_val_batches=0, callbacks=[*callbacks, watch]).fit(student, data)
    return watch
