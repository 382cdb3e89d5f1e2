"""Data for tests of the linear models: a rank-deficient design, as stacking makes them."""

import numpy as np
import torch

from lightning_weights.functional.regularized_stacking import meta_features


def design(seed=0, rows=90, models=4, noise=1.0):
    """Return predictions with their statistics, and the target, in fp64."""
    random = np.random.RandomState(seed)
    target = 3 * random.randn(rows) + 20
    predictions = target[:, None] + random.randn(rows, models) + noise * random.randn(rows, 1)
    return meta_features(torch.from_numpy(predictions)), torch.from_numpy(target)


def three_folds(rows):
    """Return one training set of all rows with three inner folds of neighbouring rows."""
    return torch.from_numpy(np.repeat(np.arange(3), [len(part) for part in np.array_split(np.arange(rows), 3)]))[
        :, None
    ]
