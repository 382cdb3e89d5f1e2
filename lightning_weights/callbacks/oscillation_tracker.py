"""When the oscillation of quantized weights is measured, logged and, for a baseline, stopped."""

import warnings
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer

from lightning_weights.callbacks._lean_callback import LeanCallback
from lightning_weights.callbacks._oscillation import Oscillation
from lightning_weights.callbacks._real_steps import RealSteps
from lightning_weights.errors import LightningWeightsWarning, check_number
from lightning_weights.modules import fake_quantized


class OscillationTracker(LeanCallback):
    r"""Measure how often the integer codes of quantized weights jump back and forth, and freeze them if asked to.

    $$o_t = [\,k_t \ne k_{t-1} \text{ against the last direction}\,], \qquad f_t = m\, o_t + (1 - m) f_{t-1}$$

    A weight oscillates if its average f is above ``threshold``. The codes of all weights that OFQ has quantized, the
    product of an attention's query and key weights included, are looked at once after every optimizer step: not after
    batches that only accumulate gradients, and not after steps that a gradient scaler skips. If several optimizers step
    in one batch it is once, after all of them.

    Every ``log_every_n_steps`` steps it logs ``weights/ofq/`` ``flips`` (share of the codes that the last step has
    changed), ``oscillating`` (share of the weights with f above the threshold) and ``oscillations`` (how many there
    were), and with ``freeze_threshold`` ``frozen`` (share of the weights).

    ``freeze_threshold`` is a baseline: when f exceeds it, the code is frozen at the rounded average of the codes, for
    the rest of the training, while the latent weight goes on to move without effect. Weights with learned scales are
    only watched.

    Args:
        momentum: m, the weight of one oscillation in f.
        threshold: f above which a weight oscillates.
        log_every_n_steps: Optimizer steps between two logs.
        freeze_threshold: f above which a code is frozen; ``None``: none is. From two to three times ``momentum`` on, so
            that one oscillation is not enough.

    Raises:
        ValueError: If an argument is out of range, or a checkpoint's state is of other weights.
        MisconfigurationException: If no weight is quantized.
        ShardedParameterError: If weights are sharded (FSDP2).

    Source: Nagel, Fournarakis, Bondarenko & Blankevoort 2022, arXiv:2203.11086; Liu, Liu & Cheng 2023,
    arXiv:2302.02210.

    Examples:
        >>> OscillationTracker(freeze_threshold=0.02).freeze_threshold
        0.02

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.OFQ
            - class_path: lightning_weights.callbacks.OscillationTracker
              init_args: {threshold: 0.005}
        ```
    """

    def __init__(
        self,
        momentum: float = 0.01,
        threshold: float = 0.005,
        log_every_n_steps: int = 50,
        freeze_threshold: float | None = None,
    ) -> None:
        check_number("momentum", momentum, low=0.0, low_allowed=False, high=1.0)
        check_number("threshold", threshold, low=0.0, high=1.0)
        check_number("log_every_n_steps", log_every_n_steps, low=1, whole=True)
        if freeze_threshold is not None:
            check_number("freeze_threshold", freeze_threshold, low=0.0, high=1.0)
            if freeze_threshold < 2 * momentum:
                warnings.warn(
                    f"freeze_threshold {freeze_threshold} is below twice the momentum {momentum}: a code is frozen "
                    f"after one or two oscillations",
                    LightningWeightsWarning,
                    stacklevel=2,
                )
        self.momentum = momentum
        self.threshold = threshold
        self.log_every_n_steps = log_every_n_steps
        self.freeze_threshold = freeze_threshold
        self._reset()

    def _reset(self) -> None:
        self._oscillation = Oscillation(self.momentum, self.threshold, self.freeze_threshold)
        self._steps = RealSteps()
        self._saved: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return previous codes, directions, averages and counts."""
        return self._oscillation.state_dict() if self._saved is None else self._saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what ``state_dict`` returned until the training goes on."""
        self._saved = dict(state_dict)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what another run restored."""
        self._saved = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or go on."""
        if not fake_quantized(pl_module):
            raise MisconfigurationException(
                "OscillationTracker found no quantized weight: put OFQ among the callbacks, or quantize the network "
                "before the fit with OFQ(...).attach(module)"
            )
        self._oscillation.start(pl_module, self._saved)
        self._saved = None
        self._steps.watch(trainer.optimizers)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the codes and log, after real steps only."""
        if not self._steps.taken():
            return
        self._oscillation.step(pl_module)
        if trainer.global_step % self.log_every_n_steps == 0:
            values = {f"weights/ofq/{name}": value for name, value in self._oscillation.values().items()}
            pl_module.log_dict(values, on_epoch=False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off."""
        self._steps.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the hooks off."""
        self._steps.stop()
