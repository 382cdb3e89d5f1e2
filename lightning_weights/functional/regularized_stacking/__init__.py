"""Stacking of many near-identical predictors, from their out-of-fold predictions."""

from lightning_weights.functional.regularized_stacking.active_set import active_set_paths
from lightning_weights.functional.regularized_stacking.blend import inverse_rmse_weights
from lightning_weights.functional.regularized_stacking.elastic_net import (
    L1_PENALTIES,
    L1_RATIOS,
    elastic_net_paths,
    fit_elastic_nets,
)
from lightning_weights.functional.regularized_stacking.fold_grams import (
    CrossValidation,
    Problem,
    fold_grams,
    held_out_mse,
)
from lightning_weights.functional.regularized_stacking.folds import contiguous_folds, fold_ids, inner_folds
from lightning_weights.functional.regularized_stacking.linear_fit import LinearFit
from lightning_weights.functional.regularized_stacking.meta_features import meta_feature_names, meta_features
from lightning_weights.functional.regularized_stacking.peers import greedy_selection, nnls_stack
from lightning_weights.functional.regularized_stacking.redundancy import (
    Removal,
    Selection,
    condition_number,
    select_columns,
)
from lightning_weights.functional.regularized_stacking.ridge import RIDGE_PENALTIES, fit_ridge, ridge_path
from lightning_weights.functional.regularized_stacking.stack import (
    LEARNERS,
    FittedStack,
    Grids,
    Split,
    StackRules,
    fit_linear_models,
    fit_stack,
)

__all__ = [
    "L1_PENALTIES",
    "L1_RATIOS",
    "LEARNERS",
    "RIDGE_PENALTIES",
    "CrossValidation",
    "FittedStack",
    "Grids",
    "LinearFit",
    "Problem",
    "Removal",
    "Selection",
    "Split",
    "StackRules",
    "active_set_paths",
    "condition_number",
    "contiguous_folds",
    "elastic_net_paths",
    "fit_elastic_nets",
    "fit_linear_models",
    "fit_ridge",
    "fit_stack",
    "fold_grams",
    "fold_ids",
    "greedy_selection",
    "held_out_mse",
    "inner_folds",
    "inverse_rmse_weights",
    "meta_feature_names",
    "meta_features",
    "nnls_stack",
    "ridge_path",
    "select_columns",
]
