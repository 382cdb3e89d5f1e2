"""Dense training with the transformed sparse constraint and the condition-number constraint."""

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_weights.callbacks._injection import (
    check_trained,
    check_weights,
    inject_when_built,
    inject_when_loading,
    release,
    weight_layers,
)
from lightning_weights.callbacks._penalties import add_to_loss, refuse_manual_ddp
from lightning_weights.callbacks._real_steps import RealSteps
from lightning_weights.callbacks._training_data import number_of_samples
from lightning_weights.callbacks._tscnc_layers import (
    conditioned_layers,
    decayed_tensors,
    layers_to_gate,
    mean_condition,
    names_or_choice,
    put_gates,
    warn_if_decayed,
    warn_if_wide,
)
from lightning_weights.callbacks._weight_average import AveragingCallback
from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional.tscnc import MODES, condition_numbers, tsc_penalty
from lightning_weights.modules.hard_concrete_gate import HardConcreteGate
from lightning_weights.modules.parametrized import find_parametrizations


class TSCNC(AveragingCallback):
    r"""Prepare a network for heavy pruning: add the TSC and CNC penalties to the loss, gate filters, average weights.

    $$L + \lambda R_{\mathrm{TSC}} + w\, \overline{L_{\mathrm{CNC}}}$$

    It works with any LightningModule, unchanged. Before the optimizer exists it multiplies the filters of
    ``gated_layers`` by hard-concrete gates; before every backward it adds the penalties to the loss, divided by
    ``accumulate_grad_batches`` as the loss is; after every optimizer step it clamps log α and moves the average.
    R_TSC holds the L2 decay of all parameters, so the optimizer should have none. In manual optimization every
    ``manual_backward`` also goes backward through the penalties; the loss itself stays as it is.

    Validation, test and prediction see the averaged weights. Checkpoints hold the live weights, from which training
    goes on, and the average in this callback's state, so ``trainer.test(model, ckpt_path=...)`` with this callback
    tests what the validation has measured. ``apply_average`` makes the average the weights, which ScorePruning does
    when it begins in the same fit. Every fit that does not resume starts its average anew.

    Every ``log_every_n_steps`` steps it logs ``weights/tscnc/`` ``tsc``, ``cnc``, ``condition_number`` (of the
    classifier) and, with gates, ``open_gates`` (share of the filters that evaluation does not close).

    Args:
        num_train_samples: N, the number of training samples. ``None``: the length of the training loader's data set.
        weight_decay: ω of R_TSC.
        l0: λ0, the price of a weight behind a gate that is probably open.
        a: Shape of the transformed ℓ1; the smaller, the earlier it saturates.
        tsc_weight: λ, the weight of R_TSC; normalisation layers keep their decay even with 0.
        cnc_weight: w, the weight of the condition-number constraint, a mean over ``cnc_layers``. 0: none.
        cnc_layers: Whose condition counts: the ``classifier``, which is the last Linear or Conv layer, ``all`` of
            these, or a list of names as in ``named_modules()``, with ``*`` and ``?``.
        cnc_mode: ``logdet``, ``released`` (the published formula, without gradient for 20 classes and more), or
            ``amgm``, see ``functional.tscnc.condition_penalty``.
        gated_layers: Layers with gates: a list of names as in ``cnc_layers``, ``auto`` for all but the first layer and
            the classifier, ``None`` for none.
        droprate_init: Initial probability of a gate to be closed, about.
        temperature: β of the gates.
        ema_decay: Decay of the average of all trainable parameters per optimizer step. ``None``: no average.
        released_sign: Use (a + 1)s / (a - s) of the released code, which has a pole, instead of the transformed ℓ1.

    Raises:
        ValueError: If an argument is out of range, names no layer, or there is nothing to gate; in manual optimization
            under DDP.
        ShardedParameterError: If weights are sharded (FSDP2).

    Source: Feng, Lin, Gao & Wei 2025, arXiv:2503.20454. Differs from the released code: the average is not divided by
    1 - 0.99^t, which blows up the first hundreds of steps; the transformed ℓ1 has the sign that saturates; the default
    constraint is ``logdet``.

    Examples:
        >>> network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> tscnc = TSCNC(num_train_samples=100)
        >>> tscnc.attach(network)
        >>> bool(tscnc.penalty(network) > 0)
        True

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.TSCNC
              init_args: {gated_layers: null, cnc_weight: 1.0}
        ```
    """

    def __init__(
        self,
        num_train_samples: int | None = None,
        weight_decay: float = 5e-4,
        l0: float = 1e-3,
        a: float = 100.0,
        tsc_weight: float = 1.0,
        cnc_weight: float = 1.0,
        cnc_layers: Literal["classifier", "all"] | list[str] = "classifier",
        cnc_mode: Literal["logdet", "released", "amgm"] = "logdet",
        gated_layers: Literal["auto"] | list[str] | None = "auto",
        droprate_init: float = 0.3,
        temperature: float = 2 / 3,
        ema_decay: float | None = 0.99,
        released_sign: bool = False,
    ) -> None:
        if num_train_samples is not None:
            check_number("num_train_samples", num_train_samples, low=1, whole=True)
        check_number("weight_decay", weight_decay, low=0.0)
        check_number("l0", l0, low=0.0)
        check_number("tsc_weight", tsc_weight, low=0.0)
        check_number("cnc_weight", cnc_weight, low=0.0)
        check_number("a", a, low=0.0, low_allowed=False)
        check_choice("cnc_mode", cnc_mode, MODES)
        check_number("droprate_init", droprate_init, low=0.0, high=1.0, low_allowed=False)
        check_number("temperature", temperature, low=0.0, low_allowed=False)
        if ema_decay is not None:
            check_number("ema_decay", ema_decay, low=0.0, high=1.0, low_allowed=False)
        self.cnc_layers = names_or_choice("cnc_layers", cnc_layers, ("classifier", "all"))
        self.gated_layers = None if gated_layers is None else names_or_choice("gated_layers", gated_layers, ("auto",))
        self.num_train_samples = num_train_samples
        self.weight_decay = weight_decay
        self.l0 = l0
        self.a = a
        self.tsc_weight = tsc_weight
        self.cnc_weight = cnc_weight
        self.cnc_mode = cnc_mode
        self.droprate_init = droprate_init
        self.temperature = temperature
        self.ema_decay = ema_decay
        self.released_sign = released_sign
        self._reset()

    def _reset(self) -> None:
        super()._reset()
        self._num_samples = self.num_train_samples
        self._steps = RealSteps()
        self._loading: RemovableHandle | None = None
        self._parts: dict[str, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        # The Trainer hangs bound methods of the module on every callback; copies must not drag the module along.
        return {name: value for name, value in vars(self).items() if name not in ("log", "log_dict") and name[0] != "_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    def attach(self, module: nn.Module) -> None:
        """Put the gates into a network; layers that have one keep it.

        A Trainer does this itself. It is for loops of one's own, before the optimizer is made, and for loading a
        checkpoint of a gated network without a Trainer.

        Args:
            module: Network or LightningModule.
        """
        if self.cnc_weight:
            check_weights(module, conditioned_layers(module, self.cnc_layers), "condition")
        layers = layers_to_gate(module, self.gated_layers)
        put_gates(module, layers, self.droprate_init, self.temperature)

    def penalty(self, module: nn.Module) -> Tensor:
        """Return the sum of both penalties on the network as it is, for a loop of one's own.

        Args:
            module: Network or LightningModule whose parameters count.

        Raises:
            ValueError: If the number of samples is unknown, gates are missing, or, with ``released_sign``, s reaches a.
        """
        if self._num_samples is None:
            raise ValueError("num_train_samples is None; outside a Trainer give the number of training samples")
        tensors = decayed_tensors(module)
        if self.gated_layers is not None and not any(find_parametrizations(module, HardConcreteGate)):
            raise ValueError(
                f"gated_layers is {self.gated_layers!r}, but no layer has a gate; call attach(module) before the "
                f"optimizer is made, or give the callback to the Trainer before fit"
            )
        tsc = tsc_penalty(
            *tensors,
            num_samples=self._num_samples,
            weight_decay=self.weight_decay,
            l0=self.l0,
            a=self.a,
            weight=self.tsc_weight,
            droprate=self.droprate_init,
            released_sign=self.released_sign,
        )
        cnc = torch.zeros_like(tsc)
        if self.cnc_weight:
            layers = conditioned_layers(module, self.cnc_layers)
            cnc = self.cnc_weight * mean_condition(layers, self.cnc_mode, like=tsc)
        self._parts = {"tsc": tsc.detach(), "cnc": cnc.detach()}
        return tsc + cnc

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Arrange for the gates to be put in as soon as the network is built, or a checkpoint has some."""
        self._num_samples = self.num_train_samples
        self._restored = False
        self._average.forget_others(pl_module)
        if stage == "fit":
            inject_when_built(pl_module, self.attach)
        else:
            self._loading = inject_when_loading(pl_module, self.attach, "*.parametrizations.*.log_alpha")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off."""
        self._steps.stop()
        if self._loading is not None:
            self._loading.remove()
        self._loading = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module with its own weights and methods."""
        release(pl_module)
        self._average.swap_out(pl_module)
        self.teardown(trainer, pl_module, "")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the optimizers."""
        refuse_manual_ddp(trainer, pl_module, "TSCNC", "its penalty")
        gates = {found.name: found.step.log_alpha for found in find_parametrizations(pl_module, HardConcreteGate)}
        check_trained(trainer, gates, "TSCNC")
        if trainer.is_global_zero:
            warn_if_decayed(trainer.optimizers)
        if self.cnc_weight and self.cnc_layers != "all" and trainer.is_global_zero:
            warn_if_wide(conditioned_layers(pl_module, self.cnc_layers))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the training samples and begin the average."""
        self._begin_average(pl_module)
        if self._num_samples is None:
            self._num_samples = number_of_samples(trainer, "num_train_samples")
        self._steps.watch(trainer.optimizers)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Add the penalties to the loss."""
        add_to_loss(trainer, pl_module, loss, self.penalty(pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Clamp log α, move the average and log, after real steps only."""
        if not self._steps.taken():
            return
        gates = [found.step for found in find_parametrizations(pl_module, HardConcreteGate)]
        for gate in gates:
            gate.clamp()
        self._average.update(pl_module)
        if not trainer.log_every_n_steps or trainer.global_step % trainer.log_every_n_steps:
            return
        values: dict[str, Any] = dict(self._parts)
        for classifier in list(weight_layers(pl_module).values())[-1:]:
            values["condition_number"] = condition_numbers(classifier)[""]
        if gates:
            values["open_gates"] = torch.cat([gate.gates().detach() > 0 for gate in gates]).float().mean()
        pl_module.log_dict({f"weights/tscnc/{name}": value for name, value in values.items()}, on_epoch=False)
