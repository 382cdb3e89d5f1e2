"""What scikit-learn asks of an estimator, without scikit-learn."""

import inspect
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

Own = TypeVar("Own", bound="Estimator")


class Estimator:
    """An object whose arguments are attributes of the same names, and whose ``fit`` adds attributes that end in ``_``.

    It works in scikit-learn's ``clone``, ``Pipeline``, ``GridSearchCV`` and the like; none of it needs scikit-learn.
    """

    estimator_type: Literal["regressor", "transformer"]
    n_features_in_: int

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments by name.

        Args:
            deep: What scikit-learn asks for arguments of arguments with; there are none.
        """
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names}

    def set_params(self: Own, **params: Any) -> Own:
        """Change arguments.

        Args:
            **params: Arguments by name.

        Raises:
            ValueError: If there is no argument of a name, or a value is not allowed; then nothing has changed.
        """
        current = self.get_params()
        if unknown := sorted(params.keys() - current):
            raise ValueError(f"{type(self).__name__} has no {', '.join(unknown)}; it has {', '.join(current)}")
        type(self)(**{**current, **params})
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        changed = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if value is not defaults[name].default and repr(value) != repr(defaults[name].default)
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_is_fitted__(self) -> bool:
        return any(name.endswith("_") and not name.startswith("_") for name in vars(self))

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, RegressorTags, Tags, TargetTags, TransformerTags

        regressor = self.estimator_type == "regressor"
        return Tags(
            estimator_type=self.estimator_type,
            target_tags=TargetTags(required="y" in inspect.signature(self.fit).parameters),  # type: ignore[attr-defined]
            transformer_tags=None if regressor else TransformerTags(),
            regressor_tags=RegressorTags() if regressor else None,
            input_tags=InputTags(),
        )

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise ValueError(f"this {type(self).__name__} is not fitted; call fit first")

    def _as_in_fit(self, name: str, values: Any) -> Tensor:
        """Return a table with as many columns as in ``fit``, in fp64."""
        self._check_fitted()
        table = as_table(name, values)
        expected = self.n_features_in_
        if table.shape[1] != expected:
            raise ValueError(
                f"{name} has {table.shape[1]} features, but {type(self).__name__} is expecting {expected} features "
                "as input: as many columns as in fit"
            )
        check_finite(table, column_names(values, None), name)
        return table


def as_table(name: str, values: Any, dimensions: Sequence[int] = (2,)) -> Tensor:
    """Return a table of numbers as a tensor in fp64, on the device it was on.

    Args:
        name: What it is, for the message.
        values: Tensor, array, data frame or nested list.
        dimensions: Allowed numbers of dimensions.

    Raises:
        ValueError: If it has another number of dimensions, no rows, or holds complex or sparse numbers.
    """
    if hasattr(values, "toarray"):
        raise ValueError(f"{name} is sparse; allowed are dense tables: use {name}.toarray()")
    table = values.detach() if isinstance(values, Tensor) else np.asarray(values)
    if "complex" in str(table.dtype):
        raise ValueError(f"{name} holds complex numbers. Complex data not supported")
    if not isinstance(table, Tensor):
        table = torch.from_numpy(np.array(table, dtype=np.float64))
    if table.ndim not in dimensions:
        allowed = " or ".join(f"{number}-d" for number in dimensions)
        raise ValueError(
            f"{name} is {table.ndim}-d; allowed is {allowed}. Reshape your data: reshape(-1, 1) makes a column of it"
        )
    if not table.numel():
        what = "feature" if len(table) else "sample"
        shape = tuple(table.shape)
        raise ValueError(f"{name} is empty: it has 0 {what}(s) (shape={shape}) while a minimum of 1 is required.")
    return table.double()


def as_pair(name: str, values: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Return a table and one target for each of its rows, in fp64 and on the table's device.

    Args:
        name: What the table is, for messages.
        values: The table.
        y: Targets.

    Raises:
        ValueError: If the numbers of rows differ, or a number is not finite.
    """
    if y is None:
        raise ValueError("fit requires y to be passed, but the target y is None")
    table, target = as_table(name, values), as_table("y", y, (1, 2))
    if target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if target.ndim == 2:
        raise ValueError(f"y has {target.shape[1]} columns; allowed is one")
    check_rows(name, table, target)
    check_finite(table, column_names(values, None), name)
    check_finite(target[:, None], None, "y")
    return table, target.to(table.device)


def check_rows(name: str, table: Tensor, target: Tensor) -> None:
    """Check that there is a target for every row.

    Args:
        name: What the table is, for the message.
        table: The table.
        target: The targets.

    Raises:
        ValueError: If the numbers differ.
    """
    if len(table) != len(target):
        raise ValueError(f"{name} has {len(table)} rows and y has {len(target)}; allowed is one target for every row")


def like(values: Tensor, given: Any) -> Any:
    """Return numbers as what was given: a tensor of its floating type, or an array.

    Args:
        values: Numbers in fp64.
        given: Tensor, array, data frame or nested list.
    """
    if isinstance(given, Tensor):
        return values.to(given.device, given.dtype if given.is_floating_point() else values.dtype)
    kind = getattr(given, "dtype", None)
    array = values.cpu().numpy()
    return array.astype(kind) if isinstance(given, np.ndarray) and kind in (np.float32, np.float16) else array


def column_names(table: Any, names: Sequence[str] | None) -> list[str] | None:
    """Return names that are given, or those of a data frame's columns, or None.

    Args:
        table: Tensor, array, data frame or nested list.
        names: Names that take precedence.
    """
    if names is not None:
        return [str(name) for name in names]
    columns = getattr(table, "columns", None)
    return None if columns is None or not all(isinstance(name, str) for name in columns) else list(columns)


def check_finite(table: Tensor, names: Sequence[str] | None, what: str) -> None:
    """Check that all numbers are finite.

    Args:
        table: Numbers, of shape (N, K) or (N, K, outputs).
        names: Names of the K columns. ``None``: their numbers.
        what: What the numbers are, for the message.

    Raises:
        ValueError: If some are not; the message names columns and counts.
    """
    broken = table.isfinite().logical_not().transpose(0, 1).flatten(1).sum(1).tolist()
    bad = [f"{names[i] if names else f'column {i}'} ({count})" for i, count in enumerate(broken) if count]
    if bad:
        more = f" and {len(bad) - 5} more columns" if len(bad) > 5 else ""
        raise ValueError(
            f"{what} has NaN or inf among its {len(table)} rows: {', '.join(bad[:5])}{more}; allowed are finite numbers"
        )
