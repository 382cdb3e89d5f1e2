"""The last phase of quantization-aware training, in which only weights that sit on a threshold move."""

import math
import numbers
import warnings
from collections.abc import Iterable
from statistics import median
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_weights.callbacks._lean_callback import LeanCallback
from lightning_weights.callbacks._real_steps import RealSteps
from lightning_weights.errors import LightningWeightsWarning, check_number
from lightning_weights.functional.ofq import updates_per_range
from lightning_weights.modules import FakeQuantized, QKRAttention, StatsQuantizer, fake_quantized

FEWEST, MOST = 2.0, 30.0  # typical updates that fit into the boundary range


class ConfidenceGuidedAnnealing(LeanCallback):
    r"""End a quantization-aware training by freezing every weight that is farther than BR from a rounding threshold.

    $$F = \{\, i : \min_j |u_i - (j + \tfrac12)| > \mathrm{BR} \,\}, \qquad w_F \text{ stays}, \qquad
    u = n W / s - \tfrac12$$

    In the phase, before every optimizer step and before gradients are clipped, F is found anew from the weights; its
    gradients become zero, and after the step its weights are what they were, whatever momentum and weight decay have
    done. An update that pushes a weight out of the range thereby freezes it. The learning rate is constant.

    Weights that OFQ has quantized from their statistics are annealed; those with learned scales, as in the first and
    the last layer, and all other parameters are trained on. In an attention whose query-key product is quantized, the
    gradient of a frozen entry of the product is zero, and of the two factors everything stays that no free entry
    depends on.

    Every ``log_every_n_steps`` steps of the Trainer it logs ``weights/ofq/`` ``free`` (share of the annealed weights
    that may move) and ``updates_per_range``: BR divided by what an update of the size of the learning rate moves u.
    Where this is below 2 weights leave the range at once, above 30 they stay in it for ever; it warns of both when the
    phase begins.

    Args:
        boundary_range: BR, in quantization steps. 0: nothing moves. From 0.5 on: everything does.
        start_epoch: Epoch that begins the phase, counted from 0; a number below 1 with a decimal point is a share of
            the Trainer's ``max_epochs``.
        lr: Learning rate of the phase in all parameter groups, whatever schedule there is; ``None``: the schedule's.
        anneal_qk: Whether query-key products are annealed. The released code does not do it.

    Raises:
        ValueError: If an argument is out of range, or a share is given without ``max_epochs``.
        MisconfigurationException: If no weight can be annealed.

    Warns:
        LightningWeightsWarning: If the range does not fit the learning rate, or is so wide that nothing is frozen.

    Source: Liu, Liu & Cheng 2023, arXiv:2302.02210. Differs from the released code, which leaves query-key products out
    and skips the phase under mixed precision with a loss scaler.

    Examples:
        >>> ConfidenceGuidedAnnealing(boundary_range=0.005, start_epoch=0.9, lr=1e-5).start_epoch
        0.9

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.OFQ
            - class_path: lightning_weights.callbacks.ConfidenceGuidedAnnealing
              init_args: {boundary_range: 0.005, start_epoch: 0.9, lr: 1.0e-5}
        ```
    """

    def __init__(
        self,
        boundary_range: float = 0.005,
        start_epoch: int | float = 0.9,
        lr: float | None = 1e-5,
        anneal_qk: bool = True,
    ) -> None:
        check_number("boundary_range", boundary_range, low=0.0)
        if isinstance(start_epoch, numbers.Integral):
            check_number("start_epoch", start_epoch, low=0, whole=True)
        else:
            check_number("start_epoch", start_epoch, low=0.0, high=1.0)
        if lr is not None:
            check_number("lr", lr, low=0.0)
        if boundary_range >= 0.5:
            warnings.warn(
                f"boundary_range {boundary_range} freezes nothing: no weight between two thresholds is more than 0.5 "
                f"steps away from the nearest",
                LightningWeightsWarning,
                stacklevel=2,
            )
        self.boundary_range = boundary_range
        self.start_epoch = start_epoch
        self.lr = lr
        self.anneal_qk = anneal_qk
        self.started = False
        self._reset()

    def _reset(self) -> None:
        self._steps = RealSteps()
        self._handles: list[Any] = []
        self._kept: dict[int, list[tuple[nn.Parameter, Tensor, Tensor]]] = {}
        self._free: list[tuple[Tensor, int]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return whether the phase has begun."""
        return {"started": self.started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.started = state_dict["started"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what an earlier fit has left."""
        self._stop(pl_module)
        self._reset()
        if stage == "fit":
            self.started = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is something to anneal, and a time for it."""
        if not self._annealed(pl_module):
            raise MisconfigurationException(
                "ConfidenceGuidedAnnealing found no weight that is quantized from its statistics: put OFQ among the "
                "callbacks with weight_quantizer='statsq', or quantize the network before the fit with "
                "OFQ(...).attach(module)"
            )
        if not isinstance(self.start_epoch, numbers.Integral) and (trainer.max_epochs or -1) < 0:
            raise ValueError(
                f"start_epoch {self.start_epoch} is a share of the Trainer's max_epochs, which is "
                f"{trainer.max_epochs}; set it, or give start_epoch as a whole number of epochs"
            )

    def _annealed(self, pl_module: LightningModule) -> list[FakeQuantized]:
        layers = fake_quantized(pl_module).values()
        return [
            layer
            for layer in layers
            if isinstance(layer.weight_quantizer, StatsQuantizer)
            and (self.anneal_qk or not isinstance(layer, QKRAttention))
        ]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to restore weights after steps, and go on with a phase that had begun."""
        self._steps.watch(trainer.optimizers)
        self._handles = [optimizer.register_step_post_hook(self._restore) for optimizer in trainer.optimizers]
        if self.started:
            self._anneal_products(pl_module, self.boundary_range)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the phase."""
        share = not isinstance(self.start_epoch, numbers.Integral)
        start = int(self.start_epoch * (trainer.max_epochs or 0)) if share else self.start_epoch
        if self.started or trainer.current_epoch < start:
            return
        self.started = True
        self._set_rate(trainer.optimizers)
        self._anneal_products(pl_module, self.boundary_range)
        updates = self._updates_per_range(trainer, pl_module)
        if trainer.is_global_zero and self.boundary_range and not FEWEST <= updates <= MOST:
            what = "leave it with their next update" if updates < FEWEST else "stay in it and go on oscillating"
            warnings.warn(
                f"boundary_range {self.boundary_range} is {updates:.2g} times as wide as an update of the size of the "
                f"learning rate: weights {what}. Choose boundary_range or lr so that it is between {FEWEST:g} and "
                f"{MOST:g}",
                LightningWeightsWarning,
                stacklevel=2,
            )

    def _set_rate(self, optimizers: Iterable[Optimizer]) -> None:
        for group in [group for optimizer in optimizers for group in optimizer.param_groups]:
            if isinstance(group["lr"], Tensor) and self.lr is not None:
                group["lr"].fill_(self.lr)  # a compiled step reads this very tensor
            elif self.lr is not None:
                group["lr"] = self.lr

    def _anneal_products(self, pl_module: LightningModule, boundary_range: float | None) -> None:
        for part in pl_module.modules():
            if isinstance(part, QKRAttention):
                part.boundary_range = boundary_range if self.anneal_qk else None

    def _updates_per_range(self, trainer: Trainer, pl_module: LightningModule) -> float:
        """Return the median over the layers, without products: a factor's update is not one of the product."""
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        rates = {id(param): float(group["lr"]) for group in groups for param in group["params"]}
        layers = [layer for layer in self._annealed(pl_module) if id(getattr(layer, "weight", None)) in rates]
        found = [
            updates_per_range(self.boundary_range, layer.coded_weight().step, rates[id(layer.weight)])
            for layer in layers
        ]
        return median(found) if found else math.nan

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Undo what a schedule has done to the learning rate."""
        if self.started:
            self._set_rate(trainer.optimizers)

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the gradients of frozen weights, and keep their values."""
        if not self.started:
            return
        owned = {id(param) for group in optimizer.param_groups for param in group["params"]}
        kept = []
        for layer in self._annealed(pl_module):
            for param, movable in layer.movable(self.boundary_range):
                if id(param) in owned:
                    kept.append((param, movable, param.detach().clone()))
                if id(param) in owned and param.grad is not None:
                    param.grad.masked_fill_(~movable, 0.0)  # zero times the infinity of an overflow would be NaN
        self._kept[id(optimizer)] = kept

    @torch.no_grad()
    def _restore(self, optimizer: Optimizer, *arguments: Any) -> None:
        # a gradient scaler that skips a step leaves what was kept, and the next step replaces it
        kept = self._kept.pop(id(optimizer), [])
        for param, movable, before in kept:
            param.copy_(torch.where(movable, param, before))
        self._free += [(movable.sum(), movable.numel()) for _, movable, _ in kept]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, after real steps only."""
        free, self._free = self._free, []
        every = trainer.log_every_n_steps
        if not self._steps.taken() or not every or trainer.global_step % every or not free:
            return
        counts, sizes = zip(*free, strict=True)
        values = {
            "free": torch.stack(counts).sum() / sum(sizes),
            "updates_per_range": self._updates_per_range(trainer, pl_module),
        }
        pl_module.log_dict({f"weights/ofq/{name}": value for name, value in values.items()}, on_epoch=False)

    def _stop(self, pl_module: LightningModule) -> None:
        self._steps.stop()
        for handle in self._handles:
            handle.remove()
        self._handles, self._kept, self._free = [], {}, []
        self._anneal_products(pl_module, None)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off."""
        self._stop(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the hooks off."""
        self._stop(pl_module)
