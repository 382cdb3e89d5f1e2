"""What a model predicts for samples it has not seen, on disk, for the model that combines several."""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_weights.callbacks._lean_callback import LeanCallback
from lightning_weights.callbacks._sample_numbers import SampleNumbers, part_of_batch
from lightning_weights.data import OutOfFold
from lightning_weights.errors import LightningWeightsWarning, check_choice, check_number
from lightning_weights.functional.rows_of_processes import several_processes

FILE = "oof.pt"
Row = tuple[Tensor, Tensor, Tensor | None]  # numbers, predictions and targets of a batch


class CollectOOF(LeanCallback):
    """Write the predictions of a validation, or of ``Trainer.predict``, to a file, each with the number of its sample.

    One row per sample: those of all processes are put together, and what a ``DistributedSampler`` served twice to
    give every process as much is there once. Samples that contradict each other, or are missing, are errors. The file
    is replaced whole when all rows are there; `data.OutOfFold.load` reads it, and so does
    ``torch.load(path, weights_only=True)``.

    Numbers are those of the data set under all ``Subset``. They are found in batches of a `data.IndexedDataset`, at
    ``id_key``, or by the order of a loader that does not shuffle, which needs nothing in the batches.

    Predictions are what ``predict_step`` returns, or what ``validation_step`` returns under ``preds``; targets, which
    are kept beside them, what it returns under ``target``, or the batch's second part. A validation logs
    ``weights/regularized_stacking/rows`` and, for targets of the predictions' shape,
    ``weights/regularized_stacking/rmse``, over the rows that are written.

    Args:
        path: File. ``None``: ``oof.pt`` in the folder of the run's logs.
        stage: Which predictions: those of ``validate``, in ``Trainer.fit`` and ``Trainer.validate``, or of
            ``Trainer.predict``.
        dataloader_idx: Which loader, if there are several.
        id_key: Key of the samples' numbers in a batch, or their place in one that is a sequence; -1: the last.
            ``None``: ``sample_id``, the numbers of a `data.IndexedDataset`, or the order of the loader.
        prediction_key: Key of the predictions, if a step returns a dict.
        target_key: Key or place of the targets in a batch, where the step returns none.
        monitor: Logged metric that says which validation of a fit is kept, as for the checkpoint that is kept.
            ``None``: the last one.
        mode: Whether the metric shall be small or large.

    Raises:
        ValueError: If an argument is out of range, a step returns no predictions, samples have no numbers, contradict
            each other or are missing, or the metric is not there.

    Warns:
        LightningWeightsWarning: If a run is resumed, and the file is not the one it had written.

    Source: Mohammad and Meherab 2026, arXiv:2602.12469, whose base models are combined on such predictions.

    Examples:
        >>> CollectOOF("folds/fold_0.pt", monitor="val/loss").mode
        'min'

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.CollectOOF
              init_args: {path: folds/fold_0.pt}
        ```
    """

    def __init__(
        self,
        path: str | None = None,
        stage: Literal["validate", "predict"] = "validate",
        dataloader_idx: int = 0,
        id_key: int | str | None = None,
        prediction_key: str = "preds",
        target_key: int | str = 1,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        check_choice("stage", stage, ["validate", "predict"])
        check_number("dataloader_idx", dataloader_idx, low=0, whole=True)
        check_choice("mode", mode, ["min", "max"])
        if monitor is not None and stage == "predict":
            raise ValueError(f"monitor is {monitor!r} and stage 'predict', which logs nothing; use stage 'validate'")
        self.path = path
        self.stage = stage
        self.dataloader_idx = dataloader_idx
        self.id_key = id_key
        self.prediction_key = prediction_key
        self.target_key = target_key
        self.monitor = monitor
        self.mode = mode
        self._reset()

    def _reset(self) -> None:
        self._numbers: SampleNumbers | None = None
        self._rows: list[Row] = []
        self._found: OutOfFold | None = None
        self._result: OutOfFold | None = None
        self._score: float | None = None
        self._epoch: int | None = None

    @property
    def result(self) -> OutOfFold | None:
        """What was written last, on every process."""
        return self._result

    @property
    def state_key(self) -> str:
        """Key of the state in checkpoints; one per file."""
        return self._generate_state_key(path=self.path, stage=self.stage, dataloader_idx=self.dataloader_idx)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch whose predictions the file holds, and the metric then."""
        return {"score": self._score, "epoch": self._epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._score, self._epoch = state_dict["score"], state_dict["epoch"]

    def file(self, trainer: Trainer) -> Path:
        """Return the file of a run; all processes have to ask.

        Args:
            trainer: Its Trainer.
        """
        return Path(trainer.log_dir or trainer.default_root_dir, FILE) if self.path is None else Path(self.path)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notice, in a run that is resumed, a file that is not its own."""
        path = self.file(trainer)
        if self.monitor is None or self._epoch is None or not trainer.is_global_zero:
            return
        there = OutOfFold.load(path).epoch if path.is_file() else "nothing"
        if there != self._epoch:
            warnings.warn(
                f"the best validation before this run was resumed was that of epoch {self._epoch}, and {path} holds "
                f"{there if there == 'nothing' else f'epoch {there}'}: unless a later one is better, its predictions "
                f"have to be made again, by Trainer.validate with the best checkpoint",
                LightningWeightsWarning,
                stacklevel=2,
            )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        if self.stage == "validate" and not trainer.sanity_checking:
            validating = trainer.state.fn == "validate"
            self._begin(trainer.validate_loop if validating else trainer.fit_loop.epoch_loop.val_loop)

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        if self.stage == "predict":
            self._begin(trainer.predict_loop)

    def _begin(self, loop: Any) -> None:
        self._rows = []
        loaders = loop._combined_loader.flattened
        check_number("dataloader_idx", self.dataloader_idx, low=0, high=len(loaders), whole=True)
        self._numbers = SampleNumbers(loaders[self.dataloader_idx], self.id_key)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a batch's predictions."""
        if self.stage == "validate" and not trainer.sanity_checking:
            self._keep("validation_step", outputs, batch, batch_idx, dataloader_idx)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a batch's predictions."""
        if self.stage == "predict":
            self._keep("predict_step", outputs, batch, batch_idx, dataloader_idx)

    def _keep(self, step: str, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        if dataloader_idx != self.dataloader_idx:
            return
        named = outputs if isinstance(outputs, Mapping) else {self.prediction_key: outputs}
        rows, targets = named.get(self.prediction_key), named.get("target")
        if not isinstance(rows, Tensor) or rows.dim() == 0:
            raise ValueError(
                f"{step} returned {_describe(outputs)}; it has to return the predictions, a row per sample, or a dict "
                f"with them under {self.prediction_key!r} (prediction_key)"
            )
        numbers = self._numbers.of(batch, batch_idx)
        if targets is None:
            targets = part_of_batch(batch, self.target_key)
            targets = targets if targets is not None and targets.dim() and len(targets) == len(rows) else None
        if len(numbers) != len(rows):
            raise ValueError(
                f"{step} returned {len(rows)} rows for a batch of {len(numbers)} samples; it needs one each"
            )
        self._rows.append((numbers, rows.detach().cpu(), None if targets is None else targets.detach().cpu()))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the rows of all processes together, and log."""
        if self.stage != "validate" or trainer.sanity_checking:
            return
        self._found = self._together(trainer.current_epoch if trainer.state.fn == "fit" else None)
        rows, targets = self._found.predictions, self._found.targets
        values = {"rows": float(len(rows))}
        if targets is not None and targets.is_floating_point() and targets.numel() == rows.numel():
            values["rmse"] = float((rows.double() - targets.double().reshape(rows.shape)).square().mean().sqrt())
        pl_module.log_dict({f"weights/regularized_stacking/{name}": v for name, v in values.items()}, sync_dist=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, unless an earlier validation was better."""
        if self.stage != "validate" or trainer.sanity_checking:
            return
        found, self._found = self._found, None
        score = self._monitored(trainer) if trainer.state.fn == "fit" else None
        if score is not None:
            if not trainer.strategy.broadcast(self._better(score)):
                return
            found = OutOfFold(found.indices, found.predictions, found.targets, found.epoch, score)
        self._score, self._epoch = score, found.epoch
        self._write(trainer, found)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the rows of all processes together, and write the file."""
        if self.stage == "predict":
            self._write(trainer, self._together(None))

    def _together(self, epoch: int | None) -> OutOfFold:
        own, self._rows = self._rows, []
        with torch.inference_mode(False):
            parts = [own]
            if several_processes():
                parts = [None] * dist.get_world_size()
                dist.all_gather_object(parts, own)
            rows = [row for part in parts for row in part]
            if not rows:
                raise ValueError("there was no batch to collect predictions of; give the loader at least one sample")
            targets = [row[2] for row in rows if row[2] is not None]
            found = OutOfFold.of(
                torch.cat([row[0] for row in rows]),
                torch.cat([row[1] for row in rows]),
                torch.cat(targets) if len(targets) == len(rows) else None,
                epoch,
            )
        self._numbers.check_complete(found)
        return found

    def _monitored(self, trainer: Trainer) -> float | None:
        if self.monitor is None:
            return None
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(
                f"monitor is {self.monitor!r}, which no validation has logged; there are "
                f"{', '.join(map(repr, trainer.callback_metrics)) or 'no metrics'}"
            )
        return float(trainer.callback_metrics[self.monitor])

    def _better(self, score: float) -> bool:
        if self._score is None or math.isnan(self._score):
            return True
        return score < self._score if self.mode == "min" else score > self._score

    def _write(self, trainer: Trainer, found: OutOfFold) -> None:
        self._result, path = found, self.file(trainer)
        if trainer.is_global_zero:
            found.save(path)
        trainer.strategy.barrier("oof")


def _describe(outputs: Any) -> str:
    if isinstance(outputs, Mapping):
        return f"a dict with {', '.join(map(repr, outputs))}"
    return "a single number" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
