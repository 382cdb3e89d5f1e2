"""When a network is measured with robust weight signatures."""

from functools import partial
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_weights.callbacks._calibration import first_batches
from lightning_weights.callbacks._lean_callback import LeanCallback
from lightning_weights.errors import check_choice, check_number, name_list
from lightning_weights.functional.rws import WEIGHTINGS
from lightning_weights.modules import RobustWeightSignature, RWSController
from lightning_weights.modules._signature_sums import check_scale, scale_list
from lightning_weights.modules.quantization.steps import calibration_step

STAGES = ("validate", "test", "predict")
STATISTICS = ("keep", "reestimate")


class RWSPatch(LeanCallback):
    """Measure a network with robust weight signatures added, and train, save and return it without.

    Every batch of the chosen stages sees the patched weights; before and after it the network has its own ones, in
    every bit, also after an exception. So averages that other callbacks show to a validation are patched like any
    weights, training never sees a patch, and checkpoints are clean: ``state_dict()`` of the module is so even within a
    batch.

    It logs ``weights/rws/relative_change`` in validation and test: the norm of what is added by that of the weights it
    is added to.

    Args:
        signatures: Files that ``RobustWeightSignature.save`` has written.
        scales: Scale α of every signature, or one for all.
        stages: When to patch: some of ``validate`` (also within ``fit``), ``test`` and ``predict``. ``None``: always.
        bn: What batch normalisations do: ``keep`` their statistics, or ``reestimate`` them for the patched weights at
            the first batch, from training data, which should be corrupted as by `Corrupted`. The network gets its own
            ones back.
        bn_batches: Number of training batches for that.
        weighting: How several signatures are added: ``sum`` with their scales, or ``published`` with (α / K)² for K
            signatures, as the authors' code does.
        network: Dotted path of the network in the module, where several parts have its architecture. Empty: it is
            searched for.

    Raises:
        ValueError: If an argument is out of range, or a file or signature doesn't fit.
        ShardedParameterError: If the network is sharded.

    Source: Cai, Zhang, Wang 2023, arXiv:2302.12480.

    Examples:
        >>> RWSPatch(["fog.safetensors", "frost.safetensors"], scales=0.5).scales
        [0.5, 0.5]

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.RWSPatch
              init_args: {signatures: [fog.safetensors], stages: [test]}
        ```
    """

    def __init__(
        self,
        signatures: list[str],
        scales: list[float] | float = 1.0,
        stages: list[Literal["validate", "test", "predict"]] | None = None,
        bn: Literal["keep", "reestimate"] = "keep",
        bn_batches: int = 50,
        weighting: Literal["sum", "published"] = "sum",
        network: str = "",
    ) -> None:
        self.signatures = name_list("signatures", signatures)
        if not self.signatures or len(set(self.signatures)) < len(self.signatures):
            raise ValueError(f"signatures is {self.signatures}; allowed is one file or more, each one once")
        self.scales = scale_list(scales, len(self.signatures))
        self.stages = list(STAGES) if stages is None else name_list("stages", stages, " or None")
        for stage in self.stages:
            check_choice("stages", stage, STAGES)
        check_choice("bn", bn, STATISTICS)
        check_number("bn_batches", bn_batches, low=1, whole=True)
        check_choice("weighting", weighting, WEIGHTINGS)
        if not isinstance(network, str):
            raise ValueError(f"network is {network!r}; allowed is the dotted path of a part of the module, or ''")
        self.bn = bn
        self.bn_batches = bn_batches
        self.weighting = weighting
        self.network = network
        self._reset()

    def _reset(self) -> None:
        self._loaded: list[RobustWeightSignature] = []
        self._controller: RWSController | None = None
        self._hook: RemovableHandle | None = None
        self._estimated = False
        self._change: float | None = None
        self._fitting = False

    @property
    def state_key(self) -> str:
        """Key in checkpoints, one per list of signatures and stages."""
        return self._generate_state_key(signatures=self.signatures, stages=self.stages)

    def state_dict(self) -> dict[str, Any]:
        """Return the files and the scales."""
        return {"signatures": list(self.signatures), "scales": list(self.scales)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the scales of a fit that is resumed; other runs measure with the scales that they are given."""
        if self._fitting:
            self.scales = list(state_dict["scales"])

    def set_scale(self, signature: str, scale: float) -> None:
        """Change the scale of a signature from the next batch on.

        Args:
            signature: Its file, as it was given.
            scale: The new scale α.

        Raises:
            ValueError: If there is no such signature, or the scale is no finite number.
        """
        check_choice("signature", signature, self.signatures)
        check_scale(scale)
        self.scales[self.signatures.index(signature)] = float(scale)
        if self._controller is not None:
            self._controller.set_scale(signature, scale)
            self._estimated, self._change = False, None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the files."""
        self._lift()
        self._reset()
        self._fitting = stage == "fit"
        self._loaded = [RobustWeightSignature.load(path) for path in self.signatures]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the signatures fit, before the training rather than at the first validation."""
        self._begin(trainer, pl_module, "validate")

    def _begin(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the network, whose parts may have been replaced since the last time."""
        self._controller, self._estimated, self._change = None, False, None
        if stage not in self.stages:
            return
        parts: dict[str, nn.Module] = dict(pl_module.named_modules())
        if self.network not in parts:
            raise ValueError(f"network is {self.network!r}, but the parts of the module are {', '.join(parts)}")
        controller = RWSController(parts[self.network], self.weighting)
        for path, signature, scale in zip(self.signatures, self._loaded, self.scales, strict=True):
            controller.add(signature, scale, path)
        for other in trainer.callbacks:
            known = other._controller.targets() if isinstance(other, RWSPatch) and other._controller else ()
            if not set(controller.targets()).isdisjoint(known):
                raise ValueError(
                    f"signatures {other.signatures} and {self.signatures} of two callbacks patch the same layers in "
                    f"stage {stage!r}; give all of them to one RWSPatch"
                )
        self._controller = controller

    def _patch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._controller is None:
            return
        self._controller.apply()
        self._hook = pl_module.register_state_dict_post_hook(partial(self._show_clean))  # it marks what it gets
        if self._change is None:
            self._change = self._controller.relative_change()
        if self.bn == "reestimate" and not self._estimated:
            step = calibration_step(pl_module)
            self._controller.reestimate(self._batches(trainer), reduce=trainer.strategy.reduce, step=step)
            self._estimated = True

    def _batches(self, trainer: Trainer) -> list[Any]:
        data = getattr(trainer, "datamodule", None)
        if data is not None and not self._fitting:
            data.setup("fit")  # the other stages set up their own part only
        combined = None if trainer.fit_loop._data_source.is_module() else trainer.fit_loop._combined_loader
        if any(getattr(loader, "persistent_workers", False) for loader in getattr(combined, "flattened", ())):
            raise ValueError(
                "bn is 'reestimate', but the loader given to fit has persistent workers, which serve one pass over the "
                "data at a time; give a data module, or persistent_workers=False"
            )
        return first_batches(trainer, self.bn_batches)

    def _show_clean(self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        if self._controller is None:
            return
        clean = {(now.data_ptr(), now.shape): value for now, value in self._controller.clean().items()}
        for key, value in state.items():
            if isinstance(value, Tensor) and (value.data_ptr(), value.shape) in clean:
                state[key] = clean[value.data_ptr(), value.shape]

    def _lift(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self._controller is not None and self._controller.applied:
            self._controller.restore()

    def _log(self, pl_module: LightningModule) -> None:
        if self._controller is not None:
            pl_module.log("weights/rws/relative_change", self._change or 0.0, sync_dist=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the network."""
        self._begin(trainer, pl_module, "validate")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the network."""
        self._begin(trainer, pl_module, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the network."""
        self._begin(trainer, pl_module, "predict")

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Patch."""
        self._patch(trainer, pl_module)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Take the patch away."""
        self._lift()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log."""
        self._log(pl_module)

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Patch."""
        self._patch(trainer, pl_module)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Take the patch away."""
        self._lift()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log."""
        self._log(pl_module)

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Patch."""
        self._patch(trainer, pl_module)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Take the patch away."""
        self._lift()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the patch away."""
        self._lift()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the module."""
        self._lift()
        self._reset()
