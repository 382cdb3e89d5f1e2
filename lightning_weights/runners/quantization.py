"""From a trained network to a quantized one: measure, quantize, measure again, save."""

import json
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_weights.callbacks import CompensationQuantization
from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.whole_files import replacing_file
from lightning_weights.modules import CausalLM, write_gptq

FORMATS = ("gptq", "gptq_v2")  # more programs read the first
EVALUATIONS = {"validate_start": "validate", "test_start": "test"}


class QuantizationRunner:
    """Quantize a network with the callback of a Trainer, and measure what it costs.

    The network is evaluated as it is, and again with the callback, which quantizes it first; the callback's ``when``
    says whether that is the Trainer's ``validate`` or its ``test``. Then the folder gets ``quantized.ckpt``, a
    checkpoint with the quantized weights, ``report.json`` with a row per layer and both measurements, and, with packed
    layers, ``gptq/``, the files that GPTQ's readers take: in the format ``gptq``, or in ``gptq_v2`` if a grid has a
    zero of 0, which has no place in the first. Finished layers are kept in ``layers/``: the same program started again
    goes on after them.

    Args:
        trainer: Trainer with a `GPTQ`, `GPTAQ`, `ResComp`, `FOEM` or `CompensationQuantization` callback.
        module: Module to quantize.
        datamodule: Data for the evaluation and, unless the callback has a loader of its own, the calibration.
        folder: Folder of the run. ``None``: nothing is written, and nothing can be resumed.
        ckpt_path: Checkpoint whose weights are quantized. ``None``: those of the module.
        compare: Whether the network is evaluated before it is quantized, too.

    Raises:
        ValueError: If the Trainer has no such callback or several, or one that acts at another time.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_weights.callbacks import GPTQ
        >>> from lightning_weights.data import Digits
        >>> from lightning_weights.modules import MLP, Classifier
        >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = Trainer(accelerator="cpu", callbacks=[GPTQ(when="validate_start")], **quiet)
        >>> module = Classifier(MLP(64, (32,), num_classes=10), num_classes=10)
        >>> runner = QuantizationRunner(trainer, module, Digits(), folder=None)
        >>> sorted(runner.run())
        ['after', 'before', 'blocks', 'layers', 'seconds', 'skipped']
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        datamodule: LightningDataModule,
        folder: str | None = "results/quantized",
        ckpt_path: str | None = None,
        compare: bool = True,
    ) -> None:
        found = [callback for callback in trainer.callbacks if isinstance(callback, CompensationQuantization)]
        if len(found) != 1:
            raise ValueError(
                f"trainer has {len(found)} callbacks that quantize; allowed is one of GPTQ, GPTAQ, ResComp, FOEM and "
                f"CompensationQuantization"
            )
        self.callback = found[0]
        if self.callback.when not in EVALUATIONS:
            raise ValueError(
                f"when is {self.callback.when!r}; here it is allowed to be {' or '.join(map(repr, EVALUATIONS))}: the "
                f"network is evaluated before and after"
            )
        self.trainer = trainer
        self.module = module
        self.datamodule = datamodule
        self.folder = None if folder is None else Path(folder)
        self.ckpt_path = ckpt_path
        self.compare = compare

    def run(self) -> dict[str, Any]:
        """Quantize, and write what came of it.

        Returns:
            The report as a dict, with the metrics ``before`` (if compared) and ``after``.
        """
        evaluate = getattr(self.trainer, EVALUATIONS[self.callback.when])
        ckpt_path, before = self.ckpt_path, {}
        if self.folder is not None and self.callback.folder is None:
            self.callback.folder = str(self.folder / "layers")
        if self.compare:
            given = self.trainer.callbacks
            self.trainer.callbacks = [callback for callback in given if callback is not self.callback]
            metrics = evaluate(self.module, datamodule=self.datamodule, ckpt_path=ckpt_path, verbose=False)
            before = {"before": _merged(metrics)}
            self.trainer.callbacks, ckpt_path = given, None
        metrics = evaluate(self.module, datamodule=self.datamodule, ckpt_path=ckpt_path, verbose=False)
        report = self.callback.report
        found = {**before, "after": _merged(metrics), **report.as_dict()}
        rank_zero_info(f"{report.describe()}\n{_compare(found)}")
        if self.folder is not None:
            self._write(found)
        return found

    def _write(self, found: dict[str, Any]) -> None:
        # not the weights alone: the callback's state says that they are quantized
        self.trainer.save_checkpoint(self.folder / "quantized.ckpt")
        if self.trainer.is_global_zero:
            with replacing_file(self.folder / "report.json") as path:
                path.write_text(json.dumps(found, indent=1))
            if self.callback.export == "packed":
                self._write_gptq(self.folder / "gptq")

    def _write_gptq(self, folder: Path) -> None:
        # readers count names from the network of transformers, not from the module around it
        network = self.module.model if isinstance(self.module, CausalLM) else self.module
        reason = None
        for checkpoint_format in FORMATS:
            try:
                write_gptq(network, folder, checkpoint_format=checkpoint_format)
                return
            except ValueError as error:
                reason = error
        warnings.warn(f"no files for readers of GPTQ were written: {reason}", LightningWeightsWarning, stacklevel=2)


def _merged(metrics: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(value) for part in metrics for name, value in part.items()}


def _compare(found: dict[str, Any]) -> str:
    """Return a line per metric."""
    before = found.get("before", {})
    return "\n".join(
        f"{name}: {value:.6g}" + (f", was {before[name]:.6g}" if name in before else "")
        for name, value in found["after"].items()
    )
