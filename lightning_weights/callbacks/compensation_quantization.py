"""When a network is quantized, and with which data."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lightning_weights.callbacks._adapter_checkpoints import check_when_loading
from lightning_weights.callbacks._calibration_data import calibration_batches, calibration_loader
from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional.column_solver import CompensationConfig
from lightning_weights.modules.quantization import QuantizationReport, make_room, quantize
from lightning_weights.modules.quantization.steps import calibration_step
from lightning_weights.modules.quantization.targets import check_patterns

STAGES = {"fit_end": "fit", "validate_start": "validate", "test_start": "test", "predict_start": "predict"}


class CompensationQuantization(Callback):
    r"""Quantize a trained network once, layer by layer, so that later columns of a weight make up for earlier errors.

    $$\min_{\hat W \in \text{grid}} \lVert \hat W X - W \tilde X \rVert^2$$

    X is what goes into a layer once the layers before it are quantized, X̃ what goes into it in the full-precision
    network. ``config.method`` says how: ``rtn``, ``gptq``, ``gptaq``, ``rescomp`` or ``rescomp_gptq``; `GPTQ`, `GPTAQ`,
    `ResComp` and `FOEM` are this callback with a method. No gradients are needed. It acts once, at the end of the fit
    or at the start of an evaluation, and leaves random generators and evaluation flags as they are.

    Calibration data are the first ``num_samples`` samples of ``calibration_dataloader``, or of the data module's or
    module's ``calibration_dataloader()``, or of the training data. The module's ``calibration_step(batch)`` runs a
    batch; without one its ``predict_step``, otherwise ``forward``. With DDP every process takes a share of the data.

    Logged is ``weights/<method>/relative_error``, the mean over layers, and ``weights/<method>/layers``; the attribute
    ``report`` has a row for every layer. Checkpoints saved afterwards hold the quantized weights, and a Trainer that
    loads one doesn't quantize again.

    Args:
        targets: Regular expression of the names of Linear and Conv layers, or of the last parts of them.
        ignore: Regular expressions of modules that are left out, with all that is inside.
        blocks: Name of a ModuleList or Sequential whose blocks follow each other, such as ``model.model.layers``: only
            layers in it are quantized, one block at a time, which is much faster for deep networks. ``None``: all
            layers.
        config: Method, bits, group size and what else the solver takes.
        num_samples: Number of calibration samples, of all processes together.
        when: When it happens: ``fit_end``, ``validate_start``, ``test_start`` or ``predict_start``.
        export: ``fake`` puts quantized values into the weights, ``packed`` puts ``QuantizedLinear`` layers into the
            network, whose codes take a fraction of the memory.
        cache_device: Where the inputs of blocks are kept.
        on_missing: What becomes of layers that no batch reaches: an error (``raise``), ``rtn``, or ``skip``.
        mask: Entry of a dict batch, of shape (N, T), that is 0 at padding, which then does not count. ``None``: all
            tokens count.
        force_tied: Whether a weight is quantized that an embedding uses, too.
        measure_blocks: Whether the report has the error of every block where the method needs no full-precision run.
        folder: Folder to keep finished layers in, with which an interrupted run goes on. ``None``: none is kept.
        calibration_dataloader: Calibration data, if they are not those above.

    Raises:
        ValueError: If an argument is out of range; when it acts, see ``modules.quantize``; at the start of a fit from a
            checkpoint that was quantized.
        ShardedParameterError: When it acts, if weights are sharded.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> rtn = CompensationQuantization(config=CompensationConfig(method="rtn", bits=4))
        >>> trainer = Trainer(callbacks=[rtn], logger=False, enable_checkpointing=False, accelerator="cpu")

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.CompensationQuantization
              init_args: {config: {method: gptaq, bits: 3, group_size: 64}, blocks: model.model.layers}
        ```
    """

    key = "rescomp"  # of what is logged

    def __init__(
        self,
        targets: str = ".*",
        ignore: Sequence[str] = ("lm_head",),
        blocks: str | None = None,
        config: CompensationConfig = CompensationConfig(),  # noqa: B008 (frozen)
        num_samples: int = 128,
        when: Literal["fit_end", "validate_start", "test_start", "predict_start"] = "test_start",
        export: Literal["fake", "packed"] = "fake",
        cache_device: str = "cpu",
        on_missing: Literal["raise", "rtn", "skip"] = "raise",
        mask: str | None = "attention_mask",
        force_tied: bool = False,
        measure_blocks: bool = False,
        folder: str | None = None,
        calibration_dataloader: Iterable[Any] | None = None,
    ) -> None:
        check_number("num_samples", num_samples, low=1, whole=True)
        check_choice("when", when, list(STAGES))
        check_choice("export", export, ("fake", "packed"))
        check_choice("on_missing", on_missing, ("raise", "rtn", "skip"))
        self.targets = targets
        self.ignore = check_patterns(targets, ignore)
        self.blocks = blocks
        self.config = CompensationConfig(**config) if isinstance(config, Mapping) else config
        self.num_samples = num_samples
        self.when = when
        self.export = export
        self.cache_device = cache_device
        self.on_missing = on_missing
        self.mask = mask
        self.force_tied = force_tied
        self.measure_blocks = measure_blocks
        self.folder = folder
        self.calibration_dataloader = calibration_dataloader
        self._reset()

    def _reset(self) -> None:
        self._report: QuantizationReport | None = None
        self._saved: dict[str, Any] | None = None
        self._owner: Callable[[], Any] = lambda: None
        self._hooks: list[Callable[[], None]] = []

    def __getstate__(self) -> dict[str, Any]:
        # The Trainer hangs bound methods of the module on every callback; copies must not drag the module along.
        return {name: value for name, value in vars(self).items() if name not in ("log", "log_dict") and name[0] != "_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    @property
    def report(self) -> QuantizationReport | None:
        """What was done to every layer; None before."""
        return self._report

    @property
    def done(self) -> bool:
        """Whether the network is quantized, by this callback or in the checkpoint that was loaded."""
        return self._owner() is not None

    def state_dict(self) -> dict[str, Any]:
        """Return whether the network is quantized, with which settings, and the report."""
        if self._saved is not None:
            return self._saved
        if self._report is None:
            return {"done": False}
        settings = {"class": type(self.config).__name__, **asdict(self.config)}
        return {"done": True, "config": settings, "report": self._report.as_dict(times=False)}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Arrange for checkpoints of quantized networks to be recognised."""
        self._take_hooks_off()
        room = pl_module.register_load_state_dict_pre_hook(_make_room)
        self._hooks = [room.remove, check_when_loading(pl_module, partial(self._look_at, pl_module))]

    def _look_at(self, pl_module: LightningModule, checkpoint: Mapping[str, Any]) -> None:
        """Note whether the weights of a checkpoint that is about to be loaded are quantized."""
        saved = checkpoint.get("callbacks", {}).get(self.state_key)
        self._reset_report()
        if saved is not None and saved["done"]:
            self._saved, self._owner = dict(saved), weakref.ref(pl_module)

    def _reset_report(self) -> None:
        self._report, self._saved, self._owner = None, None, lambda: None

    def _take_hooks_off(self) -> None:
        for take_off in self._hooks:
            take_off()
        self._hooks = []

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off."""
        self._take_hooks_off()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the hooks off."""
        self._take_hooks_off()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to train a network for its quantization that is quantized already."""
        if self.when == "fit_end" and self._owner() is pl_module:
            raise ValueError(
                f"the network was quantized already, and {type(self).__name__} would do it again at the end of this "
                f"fit; start from the original weights, or leave the callback out"
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Quantize, if that is when."""
        self._act("fit_end", trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Quantize, if that is when; validation inside a fit is none of it."""
        self._act("validate_start", trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Quantize, if that is when."""
        self._act("test_start", trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Quantize, if that is when."""
        self._act("predict_start", trainer, pl_module)

    def _act(self, moment: str, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.when != moment or trainer.state.fn != STAGES[moment] or self._owner() is pl_module:
            return
        loader = calibration_loader(trainer, pl_module, self.calibration_dataloader)
        take = calibration_step(pl_module)

        def step(batch: Any) -> Any:
            return take(trainer.precision_plugin.convert_input(trainer.strategy.batch_to_device(batch)))

        with trainer.precision_plugin.forward_context():
            self._reset_report()
            self._report = quantize(
                pl_module,
                calibration_batches(trainer, loader, self.num_samples),
                self.config,
                blocks=self.blocks,
                targets=self.targets,
                ignore=self.ignore,
                export=self.export,
                on_missing=self.on_missing,
                step=step,
                mask=self.mask,
                force_tied=self.force_tied,
                measure_blocks=self.measure_blocks,
                cache_device=self.cache_device,
                folder=self.folder,
                progress=trainer.progress_bar_callback is not None,
            )
        self._owner = weakref.ref(pl_module)
        self._log(trainer)

    def _log(self, trainer: Trainer) -> None:
        error, layers = self._report.mean_relative_error, float(len(self._report.layers))
        values = {f"weights/{self.key}/relative_error": error, f"weights/{self.key}/layers": layers}
        # self.log takes nothing at the end of a fit or before a prediction
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)


def _make_room(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
    make_room(module, state_dict, prefix)
