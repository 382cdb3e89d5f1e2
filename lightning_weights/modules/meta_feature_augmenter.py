"""Appends statistics over the models to their predictions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_weights.errors import check_choice
from lightning_weights.functional.regularized_stacking import meta_feature_names, meta_features
from lightning_weights.modules._estimator import Estimator, as_table, check_finite, column_names, like


class MetaFeatureAugmenter(Estimator):
    """Append mean, standard deviation, median, range, and two products of them: second part of regularized stacking.

    It is a scikit-learn transformer that has nothing to learn.

    Args:
        statistics: Whether to append mean, standard deviation, median and range of every row.
        interactions: Whether to append mean · standard deviation and range · standard deviation.

    Raises:
        ValueError: If an argument is no truth value.

    Source: Mohammad and Meherab 2026, arXiv:2602.12469.

    Examples:
        >>> MetaFeatureAugmenter(interactions=False).fit_transform([[1.0, 3.0]]).tolist()
        [[1.0, 3.0, 2.0, 1.0, 2.0, 2.0]]
    """

    estimator_type = "transformer"

    def __init__(self, statistics: bool = True, interactions: bool = True) -> None:
        self.statistics = statistics
        self.interactions = interactions
        check_choice("statistics", statistics, (False, True))
        check_choice("interactions", interactions, (False, True))

    def fit(self, P: Any, y: Any = None) -> "MetaFeatureAugmenter":
        """Remember the number of columns.

        Args:
            P: Predictions, of shape (N, K).
            y: Nothing that is needed; pipelines hand it over.
        """
        table, names = as_table("P", P), column_names(P, None)
        check_finite(table, names, "P")
        self.n_features_in_ = table.shape[1]
        if names is not None:
            self.feature_names_in_ = np.asarray(names, dtype=object)
        return self

    def transform(self, P: Any) -> Any:
        """Return predictions and statistics.

        Args:
            P: Predictions, of shape (N, K).
        """
        table = self._as_in_fit("P", P)
        return like(meta_features(table, self.statistics, self.interactions), P)

    def fit_transform(self, P: Any, y: Any = None) -> Any:
        """Return predictions and statistics.

        Args:
            P: Predictions, of shape (N, K).
            y: Nothing that is needed; pipelines hand it over.
        """
        return self.fit(P).transform(P)

    def get_feature_names_out(self, input_features: Sequence[str] | None = None) -> Any:
        """Return the names of predictions and statistics.

        Args:
            input_features: Names of the columns. ``None``: those of the data frame in ``fit``, or x0, x1, ...
        """
        self._check_fitted()
        known = getattr(self, "feature_names_in_", [f"x{column}" for column in range(self.n_features_in_)])
        names = meta_feature_names(
            known if input_features is None else input_features, self.statistics, self.interactions
        )
        return np.asarray(names, dtype=object)
