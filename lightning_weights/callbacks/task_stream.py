"""A stream of tasks through one Trainer, with the matrix of accuracies it leaves behind."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_weights.functional.continual import average_accuracy, backward_transfer, forgetting
from lightning_weights.metrics import TaskAccuracyMatrix


class TaskStream(Callback):
    """Train on one task after another in a single ``fit()`` and record the (tasks x tasks) accuracy matrix.

    The data comes from a LightningDataModule (or the LightningModule itself) with ``num_tasks``, a settable ``task``
    that ``train_dataloader()`` follows, and a ``val_dataloader()`` that returns one loader per task. The callback moves
    ``task`` along with the epochs and after every validation run fills row "after task i" of ``matrix``. It logs
    ``weights/task_stream/`` ``accuracy_task<j>``, ``average_accuracy`` (over the tasks seen), ``forgetting`` and
    ``backward_transfer``, and writes the matrix to Lightning's log when the fit ends.

    Predictions are read from ``validation_step`` if it returns a mapping with ``preds`` (logits or labels) and
    ``target``; otherwise batches must be pairs (input, target) and the module is called once more on the input.

    Args:
        epochs_per_task: Epochs spent on each task; a list gives one number per task.

    Raises:
        ValueError: If the data, ``max_epochs`` or the validation schedule does not fit the stream.

    Examples:
        >>> stream = TaskStream(epochs_per_task=[4, 1])
        >>> [stream.task_of_epoch(epoch) for epoch in range(5)]
        [0, 0, 0, 0, 1]

        ```yaml
        trainer:
          max_epochs: 30
          callbacks:
            - class_path: lightning_weights.callbacks.TaskStream
              init_args: {epochs_per_task: 10}
        ```
    """

    def __init__(self, epochs_per_task: int | list[int] = 1) -> None:
        self.epochs_per_task = list(epochs_per_task) if isinstance(epochs_per_task, Sequence) else epochs_per_task
        epochs = self.epochs_per_task if isinstance(self.epochs_per_task, list) else [self.epochs_per_task]
        if not epochs or any(not isinstance(n, int) or n < 1 for n in epochs):
            raise ValueError(f"epochs_per_task is {epochs_per_task!r}; allowed are whole numbers from 1")
        self._reset()

    def _reset(self) -> None:
        self.matrix = torch.empty(0, 0)
        self._counts: TaskAccuracyMatrix | None = None
        self._unwrapped: Callable[[], Any] | None = None
        self._was_own = False  # whether the data object itself had a train_dataloader, beside its class's
        self._served = False

    def __getstate__(self) -> dict[str, Any]:
        return {"epochs_per_task": self.epochs_per_task}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    def state_dict(self) -> dict[str, Any]:
        """Return the accuracies recorded so far."""
        return {"matrix": self.matrix}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.matrix = state_dict["matrix"]

    def task_of_epoch(self, epoch: int) -> int:
        """Return the number of the task, from 0, that the given epoch (from 0) belongs to."""
        if isinstance(self.epochs_per_task, int):
            return epoch // self.epochs_per_task
        ends = torch.tensor(self.epochs_per_task).cumsum(0)
        return int((ends <= epoch).sum())

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that data and trainer fit the stream, and make the data follow it."""
        if stage != "fit":
            return
        source = _task_source(trainer, pl_module)
        self._check(trainer, source.num_tasks)
        # Loaders are made anew every epoch: after a resume Lightning counts epochs since the last reload from the
        # resumed one, so a longer period would miss the task's end.
        trainer.reload_dataloaders_every_n_epochs = 1
        self._served = False
        self._unwrapped, self._was_own = source.train_dataloader, "train_dataloader" in vars(source)
        source.train_dataloader = functools.partial(self._train_dataloader, trainer, source)
        self._counts = TaskAccuracyMatrix(source.num_tasks)
        if trainer.current_epoch == 0 or len(self.matrix) != source.num_tasks:
            self.matrix = torch.full((source.num_tasks, source.num_tasks), torch.nan)

    def _check(self, trainer: Trainer, num_tasks: int) -> None:
        epochs = self.epochs_per_task
        epochs = [epochs] * num_tasks if isinstance(epochs, int) else epochs
        if len(epochs) != num_tasks:
            raise ValueError(
                f"epochs_per_task has {len(epochs)} entries, but the data has {num_tasks} tasks; give one per task"
            )
        limit = trainer.max_epochs
        if limit is None or limit < 0 or limit > sum(epochs):
            raise ValueError(
                f"max_epochs is {limit}, but {num_tasks} tasks with epochs_per_task={self.epochs_per_task} end after "
                f"{sum(epochs)} epochs; set Trainer(max_epochs={sum(epochs)})"
            )
        period = trainer.check_val_every_n_epoch
        ends = torch.tensor(epochs).cumsum(0)
        if period is None or bool((ends % period).any()):
            raise ValueError(
                f"check_val_every_n_epoch is {period}, but validation must run in the last epoch of every task, which "
                f"are the epochs numbered {ends.tolist()}; use a number that divides them all, such as 1"
            )
        if trainer.limit_val_batches == 0 or trainer.val_check_interval != 1.0:
            raise ValueError(
                f"limit_val_batches is {trainer.limit_val_batches} and val_check_interval "
                f"{trainer.val_check_interval}, but the matrix needs validation at the end of epochs; leave both at 1.0"
            )
        if trainer.reload_dataloaders_every_n_epochs not in (0, 1):
            raise ValueError(
                f"reload_dataloaders_every_n_epochs is {trainer.reload_dataloaders_every_n_epochs}; a TaskStream "
                f"reloads every epoch, leave it at 0 or 1"
            )

    def _train_dataloader(self, trainer: Trainer, source: Any) -> Any:
        source.task = self.task_of_epoch(trainer.current_epoch)
        self._served = True
        return self._unwrapped() if self._unwrapped is not None else None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the data its own ``train_dataloader`` back."""
        if stage == "fit" and self._unwrapped is not None:
            source = _task_source(trainer, pl_module)
            if self._was_own:
                source.train_dataloader = self._unwrapped
            else:
                del source.train_dataloader
            self._unwrapped = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse loaders that the stream cannot follow."""
        if not self._served:
            raise ValueError(
                "train_dataloaders were given to fit(), so the task cannot change; pass the data module instead: "
                "fit(model, datamodule=...)"
            )

    def _records(self, trainer: Trainer) -> bool:
        return not trainer.sanity_checking and trainer.state.fn == "fit"

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a new row."""
        if not self._records(trainer) or self._counts is None:
            return
        loaders = trainer.val_dataloaders
        count = len(loaders) if isinstance(loaders, Sequence) else 1
        if count != self._counts.num_tasks:
            raise ValueError(
                f"val_dataloader() returned {count} loaders for {self._counts.num_tasks} tasks; return a list with one "
                f"loader per task"
            )
        self._counts.to(pl_module.device).reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the right answers of one batch."""
        if not self._records(trainer) or self._counts is None:
            return
        if isinstance(outputs, Mapping) and "preds" in outputs and "target" in outputs:
            preds, target = outputs["preds"], outputs["target"]
        else:
            inputs, target = batch
            preds = pl_module(inputs)
        task = self.task_of_epoch(trainer.current_epoch)
        self._counts.update(preds, target, task=dataloader_idx, after=task)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fill the row of the current task and log what follows from the matrix."""
        if not self._records(trainer) or self._counts is None:
            return
        task = self.task_of_epoch(trainer.current_epoch)
        self.matrix[task] = self._counts.compute()[task].cpu()
        values = {f"accuracy_task{j}": accuracy for j, accuracy in enumerate(self.matrix[task])}
        for summary in (average_accuracy, forgetting, backward_transfer):
            values[summary.__name__] = summary(self.matrix, after=task)
        pl_module.log_dict({f"weights/task_stream/{name}": value for name, value in values.items()}, sync_dist=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the matrix to the log."""
        rank_zero_info(format_matrix(self.matrix))


