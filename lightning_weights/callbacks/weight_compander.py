"""When a network's weights become bounded functions of latent ones, and when they are plain again."""

from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_weights.callbacks._companded_layers import (
    add_effective_decay,
    check_compandable,
    check_fresh,
    check_same_function,
    latent_of,
    layers_to_compand,
    set_latents_apart,
    set_scales_apart,
)
from lightning_weights.callbacks._injection import check_trained, inject_when_built, inject_when_loading, release
from lightning_weights.callbacks._real_steps import RealSteps
from lightning_weights.errors import ShardedParameterError, check_choice, check_number, name_list
from lightning_weights.functional.weight_compander import kurtosis, near_zero_share
from lightning_weights.kernels.compand import FUNCTIONS
from lightning_weights.modules.companded import RHO_A, compand_layers, merge_companders
from lightning_weights.modules.compander import Compander
from lightning_weights.modules.parametrized import Parametrized, find_parametrizations


class WeightCompander(Callback):
    r"""Make every weight a bounded function, steepest at zero, of a latent one, which is what the optimizer trains.

    $$w = a \arctan(v / b), \qquad a = \kappa \sigma, \quad b = \beta \sigma$$

    Small weights move fast and leave zero, large ones are held back by the bound. It works with any LightningModule,
    unchanged: weights of Linear and Conv layers are companded before the optimizer exists, so that the first output is
    that of the plain network. Norm layers, embeddings, biases and other vectors stay as they are.

    With gradient accumulation a weight is computed once per optimizer step (in automatic optimization, and not in
    compiled code). A checkpoint of the plain network can be loaded into the companded one; to begin a fit from one,
    load it before the fit.

    Every ``log_every_n_steps`` steps it logs ``weights/weight_compander/`` ``near_zero`` (share of weights within a
    tenth of their standard deviation from zero), ``kurtosis``, and ``gain`` (a/b), as means over the layers.

    Args:
        kappa: κ > 0: a in standard deviations σ of the layer's weights. The bound is 1.57 κσ (κσ for the others).
        beta: β > 0: b in standard deviations. The gain of a step at zero is (κ/β)², so compare with a baseline whose
            learning rate is that much larger.
        function: ``arctan``, ``tanh``, which saturates faster, or ``softsign``, which saturates slower.
        learnable: Whether a and b are learned; start them with about κ = 2.5 and β = 1.5.
        share: Which weights have a and b in common: those of a ``layer``, those of an output ``channel``, or all
            companded ones (``global``).
        modules: Layers to compand: names as in ``named_modules()``, with ``*`` and ``?``. ``None``: all Linear and Conv
            layers.
        exclude: Layers to leave out, in the same way.
        init: ``inverse`` leaves the weights as they are, ``latent`` makes them the latents, so that the function
            changes them.
        lr_scale: Factor of the learning rate of learned a and b.
        merge_on_end: Whether the network is plain again after the fit; ``merged.ckpt`` beside the checkpoints, if any
            are saved, then holds the plain weights.
        decay_target: What the optimizer's weight decay shrinks: the ``latent`` weights, as every decay does by itself,
            which is weak near zero and very strong near the bound, or the ``effective`` ones. For these the decay's
            gradient is added to the latents', also where the optimizer decouples its own.

    Raises:
        ValueError: If an argument is out of range or names no layer, or if a weight cannot be companded: it is shared,
            has no values or no spread, is computed by something else, or more than 5 % of it is beyond the bound.
        MisconfigurationException: If no layer is left.
        ShardedParameterError: If a weight is sharded already: under FSDP2 call ``attach`` in ``configure_model``,
            before ``fully_shard``.

    Warns:
        LightningWeightsWarning: If weights are clipped or in 16 bits, where the function's inverse loses digits.

    Source: Cakaj, Mehnert & Yang 2023, arXiv:2306.16993. Only its abstract was available: functions, a, b, the choice
    of layers and the decay of latents are inferred from it.

    Examples:
        >>> network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x = torch.ones(1, 8)
        >>> before = network(x)
        >>> WeightCompander(kappa=3.0, beta=2.0).attach(network)
        >>> torch.allclose(network(x), before, atol=1e-6)
        True

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.WeightCompander
              init_args: {kappa: 2.5, beta: 1.5, learnable: true}
        ```
    """

    def __init__(
        self,
        kappa: float = 3.0,
        beta: float = 2.0,
        function: Literal["arctan", "tanh", "softsign"] = "arctan",
        learnable: bool = False,
        share: Literal["layer", "channel", "global"] = "layer",
        modules: list[str] | None = None,
        exclude: list[str] | None = None,
        init: Literal["inverse", "latent"] = "inverse",
        lr_scale: float = 1.0,
        merge_on_end: bool = False,
        decay_target: Literal["latent", "effective"] = "latent",
    ) -> None:
        check_number("kappa", kappa, low=0.0, low_allowed=False)
        check_number("beta", beta, low=0.0, low_allowed=False)
        check_choice("function", function, FUNCTIONS)
        check_choice("share", share, ("layer", "channel", "global"))
        check_choice("init", init, ("inverse", "latent"))
        check_number("lr_scale", lr_scale, low=0.0)
        check_choice("decay_target", decay_target, ("latent", "effective"))
        self.kappa = kappa
        self.beta = beta
        self.function = function
        self.learnable = learnable
        self.share = share
        self.modules = None if modules is None else name_list("modules", modules, " or None")
        self.exclude = None if exclude is None else name_list("exclude", exclude, " or None")
        self.init = init
        self.lr_scale = lr_scale
        self.merge_on_end = merge_on_end
        self.decay_target = decay_target
        self._reset()

    def _reset(self) -> None:
        self._steps = RealSteps()
        self._loading: RemovableHandle | None = None
        self._told = False
        self._parts: list[Parametrized] = []

    def __getstate__(self) -> dict[str, Any]:
        # The Trainer hangs bound methods of the module on every callback; copies must not drag the module along.
        return {name: value for name, value in vars(self).items() if name not in ("log", "log_dict") and name[0] != "_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    @property
    def state_key(self) -> str:
        """Key in checkpoints, one per choice of layers."""
        return self._generate_state_key(modules=self.modules, exclude=self.exclude)

    def state_dict(self) -> dict[str, Any]:
        """Return what the weights were companded with."""
        return {"function": self.function, "kappa": self.kappa, "beta": self.beta, "share": self.share}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a checkpoint's latents belong to the same function.

        Raises:
            ValueError: If they do not.
        """
        for name in ("function", "share"):
            if state_dict[name] != getattr(self, name):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but the checkpoint was made with {state_dict[name]!r}; take "
                    f"that, or load the network's weights, merged, without the run"
                )

    def attach(self, module: nn.Module) -> None:
        """Compand the layers of a network; layers that are companded stay so.

        A Trainer does this itself. It is for loops of one's own, before the optimizer is made, for loading a checkpoint
        of a companded network without a Trainer, and for ``configure_model`` before ``fully_shard``.

        Args:
            module: Network, changed in place.
        """
        layers, others = layers_to_compand(module, self.modules, self.exclude)
        if others and not self._told:
            rank_zero_info(f"WeightCompander leaves as they are: {', '.join(others)}")
        self._told = True
        companded = {found.name: found.step for found in find_parametrizations(module, Compander)}
        for name, compander in companded.items():
            if name in layers:
                check_same_function(name, compander, vars(self))
        layers = {name: layer for name, layer in layers.items() if name not in companded}
        check_compandable(module, layers)
        compand_layers(layers, self.kappa, self.beta, self.function, self.learnable, self.share, self.init)
        for found in find_parametrizations(module, Compander):
            if found.name in layers:
                found.step.settings = {name: getattr(self, name) for name in ("kappa", "beta", "share")}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Arrange for companding as soon as the network is built, or a checkpoint of a companded one comes."""
        if stage == "fit":
            inject_when_built(pl_module, self.attach)
        else:
            self._loading = inject_when_loading(pl_module, self.attach, f"*.{RHO_A}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off."""
        self._steps.stop()
        self._reuse(False)
        self._parts = []
        if self._loading is not None:
            self._loading.remove()
        self._loading = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module with its own methods."""
        release(pl_module)
        self.teardown(trainer, pl_module, "")

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with the optimizer of a plain run.

        Raises:
            ValueError: If a fit is resumed from the checkpoint of a plain network.
        """
        plain = not any(key.endswith(RHO_A) for key in checkpoint.get("state_dict", (RHO_A,)))
        if trainer.state.fn == "fit" and plain and checkpoint.get("optimizer_states"):
            raise ValueError(
                "the checkpoint is of a plain network, and its optimizer's state belongs to weights, not to latent "
                "ones; load its state_dict into the module before fit, and leave ckpt_path out"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the optimizers, and give scales, widths and, for effective decay, latents groups of their own."""
        found = self._parts = list(find_parametrizations(pl_module, Compander))
        if self.merge_on_end and any(isinstance(latent_of(part), DTensor) for part in found):
            raise ShardedParameterError(
                "merge_on_end needs whole weights, and these are sharded (FSDP2); use merge_on_end=False, and "
                "plain_state_dict on a full checkpoint"
            )
        scales = {f"{part.name}.{name}": rho for part in found for name, rho in part.step.named_parameters()}
        check_trained(trainer, scales, "WeightCompander")
        check_fresh(trainer.optimizers, pl_module, found)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        for optimizer in trainer.optimizers:
            set_scales_apart(optimizer, list(scales.values()), schedulers, self.lr_scale)
            if self.decay_target == "effective":
                set_latents_apart(optimizer, [latent_of(part) for part in found], schedulers)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to note the optimizers' steps."""
        self._steps.watch(trainer.optimizers)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep weights from now to the next optimizer step, if it takes several batches."""
        if pl_module.automatic_optimization and trainer.accumulate_grad_batches > 1:
            self._reuse(True)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Forget the weights, which are about to change, and add the gradient of effective decay."""
        self._reuse(False)
        if self.decay_target == "effective":
            add_effective_decay(optimizer, self._parts)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the weights: others may show the validation averaged ones."""
        self._reuse(False)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, after real steps only."""
        stepped = self._steps.taken()
        if not stepped or not trainer.log_every_n_steps or trainer.global_step % trainer.log_every_n_steps:
            return
        found = [part for part in self._parts if not isinstance(latent_of(part), DTensor)]
        if not found:
            return
        weights = [part.layer.weight for part in found]
        values = {
            "near_zero": fmean(map(near_zero_share, weights)),
            "kurtosis": fmean(map(kurtosis, weights)),
            "gain": fmean(float((part.step.a / part.step.b).mean()) for part in found),
        }
        pl_module.log_dict(
            {f"weights/weight_compander/{name}": value for name, value in values.items()}, on_epoch=False
        )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the network plain, if that was asked for; Lightning has saved all its checkpoints by now."""
        if not self.merge_on_end:
            return
        merge_companders(pl_module)
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        if folder is not None:
            trainer.save_checkpoint(Path(folder) / "merged.ckpt", weights_only=True)

    def _reuse(self, on: bool) -> None:
        for part in self._parts:
            part.step.reuse(on)
