"""Two continual-learning methods to compare with: elastic weight consolidation and synaptic intelligence."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.func import functional_call, grad, vmap


def squared_gradients(model: LightningModule, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the mean over samples of the squared gradient of log p(label | input), one tensor per parameter."""

    def log_probability(params: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, params, (x.unsqueeze(0),))[0]
        return logits.log_softmax(dim=0).gather(0, label.unsqueeze(0)).squeeze(0)

    params = {name: param.detach() for name, param in model.named_parameters() if param.requires_grad}
    per_sample = vmap(grad(log_probability), in_dims=(None, 0, 0))
    totals = {name: torch.zeros_like(param) for name, param in params.items()}
    for x, label in zip(inputs.split(256), labels.split(256), strict=True):  # 256 gradients at a time fit in memory
        for name, gradients in per_sample(params, x, label).items():
            totals[name] += gradients.square().sum(dim=0)
    return {name: total / len(inputs) for name, total in totals.items()}


class EWC(Callback):
    r"""Elastic weight consolidation: a quadratic penalty holds weights the more, the more the tasks depend on them.

    With F the sum over the finished tasks of the diagonal Fisher information at the end of each, on all its training
    images with labels sampled from the model, and w* the weights at the end of the last task, the penalty is
    λ/2 Σ F (w - w*)². Its gradient λ F (w - w*) is added before clipping.

    Args:
        strength: λ.
        epochs_per_task: Epochs after which a task ends.
        seed: Seed of the sampled labels.

    Source: Kirkpatrick et al. 2017, arXiv:1612.00796. One anchor for all tasks: Huszár 2018, arXiv:1712.03847.
    """

    def __init__(self, strength: float, epochs_per_task: int, seed: int = 0) -> None:
        self.strength = strength
        self.epochs_per_task = epochs_per_task
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self._labels = torch.Generator().manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        return {"fisher": self.fisher, "anchor": self.anchor, "labels": self._labels.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.fisher, self.anchor = state_dict["fisher"], state_dict["anchor"]
        self._labels.set_state(state_dict["labels"])

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        for name, fisher in self.fisher.items():
            param = pl_module.get_parameter(name)
            param.grad.add_(fisher * (param.detach() - self.anchor[name]), alpha=self.strength)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.epochs_per_task == 0:
            # the data set rather than the loader: reading the loader would change the order of the next task's batches
            inputs, _ = trainer.train_dataloader.dataset[:]
            self.consolidate(pl_module, inputs)

    @torch.no_grad()
    def consolidate(self, model: LightningModule, inputs: Tensor) -> None:
        """Add the Fisher information of a finished task and anchor the weights."""
        model.eval()
        labels = model(inputs).softmax(dim=1).multinomial(1, generator=self._labels).squeeze(1)
        for name, fisher in squared_gradients(model, inputs, labels).items():
            self.fisher[name] = self.fisher.get(name, 0) + fisher
            self.anchor[name] = model.get_parameter(name).detach().clone()
        model.train()


class SI(Callback):
    r"""Synaptic intelligence: the same penalty, with importances collected while training.

    Every step adds -g Δw to a weight's path integral ω, g being the gradient of the loss alone. At the end of a task
    Ω += max(ω, 0) / ((w - w*)² + ξ), ω restarts and w* becomes w. The penalty is c Σ Ω (w - w*)²; its gradient
    2 c Ω (w - w*) is added before clipping. Negative ω would reward moving away, hence the max.

    Args:
        strength: c.
        epochs_per_task: Epochs after which a task ends.
        damping: ξ.

    Source: Zenke, Poole & Ganguli 2017, arXiv:1703.04200.
    """

    def __init__(self, strength: float, epochs_per_task: int, damping: float = 1e-3) -> None:
        self.strength = strength
        self.epochs_per_task = epochs_per_task
        self.damping = damping
        self.path: dict[str, Tensor] = {}
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self._before: dict[str, tuple[Tensor, Tensor]] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"path": self.path, "importance": self.importance, "anchor": self.anchor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.path, self.importance, self.anchor = (state_dict[name] for name in ("path", "importance", "anchor"))

    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, param in pl_module.named_parameters():
            if name not in self.anchor:
                self.anchor[name] = param.detach().clone()
                self.path[name], self.importance[name] = torch.zeros_like(param), torch.zeros_like(param)

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        for name, param in pl_module.named_parameters():
            if param.grad is not None:
                self._before[name] = param.detach().clone(), param.grad.clone()
                pull = self.importance[name] * (param - self.anchor[name])
                param.grad.add_(pull, alpha=2 * self.strength)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        for name, (weight, gradient) in self._before.items():
            self.path[name] -= gradient * (pl_module.get_parameter(name) - weight)
        self._before = {}

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.epochs_per_task:
            return
        for name, path in self.path.items():
            weight = pl_module.get_parameter(name).detach()
            moved = (weight - self.anchor[name]).square()
            self.importance[name] += path.clamp(min=0) / (moved + self.damping)
            self.anchor[name] = weight.clone()
            path.zero_()
