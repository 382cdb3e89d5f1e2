"""A small classifier that LIFT trains, and how."""

from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.callbacks import LIFTFinetuning
from lightning_weights.modules import MLP, Classifier
from lightning_weights.optimizers import LIFTAdamW
from tests.helpers.battery import flat
from tests.helpers.tasks import make_trainer

RULE = {"lr": 0.02, "budget_rank": 1, "filter_rank": 2, "update_interval": 4}


def classifier(hidden: tuple[int, ...] = (12, 10), **rule: Any) -> Classifier:
    """Return a classifier of four numbers, always with the same weights."""
    torch.manual_seed(0)
    return Classifier(MLP(4, hidden, 3), 3, optimizer=partial(LIFTAdamW, **{**RULE, **rule}))


def loader(size: int = 20, batch_size: int = 4) -> DataLoader:
    x = torch.randn(size, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, (x.sum(dim=1) > 0).long() + (x[:, 0] > 0)), batch_size=batch_size)


def fit(model: Any, lift: LIFTFinetuning, extra: Any = (), ckpt: Any = None, data: Any = None, **options: Any) -> Any:
    torch.manual_seed(2)
    trainer = make_trainer([lift, *extra], **{"max_epochs": 2, **options})
    trainer.fit(model, loader() if data is None else data, ckpt_path=ckpt, weights_only=None if ckpt is None else True)
    return trainer


def weights(model: nn.Module) -> dict[str, Any]:
    return flat(model.state_dict())


class Watch(Callback):
    """Looks at marks and flags while training, and at what a step finds."""

    def __init__(self) -> None:
        self.marked: list[str] = []
        self.trained: list[str] = []
        self.gathered: list[dict[str, torch.Tensor]] = []
        self.dense: list[list[str]] = []

    def on_train_start(self, trainer, pl_module):
        params = dict(pl_module.named_parameters())
        self.marked = [name for name, param in params.items() if getattr(param, "_lw_sparse", False)]
        self.trained = [name for name, param in params.items() if param.requires_grad]

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        params = dict(pl_module.named_parameters())
        gathered = {name: getattr(param, "_lw_sparse_grad", None) for name, param in params.items()}
        self.gathered.append({name: value.clone() for name, value in gathered.items() if value is not None})
        self.dense.append([name for name, param in params.items() if param.grad is not None])
