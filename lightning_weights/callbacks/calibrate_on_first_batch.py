"""Rescaling convolutions on the first batch of a fit."""

import warnings
from contextlib import ExitStack
from typing import Any

import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer

from lightning_weights.callbacks._lean_callback import LeanCallback
from lightning_weights.errors import LightningWeightsWarning, ShardedParameterError
from lightning_weights.modules import SeparableFiberConv
from lightning_weights.modules.ponita import calibrating


class CalibrateOnFirstBatch(LeanCallback):
    """Give every convolution of PONITA outputs as large as its inputs, measured on the first training batch.

    A layer is rescaled when the batch gets to it, before it uses its weights, so that the first step's gradients are
    those of the weights it changes. Checkpoints remember which layers are done, and a resumed fit leaves all layers
    alone, as their weights have learnt with the scale they have. In distributed training all processes take the scales
    of the first one, whose batch decides.

    It works with any LightningModule that has `SeparableFiberConv` layers, such as those of `Ponita`, anywhere inside.

    Raises:
        MisconfigurationException: At the start of a fit, if there is no such layer.
        ShardedParameterError: At the start of a fit, if weights are sharded (FSDP).

    Warns:
        LightningWeightsWarning: If a fit is resumed whose layers were never calibrated.

    Source: Bekkers et al. 2024, arXiv:2310.02970. Differs from the released code, which swaps weights behind a forward
    pass that had used the old ones, and where every process keeps its own scales.

    Examples:
        >>> callback = CalibrateOnFirstBatch()

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.CalibrateOnFirstBatch
        ```
    """

    def __init__(self) -> None:
        self.layers = 0
        self._reset()

    def _reset(self) -> None:
        self._open = ExitStack()

    def state_dict(self) -> dict[str, Any]:
        """Return how many layers it has calibrated."""
        return {"layers": self.layers}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.layers = state_dict["layers"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to count anew."""
        if stage == "fit":
            self.layers = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the first batch, behind whatever a checkpoint has brought."""
        layers = [part for part in pl_module.modules() if isinstance(part, SeparableFiberConv)]
        if not layers:
            raise MisconfigurationException(
                f"CalibrateOnFirstBatch found no SeparableFiberConv in {type(pl_module).__name__}: it is for Ponita "
                f"and for networks of its layers; leave it out for others"
            )
        if any(hasattr(layer.kernel.weight, "placements") for layer in layers if not bool(layer.calibrated)):
            # said here, since FSDP2 gathers weights for a forward pass, and drops what was written into them
            raise ShardedParameterError(
                "calibration needs whole weights, but they are sharded: use network.calibrate(...) before the Trainer "
                "shards them, or leave the callback out"
            )
        if trainer.global_step == 0:
            self._open.enter_context(calibrating(pl_module, after=self._finish))
        elif not all(bool(layer.calibrated) for layer in layers):
            warnings.warn(
                f"CalibrateOnFirstBatch leaves layers as they are that were trained for {trainer.global_step} steps "
                f"without calibration: it is for the first step of a training",
                LightningWeightsWarning,
                stacklevel=2,
            )

    def _finish(self, layer: SeparableFiberConv) -> None:
        self.layers += 1
        if dist.is_available() and dist.is_initialized():
            kernels = [layer.kernel] if layer.fiber_kernel is None else [layer.kernel, layer.fiber_kernel]
            for kernel in kernels:
                dist.broadcast(kernel.weight.detach(), src=0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop."""
        self._open.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop."""
        self._open.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop."""
        self._open.close()
