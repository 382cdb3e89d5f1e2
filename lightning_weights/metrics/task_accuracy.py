"""Accuracy on every task after training on every task."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_weights.errors import check_number
from lightning_weights.functional import continual


class TaskAccuracyMatrix(Metric):
    """Collect the accuracies of a stream of tasks in a matrix R, R[i, j] on task j after training on task i.

    Counts are summed over batches and processes, so a task may be evaluated in parts; evaluate it again after the same
    task and the counts add up, unless `reset_row` is called in between. The matrix is kept in ``state_dict``.

    Args:
        num_tasks: Number of tasks T, at least 1.
        **kwargs: Options of every torchmetrics ``Metric``, such as ``sync_on_compute``.

    Raises:
        ValueError: If ``num_tasks`` is not a whole number from 1.

    Examples:
        >>> import torch
        >>> matrix = TaskAccuracyMatrix(num_tasks=2)
        >>> matrix.update(torch.tensor([1, 0]), torch.tensor([1, 0]), task=0, after=0)
        >>> matrix.update(torch.tensor([1, 1]), torch.tensor([1, 0]), task=0, after=1)
        >>> matrix.update(torch.tensor([[0.1, 0.9]]), torch.tensor([1]), task=1, after=1)
        >>> matrix.compute()
        tensor([[1.0000,    nan],
                [0.5000, 1.0000]])
        >>> matrix.forgetting()
        tensor(0.5000)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    correct: Tensor
    total: Tensor

    def __init__(self, num_tasks: int, **kwargs: Any) -> None:
        check_number("num_tasks", num_tasks, low=1, whole=True)
        super().__init__(**kwargs)
        self.num_tasks = num_tasks
        for name in ("correct", "total"):
            counts = torch.zeros(num_tasks, num_tasks, dtype=torch.int64)
            self.add_state(name, counts, dist_reduce_fx="sum", persistent=True)

    def update(self, preds: Tensor, target: Tensor, task: int, after: int) -> None:
        """Count the predictions of one batch of one task.

        Args:
            preds: Scores of shape (N, C), of which the largest is the prediction, or predicted labels of shape (N,).
            target: True labels of shape (N,).
            task: Task that the batch belongs to, from 0.
            after: Task that was trained on last, from 0.

        Raises:
            ValueError: If ``task`` or ``after`` isn't a whole number from 0 to T - 1, or the shapes don't fit.
        """
        check_number("task", task, low=0, high=self.num_tasks, whole=True)
        check_number("after", after, low=0, high=self.num_tasks, whole=True)
        labels = preds.argmax(dim=1) if preds.ndim == 2 else preds
        if target.ndim != 1 or labels.shape != target.shape:
            raise ValueError(
                f"`preds` has shape {tuple(preds.shape)} and `target` {tuple(target.shape)}:"
                " expected (N, C) or (N,) with a `target` of (N,)."
            )
        # new tensors rather than edits in place: a validation in inference mode would leave states that can't be edited
        cell = torch.zeros_like(self.total)
        cell[after, task] = 1
        self.correct = self.correct + cell * (labels == target).sum()
        self.total = self.total + cell * target.numel()

    def compute(self) -> Tensor:
        """Return R, float32 of shape (T, T), NaN where nothing was counted."""
        return self.correct.to(torch.float32) / self.total.to(torch.float32)

    def reset_row(self, after: int) -> None:
        """Forget what was counted after training on task ``after``, to evaluate there again.

        Args:
            after: Row to clear, from 0.

        Raises:
            ValueError: If ``after`` isn't a whole number from 0 to T - 1.
        """
        check_number("after", after, low=0, high=self.num_tasks, whole=True)
        row = torch.tensor([after], device=self.total.device)
        self.correct = self.correct.index_fill(0, row, 0)
        self.total = self.total.index_fill(0, row, 0)
        self._computed = None  # or `compute` would return the result it cached

    def average_accuracy(self) -> Tensor:
        """Return the accuracy averaged over the tasks seen so far, see `functional.continual.average_accuracy`."""
        return continual.average_accuracy(self.compute())

    def forgetting(self) -> Tensor:
        """Return the mean fall from the best accuracy, see `functional.continual.forgetting`."""
        return continual.forgetting(self.compute())

    def backward_transfer(self) -> Tensor:
        """Return the mean change on earlier tasks, see `functional.continual.backward_transfer`."""
        return continual.backward_transfer(self.compute())
