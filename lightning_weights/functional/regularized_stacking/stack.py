"""The whole stack for one target: selection, meta-features, cross-validated linear models and their blend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_weights.functional.regularized_stacking.blend import inverse_rmse_weights
from lightning_weights.functional.regularized_stacking.elastic_net import (
    L1_PENALTIES,
    L1_RATIOS,
    MAX_SWEEPS,
    TOLERANCE,
    fit_elastic_nets,
)
from lightning_weights.functional.regularized_stacking.fold_grams import CrossValidation, fold_grams
from lightning_weights.functional.regularized_stacking.linear_fit import LinearFit
from lightning_weights.functional.regularized_stacking.meta_features import meta_features
from lightning_weights.functional.regularized_stacking.redundancy import Selection, select_columns
from lightning_weights.functional.regularized_stacking.ridge import RIDGE_PENALTIES, fit_ridge

LEARNERS = ("ridge", "lasso", "elasticnet")


class Grids(NamedTuple):
    """Penalties to choose from, and when coordinate descent ends.

    Attributes:
        ridge: λ of ridge regression.
        l1: α of lasso and elastic net.
        ratios: ρ of the elastic net.
        tolerance: Largest relative change of a weight, and duality gap over the target's mean square, at the end.
        max_sweeps: Most sweeps over the coordinates before active sets take over.

    Examples:
        >>> len(Grids().ridge), len(Grids().l1), len(Grids().ratios)
        (50, 30, 7)
    """

    ridge: Sequence[float] = RIDGE_PENALTIES
    l1: Sequence[float] = L1_PENALTIES
    ratios: Sequence[float] = L1_RATIOS
    tolerance: float = TOLERANCE
    max_sweeps: int = MAX_SWEEPS


class Split(NamedTuple):
    """One division of the rows.

    Attributes:
        train: Numbers of the rows to fit to, ascending.
        test: Numbers of the rows to predict.

    Examples:
        >>> Split(torch.tensor([0, 2]), torch.tensor([1])).test.tolist()
        [1]
    """

    train: Tensor
    test: Tensor


class StackRules(NamedTuple):
    """How columns are selected and the linear models blended.

    Attributes:
        tau_corr: Least correlation of near-copies.
        tau_mse: Largest mean squared difference of near-copies.
        tau_mse_mode: Whether thresholds are ``absolute`` or ``relative`` to the target's variance.
        tau_var: Least variance of a column.
        statistics: Whether statistics over the models become features.
        interactions: Whether products of statistics become features.
        blend: ``inverse_rmse`` or ``uniform``.
        nested: Whether columns are selected anew in every outer fold.

    Examples:
        >>> StackRules().tau_corr
        0.95
    """

    tau_corr: float = 0.95
    tau_mse: float = 0.01
    tau_mse_mode: Literal["absolute", "relative"] = "absolute"
    tau_var: float = 0.01
    statistics: bool = True
    interactions: bool = True
    blend: Literal["inverse_rmse", "uniform"] = "inverse_rmse"
    nested: bool = False

    def select(self, predictions: Tensor, target: Tensor) -> Selection:
        """Select columns."""
        return select_columns(predictions, target, self.tau_corr, self.tau_mse, self.tau_mse_mode, self.tau_var)

    def design(self, predictions: Tensor, columns: Tensor) -> Tensor:
        """Return the features that linear models are fitted to."""
        return meta_features(predictions[:, columns], self.statistics, self.interactions)


class FittedStack(NamedTuple):
    """A fitted stack, and how well it predicts rows that it wasn't fitted to.

    Attributes:
        selection: Selected columns.
        mean: Means of the features over all rows, of shape (p,).
        scale: Standard deviations of the features, of shape (p,).
        coefficients: Weights of the standardised features, a row per learner, of shape (M, p).
        intercepts: Constants of the learners, of shape (M,).
        blend: Weights of the learners, of shape (M,).
        fits: Choices of each learner: first the outer folds, last all rows.
        oof: Predictions of held-out rows, a column per learner, of shape (N, M); NaN for rows in no test set.
        rmse: Root mean squared error of each learner over the held-out rows, of shape (M,).
        fold_rmse: The same per outer fold, of shape (F, M).

    Examples:
        >>> FittedStack._fields[:3]
        ('selection', 'mean', 'scale')
    """

    selection: Selection
    mean: Tensor
    scale: Tensor
    coefficients: Tensor
    intercepts: Tensor
    blend: Tensor
    fits: dict[str, LinearFit]
    oof: Tensor
    rmse: Tensor
    fold_rmse: Tensor


def fit_linear_models(
    sets: CrossValidation,
    learners: Sequence[str],
    grids: Grids = Grids(),  # noqa: B008  # it can't be changed
) -> dict[str, LinearFit]:
    """Choose penalties and fit, for several learners.

    Args:
        sets: Training sets with their inner folds.
        learners: ``ridge``, ``lasso`` or ``elasticnet``.
        grids: Penalties to choose from.

    Returns:
        For each learner, one model per training set.

    Examples:
        >>> x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> sets = fold_grams(x, x[:, 0], torch.arange(60)[:, None] % 3)
        >>> list(fit_linear_models(sets, ["lasso", "ridge"], Grids(l1=[0.1, 1.0])))
        ['lasso', 'ridge']
    """
    fits: dict[str, LinearFit] = {}
    if "ridge" in learners:
        fits["ridge"] = fit_ridge(sets, grids.ridge)
    ratios = {name: (1.0,) if name == "lasso" else grids.ratios for name in learners if name != "ridge"}
    if ratios:
        found = fit_elastic_nets(sets, list(ratios.values()), grids.l1, grids.tolerance, grids.max_sweeps)
        fits.update(zip(ratios, found, strict=True))
    return {name: fits[name] for name in learners}


def fit_stack(
    predictions: Tensor,
    target: Tensor,
    splits: Sequence[Split],
    folds: Tensor,
    learners: Sequence[str] = LEARNERS,
    rules: StackRules = StackRules(),  # noqa: B008  # neither can be changed
    grids: Grids = Grids(),  # noqa: B008
) -> FittedStack:
    r"""Fit a regularized stack to out-of-fold predictions.

    Columns are selected, statistics appended, every learner is cross-validated with penalties chosen inside of each
    outer fold and then fitted to all rows, and the learners are weighted by the inverse of their errors.

    Args:
        predictions: Out-of-fold predictions of K models in fp64, of shape (N, K).
        target: Targets in fp64, of shape (N,).
        splits: Outer folds.
        folds: Inner fold of every row in the training set of every split and, last, in the set of all rows, of shape
            (N, F + 1), as [`inner_folds`][lightning_weights.functional.regularized_stacking.inner_folds] returns it.
        learners: ``ridge``, ``lasso`` or ``elasticnet``.
        rules: Thresholds and what else there is to choose.
        grids: Penalties to choose from.

    Returns:
        The fitted stack.

    Raises:
        ValueError: If no column is left, or a learner makes no error at all.

    Source: Mohammad and Meherab 2026, arXiv:2602.12469.

    Examples:
        >>> from lightning_weights.functional.regularized_stacking import fold_ids, inner_folds
        >>> y = torch.randn(90, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> noise = torch.randn(90, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        >>> ids, rows = fold_ids(90, n_folds=3, seed=0), torch.arange(90)
        >>> splits = [Split(rows[ids != f], rows[ids == f]) for f in range(3)]
        >>> inner = inner_folds([*(split.train for split in splits), rows], 90, n_folds=3)
        >>> fitted = fit_stack(y[:, None] + noise, y, splits, inner, ["ridge"])
        >>> fitted.coefficients.shape, bool(fitted.rmse < 0.7)
        (torch.Size([1, 9]), True)
    """
    selection = rules.select(predictions, target)
    design = rules.design(predictions, selection.columns)
    whole = fold_grams(design, target, folds[:, -1:] if rules.nested else folds)
    fits = fit_linear_models(whole, learners, grids)
    oof = predictions.new_full((len(target), len(learners)), torch.nan)
    fold_fits: dict[str, list[LinearFit]] = {name: [] for name in learners}
    for index, split in enumerate(splits):
        features, sets, own, at = design, whole, fits, index
        if rules.nested:
            columns = rules.select(predictions[split.train], target[split.train]).columns
            features, at = rules.design(predictions, columns), 0
            sets = fold_grams(features, target, folds[:, index : index + 1])
            own = fit_linear_models(sets, learners, grids)
            for name in learners:
                fold_fits[name].append(own[name])
        weights = torch.stack([own[name].coefficients[at] for name in learners], 1)
        oof[split.test] = (features[split.test] - sets.mean[at]) / sets.scale[at] @ weights + sets.target_mean[at]
    if rules.nested:
        fits = {name: _joined([*fold_fits[name], fit]) for name, fit in fits.items()}
    error = oof - target[:, None]
    rmse = error.square().nanmean(0).sqrt()
    blend = inverse_rmse_weights(rmse) if rules.blend == "inverse_rmse" else torch.full_like(rmse, 1 / len(rmse))
    return FittedStack(
        selection,
        mean=whole.mean[-1],
        scale=whole.scale[-1],
        coefficients=torch.stack([fits[name].coefficients[-1] for name in learners]),
        intercepts=whole.target_mean[-1].repeat(len(learners)),
        blend=blend,
        fits=fits,
        oof=oof,
        rmse=rmse,
        fold_rmse=torch.stack([error[split.test].square().mean(0).sqrt() for split in splits]),
    )


def _joined(fits: Sequence[LinearFit]) -> LinearFit:
    """Return fits to single sets as one; the coefficients, which may differ in number, are the last one's."""
    scores, gaps = torch.cat([fit.scores for fit in fits]), torch.cat([fit.gap for fit in fits])
    penalty, ratio = torch.cat([fit.penalty for fit in fits]), torch.cat([fit.l1_ratio for fit in fits])
    return LinearFit(fits[-1].coefficients, penalty, ratio, scores, gaps, fits[-1].tolerance)