def format_matrix(matrix: Tensor) -> str:
    """Return the accuracy matrix in percent as text, a row for every task trained so far.

    Args:
        matrix: (T, T) accuracies in [0, 1], row i after training on task i, NaN where nothing was measured.

    Examples:
        >>> print(format_matrix(torch.tensor([[0.95, 0.1], [0.7, 0.9]])))
        accuracy in %    on task 0  on task 1
        after task 0          95.0       10.0
        after task 1          70.0       90.0
    """
    head = "accuracy in %".ljust(15) + "".join(f"on task {j}".rjust(11) for j in range(matrix.shape[1]))
    rows = [
        f"after task {i}".ljust(15) + "".join(f"{100 * accuracy:.1f}".rjust(11) for accuracy in row.tolist())
        for i, row in enumerate(matrix)
        if not row.isnan().all()
    ]
    return "\n".join([head, *rows])


def _task_source(trainer: Trainer, pl_module: LightningModule) -> Any:
    for source in (trainer.datamodule, pl_module):
        if source is not None and hasattr(source, "num_tasks") and hasattr(source, "task"):
            return source
    raise ValueError(
        "TaskStream needs data with num_tasks, a settable task, a train_dataloader() for that task and a "
        "val_dataloader() that lists one loader per task; pass such a LightningDataModule, for example "
        "lightning_weights.data.PermutedDigits"
    )
