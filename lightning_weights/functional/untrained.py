"""Telling weights that were drawn at random from weights that were trained."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

SMALLEST = 16  # rows and columns; fewer say too little about a spread
SPREAD = 1.5  # trained layers have two and more, fresh ones about one


@torch.no_grad()
def look_untrained(weights: Iterable[Tensor]) -> bool:
    """Tell whether matrices look as if all their entries had been drawn from one distribution.

    Then the norms of rows and of columns differ by chance only. Training makes some inputs and outputs matter more than
    others, within a few dozen steps. Matrices with less than 16 rows or columns don't count.

    Args:
        weights: Matrices; looking ends with the first one that was trained.

    Returns:
        Whether none of them was trained; ``False`` if all are too small to tell.

    Examples:
        >>> fresh = torch.nn.Linear(64, 64).weight
        >>> look_untrained([fresh]), look_untrained([fresh * torch.linspace(0.5, 2.0, 64)])
        (True, False)
    """
    judged = False
    for weight in weights:
        if min(weight.shape) < SMALLEST:
            continue
        judged = True
        values = weight.detach().float()
        centred = values - values.mean()
        kurtosis = float(centred.pow(4).mean() / centred.square().mean().square().clamp(min=1e-30))
        for dim in (0, 1):
            norms = values.norm(dim=dim)
            by_chance = (max(kurtosis - 1.0, 0.0) / values.shape[dim]) ** 0.5 / 2
            if float(norms.std() / norms.mean().clamp(min=1e-30)) > SPREAD * by_chance:
                return False
    return judged
