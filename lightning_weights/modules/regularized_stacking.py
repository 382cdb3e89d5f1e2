"""Stacking of many near-identical models by penalised linear models, as an estimator."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional.regularized_stacking import (
    LEARNERS,
    FittedStack,
    Grids,
    StackRules,
    fit_stack,
    inner_folds,
)
from lightning_weights.functional.regularized_stacking.folds import LARGEST_SEED
from lightning_weights.modules._estimator import Estimator, as_table, check_finite, column_names, like
from lightning_weights.modules._penalised_regressor import r_squared, warn_unconverged
from lightning_weights.modules._stacking_inputs import StackingInputs, check_leaks, outer_splits, stacking_inputs
from lightning_weights.modules._stacking_report import stack_output, stack_report
from lightning_weights.modules.redundancy_projector import check_thresholds
from lightning_weights.modules.stack_state import StackState


class RegularizedStacking(Estimator):
    r"""Combine out-of-fold predictions of many models by penalised linear models of them and their statistics.

    Models that are near-copies of better ones are dropped; mean, standard deviation, median, range and two products of
    them are appended; ridge regression, lasso and elastic net are fitted to standardised features, each with a penalty
    chosen by an inner cross-validation; their average, weighted by the inverse of their out-of-fold errors, is the
    prediction.

    It is a scikit-learn regressor, and needs no scikit-learn. Tensors give tensors, arrays give arrays; inside, all is
    fp64, on the tensors' device. ``fit`` sets ``state_`` (a [`StackState`][], which predicts and has a file), ``oof_``
    (stacked predictions of rows by models that were not fitted to them), ``learner_oof_`` (the same of each learner by
    its name) and ``report_`` (selected and removed columns,
    condition numbers, errors and penalties). With several outputs, each has a stack of its own, and ``report_`` is a
    list.

    All targets take part in the order in which columns are selected, and in the weights of the last average: ``oof_``
    is not wholly free of a row's own target. ``nested`` selects without it.

    Args:
        tau_corr: Least correlation at which a column is a near-copy of a better one, in [0, 1].
        tau_mse: Largest mean squared difference of near-copies; both have to hold.
        tau_mse_mode: Whether ``tau_mse`` and ``tau_var`` are in squared units of the target, or, ``relative``, shares
            of its variance.
        tau_var: Least variance of a column that is kept.
        statistics: Whether mean, standard deviation, median and range of the kept columns become features.
        interactions: Whether mean · standard deviation and range · standard deviation become features.
        learners: ``ridge``, ``lasso`` and ``elasticnet``, or some of them.
        n_folds: Number of outer folds, shuffled as scikit-learn's ``KFold`` does it.
        inner_folds: Number of inner folds that choose penalties, of neighbouring rows.
        blend: Whether learners are weighted by the inverse of their errors, or all alike (``uniform``).
        seed: Seed of the outer folds.
        nested: Whether columns are selected anew in each outer fold, without the rows that are held out there.
        splitter: Outer folds in place of ``n_folds`` and ``seed``: an object with scikit-learn's ``split``, or a list
            of pairs of row numbers (train, test). Rows in no test set have NaN in ``oof_``.

    Raises:
        ValueError: If an argument is not allowed.

    Source: Mohammad and Meherab 2026, arXiv:2602.12469. Differences: all is solved on Gram matrices of the folds. Lasso
    and elastic net choose penalties by solutions without a tolerance, not by where 10 000 sweeps of coordinate descent
    end, so that of nearly equal ones another may win; so is solved what such sweeps leave unsolved afterwards.
    ``relative`` thresholds, groups, several outputs and ``nested`` are additions.

    Examples:
        >>> y = torch.randn(90, generator=torch.Generator().manual_seed(0))
        >>> noise = torch.randn(90, 4, generator=torch.Generator().manual_seed(1))
        >>> oof = y[:, None] + noise
        >>> stack = RegularizedStacking(learners=["ridge"]).fit(oof, y)
        >>> stack.predict(oof[:5]).shape, stack.report_["selected"]
        (torch.Size([5]), ['model_0', 'model_1', 'model_2', 'model_3'])
    """

    estimator_type = "regressor"

    def __init__(
        self,
        tau_corr: float = 0.95,
        tau_mse: float = 0.01,
        tau_mse_mode: Literal["absolute", "relative"] = "absolute",
        tau_var: float = 0.01,
        statistics: bool = True,
        interactions: bool = True,
        learners: Sequence[Literal["ridge", "lasso", "elasticnet"]] = LEARNERS,
        n_folds: int = 10,
        inner_folds: int = 3,
        blend: Literal["inverse_rmse", "uniform"] = "inverse_rmse",
        seed: int = 42,
        nested: bool = False,
        splitter: Any = None,
    ) -> None:
        self.tau_corr = tau_corr
        self.tau_mse = tau_mse
        self.tau_mse_mode = tau_mse_mode
        self.tau_var = tau_var
        self.statistics = statistics
        self.interactions = interactions
        self.learners = learners
        self.n_folds = n_folds
        self.inner_folds = inner_folds
        self.blend = blend
        self.seed = seed
        self.nested = nested
        self.splitter = splitter
        self._check()

    def _check(self) -> None:
        check_thresholds(self)
        for name in ("statistics", "interactions", "nested"):
            check_choice(name, getattr(self, name), (False, True))
        listed = isinstance(self.learners, Sequence) and not isinstance(self.learners, str)
        if not listed or not self.learners or len(set(self.learners)) < len(self.learners):
            raise ValueError(f"learners is {self.learners!r}; allowed is a list of different names, one at least")
        for learner in self.learners:
            check_choice("learners", learner, LEARNERS)
        check_number("n_folds", self.n_folds, low=2, whole=True)
        check_number("inner_folds", self.inner_folds, low=2, whole=True)
        check_choice("blend", self.blend, ("inverse_rmse", "uniform"))
        check_number("seed", self.seed, low=0, high=LARGEST_SEED, whole=True)
        if not (self.splitter is None or hasattr(self.splitter, "split") or isinstance(self.splitter, Sequence)):
            raise ValueError(
                f"splitter is {self.splitter!r}; allowed are an object with split(X, y, groups) and a list of pairs of "
                "row numbers (train, test)"
            )

    def fit(
        self, P: Any, y: Any, groups: Any = None, names: Sequence[str] | None = None, validation_risk: Any = None
    ) -> "RegularizedStacking":
        """Fit the stack to out-of-fold predictions.

        Args:
            P: Predictions of K models for rows that they were not fitted to, of shape (N, K), or (N, K, outputs). With
                the former and several outputs, all of them stack the same columns. Rows that are all NaN were predicted
                by no model (as the first ones of a time series); they are left out, and are NaN in ``oof_``.
            y: Targets, of shape (N,) or (N, outputs).
            groups: Group of every row; rows of one group are held out together, in outer and inner folds.
            names: Names of the columns. ``None``: those of a data frame, or model_0, model_1, ...
            validation_risk: Root mean squared error of every model on data of its own, of shape (K,) or (K, outputs);
                a model whose error in ``P`` is less than half of it is warned about.

        Returns:
            The estimator itself.

        Raises:
            ValueError: If there are fewer than two columns, fewer rows than folds, NaN or inf among the predictions,
                predictions that are the targets, or thresholds that leave no column.
        """
        self._check()
        data = stacking_inputs(P, y, groups, names)
        splits = outer_splits(self, data)
        check_leaks(data, validation_risk)
        every = torch.arange(len(data.target))
        train = [*(split.train for split in splits), every]
        folds = inner_folds(train, len(every), self.inner_folds, data.groups).to(data.target.device)
        rules = StackRules(
            self.tau_corr,
            self.tau_mse,
            self.tau_mse_mode,
            self.tau_var,
            self.statistics,
            self.interactions,
            self.blend,
            self.nested,
        )
        fitted = [
            fit_stack(data.predictions[:, :, output], data.target[:, output], splits, folds, self.learners, rules)
            for output in range(data.target.shape[1])
        ]
        for stack in fitted:
            for learner, fit in stack.fits.items():
                warn_unconverged(learner, fit)
        self._keep(P, data, fitted)
        return self

    def _keep(self, given: Any, data: StackingInputs, fitted: Sequence[FittedStack]) -> None:
        """Set what ``fit`` has found."""
        settings = {name: value for name, value in self.get_params().items() if name != "splitter"}
        settings["learners"] = list(self.learners)
        settings["splitter"] = None if self.splitter is None else type(self.splitter).__name__
        settings["grids"] = {name: list(v) if isinstance(v, tuple) else v for name, v in Grids()._asdict().items()}
        outputs = [stack_output(stack) for stack in fitted]
        self.state_ = StackState(
            data.names, outputs, bool(self.statistics), bool(self.interactions), data.flat, settings
        )
        self.n_features_in_ = len(data.names)
        if column_names(given, None) is not None:
            self.feature_names_in_ = np.asarray(data.names, dtype=object)
        self.oof_ = _as_given([stack.oof @ stack.blend for stack in fitted], data, given)
        self.learner_oof_ = {
            name: _as_given([stack.oof[:, index] for stack in fitted], data, given)
            for index, name in enumerate(self.learners)
        }
        reports = [stack_report(stack, data, output) for output, stack in enumerate(fitted)]
        self.report_: Any = reports[0] if data.flat else reports

    def predict(self, P: Any, names: Sequence[str] | None = None) -> Any:
        """Stack predictions of the models.

        Args:
            P: Predictions, with the columns of ``fit`` in the same order.
            names: Names of the columns. ``None``: those of a data frame; tensors and arrays have none to check.

        Returns:
            Predictions of shape (N,), or (N, outputs).

        Raises:
            ValueError: If columns are missing, odd or in another order, or hold NaN or inf where they are needed.
        """
        self._check_fitted()
        table = as_table("P", P, (2, 3))
        columns = column_names(P, names)
        if columns is not None:
            self.state_.check_names(columns)
        retained = self.state_.retained  # the others may be missing where only retained models are run
        if max(retained) < table.shape[1]:
            check_finite(table[:, retained], [self.state_.names[column] for column in retained], "P")
        return like(self.state_.predict(table), P)

    def score(self, P: Any, y: Any) -> float:
        """Return the share of the target's variance that the predictions explain (R²), averaged over outputs.

        Args:
            P: Predictions of the models.
            y: Targets.
        """
        return r_squared(as_table("y", self.predict(P), (1, 2)), as_table("y", y, (1, 2)))

    def save(self, path: str | Path) -> None:
        """Write ``state_`` to a safetensors file, which ``StackState.load`` reads.

        Args:
            path: File, which is replaced whole.

        Raises:
            ValueError: If it is not fitted.
            MissingDependencyError: If the package safetensors is not installed.
        """
        self._check_fitted()
        self.state_.save(path)


def _as_given(columns: Sequence[Tensor], data: StackingInputs, given: Any) -> Any:
    """Return a column per output with the rows, the dimensions and the kind of numbers that were given."""
    table = columns[0].new_full((len(data.kept), len(columns)), torch.nan)
    table[data.kept] = torch.stack(list(columns), 1)
    return like(table[:, 0] if data.flat else table, given)
