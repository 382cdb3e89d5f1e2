"""What a stack is fitted to: checked tables, and how their rows are divided."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.regularized_stacking import Split, fold_ids
from lightning_weights.modules._estimator import as_table, check_finite, check_rows, column_names

LEAK = 1e-6  # error over the target's standard deviation of predictions that are the targets, in some precision
SUSPICIOUS = 0.999  # share of the variance that hardly any model explains on rows that it has not seen
FAR_BELOW = 0.5  # error over that on a validation set


class StackingInputs(NamedTuple):
    """Predictions and targets in fp64, without rows that no model predicted.

    Attributes:
        predictions: Predictions, of shape (n, K, outputs).
        target: Targets, of shape (n, outputs).
        kept: Which of the rows that were given are among the n, bool of shape (N,).
        groups: Group of every row, or None.
        names: Names of the columns.
        flat: Whether the targets had no dimension of outputs.
    """

    predictions: Tensor
    target: Tensor
    kept: Tensor
    groups: Any
    names: list[str]
    flat: bool


def stacking_inputs(P: Any, y: Any, groups: Any, names: Sequence[str] | None) -> StackingInputs:
    """Check what ``fit`` is given.

    Args:
        P: Predictions, of shape (N, K) or (N, K, outputs).
        y: Targets, of shape (N,) or (N, outputs).
        groups: Group of every row, or None.
        names: Names of the columns, or None.

    Raises:
        ValueError: If shapes do not match, there are fewer than two columns, or numbers are not finite.
    """
    if y is None:
        raise ValueError("fit requires y to be passed, but the target y is None")
    table, target = as_table("P", P, (2, 3)), as_table("y", y, (1, 2))
    target = target.to(table.device)
    check_rows("P", table, target)
    flat = target.ndim == 1
    target = target[:, None] if flat else target
    if table.ndim == 3 and table.shape[2] != target.shape[1]:
        raise ValueError(f"P has {table.shape[2]} outputs and y has {target.shape[1]}; allowed is the same number")
    if table.shape[1] < 2:
        raise ValueError(f"P has {table.shape[1]} columns (1 feature(s)); stacking needs the predictions of 2 models")
    columns = column_names(P, names) or [f"model_{column}" for column in range(table.shape[1])]
    if len(columns) != table.shape[1] or len(set(columns)) < len(columns):
        raise ValueError(f"names are {columns[:5]} ...; allowed are {table.shape[1]} different names")
    if groups is not None and len(groups) != len(table):
        raise ValueError(f"groups has {len(groups)} entries and P {len(table)} rows; allowed is one for every row")
    table = table if table.ndim == 3 else table[:, :, None].expand(-1, -1, target.shape[1])
    kept = table.isnan().flatten(1).all(1).logical_not()
    if not bool(kept.any()):
        raise ValueError("P is all NaN; allowed are finite predictions (only rows without any may be NaN)")
    if not bool(kept.all()):
        table, target = table[kept], target[kept]
        groups = None if groups is None else np.asarray(groups)[kept.cpu().numpy()]
    check_finite(table, columns, "P")
    check_finite(target, [f"output {output}" for output in range(target.shape[1])], "y")
    return StackingInputs(table, target, kept, groups, columns, flat)


def outer_splits(settings: Any, data: StackingInputs) -> list[Split]:
    """Divide the rows into outer folds.

    Args:
        settings: What has ``n_folds``, ``seed`` and ``splitter``.
        data: The rows.

    Raises:
        ValueError: If there are fewer rows than folds, or the splitter's row numbers are not usable.
    """
    count, device = len(data.target), data.target.device
    if settings.splitter is None:
        ids = fold_ids(count, settings.n_folds, settings.seed, data.groups).to(device)
        rows = torch.arange(count, device=device)
        return [Split(rows[ids != fold], rows[ids == fold]) for fold in range(settings.n_folds)]
    pairs = settings.splitter
    if hasattr(pairs, "split"):
        table, target = data.predictions[:, :, 0].cpu().numpy(), data.target[:, 0].cpu().numpy()
        pairs = pairs.split(table, target, data.groups)
    splits = [Split(*(_row_numbers(part, count).to(device) for part in pair)) for pair in pairs]
    if not splits:
        raise ValueError("splitter gives no splits; allowed is one at least")
    tested = torch.cat([split.test for split in splits])
    if len(tested.unique()) < len(tested):
        raise ValueError("splitter has a row in two test sets; allowed is one out-of-fold prediction per row")
    for index, split in enumerate(splits):
        if not len(split.test) or bool(torch.isin(split.test, split.train).any()):
            raise ValueError(f"splitter's split {index} has no test rows, or rows that are in both of its sets")
    return splits


def check_leaks(data: StackingInputs, validation_risk: Any) -> None:
    """Refuse predictions that are the targets, and warn about those that are too good.

    Args:
        data: Predictions and targets.
        validation_risk: Root mean squared error of every model elsewhere, of shape (K,) or (K, outputs), or None.

    Raises:
        ValueError: If predictions equal the targets, or there is not one validation risk for every model.
    """
    risk = (data.predictions - data.target[:, None]).square().mean(0).sqrt()  # (K, outputs)
    spread = data.target.std(0, correction=0)
    leaks = (risk <= LEAK * spread).any(1).tolist()
    if any(leaks):
        raise ValueError(
            f"{_some(data.names, leaks)}: predictions equal the targets (root mean squared error 0). Are they not "
            "out-of-fold? Stacking needs predictions of rows that the models were not fitted to"
        )
    too_good = (1 - (risk / spread).square() > SUSPICIOUS).any(1).tolist()
    if any(too_good):
        _warn(f"{_some(data.names, too_good)}: predictions explain more than {SUSPICIOUS:.1%} of the target's variance")
    if validation_risk is not None:
        elsewhere = as_table("validation_risk", validation_risk, (1, 2)).to(risk)
        if len(elsewhere) != len(risk):
            raise ValueError(
                f"validation_risk has {len(elsewhere)} entries; allowed is one for each of {len(risk)} models"
            )
        far = (risk < FAR_BELOW * elsewhere.reshape(len(risk), -1)).any(1).tolist()
        if any(far):
            _warn(f"{_some(data.names, far)}: the error is less than {FAR_BELOW:.0%} of the validation risk")


def _row_numbers(part: Any, count: int) -> Tensor:
    """Return row numbers, ascending, from numbers or a mask."""
    numbers = torch.as_tensor(np.asarray(part))
    if numbers.dtype == torch.bool and numbers.shape == (count,):
        numbers = numbers.nonzero().squeeze(1)
    valid = numbers.ndim == 1 and not numbers.is_floating_point() and numbers.dtype != torch.bool
    if not valid or bool(((numbers < 0) | (numbers >= count)).any()):
        raise ValueError(f"splitter gives {part!r}; allowed are row numbers from 0 to {count - 1}")
    return numbers.long().sort().values


def _some(names: Sequence[str], chosen: Sequence[bool]) -> str:
    listed = [name for name, yes in zip(names, chosen, strict=True) if yes]
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")


def _warn(finding: str) -> None:
    warnings.warn(
        f"{finding}. In-sample predictions look like that: check that they are out-of-fold",
        LightningWeightsWarning,
        stacklevel=4,
    )
