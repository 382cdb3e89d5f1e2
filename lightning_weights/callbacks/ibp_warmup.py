"""Certified training for a LightningModule of one's own: initialisation, radius and loss."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lightning_weights.errors import LightningWeightsWarning, check_choice
from lightning_weights.modules import CertifiedClassifier, CertifiedLoss, Certifier, EpsilonSchedule, InputBox
from lightning_weights.modules import _certified_fit as certified_fit


class IBPWarmup(Callback):
    """Give a LightningModule certified training: an initialisation that keeps bounds tight, the radius ε, and the loss.

    The module gets an attribute ``certifier``, a `Certifier`, and returns ``self.certifier.loss(self.net, x, y)`` from
    its ``training_step``, with raw inputs ``x`` and labels ``y``; ``self.certifier.margins(self.net, x, y)`` bounds the
    margins at ε_max for `VerifiedError`. At the start of a fresh fit the weights are initialised, by random numbers
    from the global generator; a resumed fit keeps them and continues the ramp where it was. Before every optimizer step
    ε is set by ``trainer.global_step``. `CertifiedClassifier` does all of this by itself.

    Every ``log_every_n_steps`` steps it logs ``weights/ibp_warmup/`` ``eps``, ``tightness`` and ``relu`` (the
    regularisers), ``active_fraction`` and ``inactive_fraction`` (ReLUs whose state is certain).

    Args:
        max_eps: Final radius ε_max in units of the raw input, such as 8/255 for pixels in [0, 1].
        network: Name of the module's network, such as ``net``. ``None``: its only child with weight matrices.
        kind: Growth of ε: ``smoothed``, ``linear`` or ``fixed``, see `EpsilonSchedule`.
        start_epoch: Epoch, counted from 1, with whose first step the ramp begins.
        ramp_epochs: Length of the ramp in epochs.
        mid: Share of the ramp that follows a power (``smoothed`` only).
        beta: Exponent of the power, at least 2 (``smoothed`` only).
        bound: ``ibp`` or ``crown-ibp``, see `CertifiedLoss`.
        loss_fusion: Whether the loss is bounded in one piece (``crown-ibp``).
        reg_lambda: Weight λ₀ of the regularisers.
        reg_terms: Regularisers to use: ``tightness``, ``relu``.
        tol: Tolerance τ of the regularisers.
        min_eps_reg: Radius at which they are evaluated while ε is 0.
        sync_regularizer: Whether their sums are taken over the batches of all processes.
        mean: Mean per channel for normalising raw inputs. ``None``: 0.
        std: Standard deviation per channel for normalising raw inputs. ``None``: 1.
        input_range: Smallest and largest valid raw input, at which boxes are clipped.
        init: ``ibp`` initialises the weights at the start of a fresh fit; ``keep`` leaves them.
        force_init: Whether ``ibp`` may overwrite a network that was trained or loaded before.

    Raises:
        ValueError: If an argument is out of range; at the start of a fit, if ε would not reach ε_max, a resumed
            schedule differs, the network is not found or was trained before.
        ShardedParameterError: At the start of a fit, if the weights are sharded.

    Source: Shi, Wang, Zhang, Yi, Hsieh, 2021, arXiv:2103.17268.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(
        ...     max_epochs=20,
        ...     gradient_clip_val=10.0,
        ...     callbacks=[IBPWarmup(max_eps=0.1, ramp_epochs=10)],
        ...     logger=False,
        ...     enable_checkpointing=False,
        ... )

        ```yaml
        trainer:
          gradient_clip_val: 10.0
          callbacks:
            - class_path: lightning_weights.callbacks.IBPWarmup
              init_args: {max_eps: 0.1, ramp_epochs: 10, network: net}
        ```
    """

    def __init__(
        self,
        max_eps: float,
        network: str | None = None,
        kind: Literal["smoothed", "linear", "fixed"] = "smoothed",
        start_epoch: int = 2,
        ramp_epochs: int = 80,
        mid: float = 0.25,
        beta: float = 4.0,
        bound: Literal["ibp", "crown-ibp"] = "ibp",
        loss_fusion: bool = False,
        reg_lambda: float = 0.5,
        reg_terms: tuple[str, ...] = ("tightness", "relu"),
        tol: float = 0.5,
        min_eps_reg: float = 1e-6,
        sync_regularizer: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        input_range: tuple[float, float] = (0.0, 1.0),
        init: Literal["ibp", "keep"] = "ibp",
        force_init: bool = False,
    ) -> None:
        check_choice("init", init, ("ibp", "keep"))
        self.schedule = {
            "max_eps": max_eps,
            "kind": kind,
            "start_epoch": start_epoch,
            "ramp_epochs": ramp_epochs,
            "mid": mid,
            "beta": beta,
        }
        self.loss = {
            "bound": bound,
            "loss_fusion": loss_fusion,
            "reg_lambda": reg_lambda,
            "reg_terms": _plain(reg_terms),
            "tol": tol,
            "min_eps_reg": min_eps_reg,
            "sync_regularizer": sync_regularizer,
        }
        self.box = {"mean": _plain(mean), "std": _plain(std), "input_range": _plain(input_range)}
        self.network = network
        self.init = init
        self.force_init = force_init
        self._build()  # so that wrong values are found here
        self._reset()

    def _build(self) -> Certifier:
        return Certifier(CertifiedLoss(**self.loss), EpsilonSchedule(**self.schedule), InputBox(**self.box))

    def _reset(self) -> None:
        self._certifier: Certifier | None = None
        self._net: nn.Module | None = None
        self._saved: dict[str, Any] | None = None
        self._steps_per_epoch = 1
        self._last_step = -1

    def __getstate__(self) -> dict[str, Any]:
        # The Trainer hangs bound methods of the module on every callback; copies must not drag the module along.
        return {name: value for name, value in vars(self).items() if name not in ("log", "log_dict") and name[0] != "_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule and the position in it."""
        return self._build().progress() if self._certifier is None else self._certifier.progress()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to where ``state_dict`` was called."""
        self._saved = dict(state_dict)
        if self._certifier is not None:
            self._certifier.resume(self._saved)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module its certifier; the network need not exist yet."""
        existing = getattr(pl_module, "certifier", None)
        if isinstance(pl_module, CertifiedClassifier) or not isinstance(existing, Certifier | None):
            raise ValueError(
                f"{type(pl_module).__name__} has a certifier already: IBPWarmup is for modules without one; leave it "
                f"out, or give the attribute another name"
            )
        self._certifier = self._build()
        if existing is not None and existing.step is not None:  # of an earlier fit, perhaps with another schedule
            self._certifier.advance(existing.step, existing.steps_per_epoch)
        pl_module.certifier = self._certifier.to(pl_module.device)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the run, and initialise the network if it is a fresh one."""
        self._net = self._find_network(pl_module)
        certified_fit.prepare_fit(
            trainer, pl_module.certifier, self._net, init=self.init, force_init=self.force_init, resumed=self._saved
        )

    def _find_network(self, pl_module: LightningModule) -> nn.Module:
        modules = dict(pl_module.named_modules())
        children = [n for n, m in pl_module.named_children() if any(p.ndim >= 2 for p in m.parameters())]
        name = children[0] if self.network is None and len(children) == 1 else self.network
        if name not in modules:
            raise ValueError(
                f"network is {self.network!r}; allowed is the name of a submodule of {type(pl_module).__name__}: its "
                f"children with weight matrices are {', '.join(children) or 'none'}"
            )
        return modules[name]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the run against the length of the data."""
        self._steps_per_epoch = certified_fit.start_training(trainer, pl_module.certifier, self._saved)
        self._last_step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set ε for the step that the batch belongs to."""
        certified_fit.start_batch(trainer, pl_module.certifier, self._net, self._steps_per_epoch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what the loss saw, after real steps only."""
        if trainer.global_step != self._last_step:
            self._last_step = trainer.global_step
            certified_fit.log_progress(trainer, pl_module, pl_module.certifier)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notice a ramp that was not finished."""
        certified_fit.finish_training(trainer, pl_module.certifier)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notice a module that never asks for its loss."""
        if pl_module.certifier.last is None and trainer.is_global_zero:
            warnings.warn(
                f"{type(pl_module).__name__} did not use its certifier in this epoch: nothing certified is trained. "
                f"Return self.certifier.loss(self.<network>, x, y) from training_step",
                LightningWeightsWarning,
                stacklevel=2,
            )


def _plain(values: Any) -> Any:
    return list(values) if isinstance(values, Sequence) and not isinstance(values, str) else values
