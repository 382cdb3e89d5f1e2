"""Masks of weights that are learned through scores."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_weights.errors import LightningWeightsWarning, check_choice, check_number
from lightning_weights.functional.pruning import (
    initial_scores,
    kept_count,
    largest_mask,
    straight_through_masked,
    top_k_masks,
)


class ScoreMask(nn.Module):
    r"""Keep those weights of a tensor whose scores are largest in magnitude, and set the others to zero.

    $$\tilde W = W \odot M, \qquad M = [\,|S| \text{ among the } n - \lfloor (1 - k) n \rfloor \text{ largest}\,]$$

    It is a parametrization for ``torch.nn.utils.parametrize``. While ``scores.requires_grad``, gradients reach the
    scores straight through the mask, else the mask is a constant.

    The mask is made again by `refresh` or [`refresh_masks`][lightning_weights.modules.refresh_masks], due whenever
    scores have changed, and by loading a ``state_dict``. This holds scores and the number of kept weights; the mask
    follows from them, equal scores being kept by ascending index.

    Args:
        weight: Weights that are going to be masked; scores start from them, with ``init="scaled"``.
        keep: Fraction k to keep, in (0, 1].
        init: ``scaled`` starts with the largest weights, ``random`` with Kaiming-uniform scores from PyTorch's global
            generator.

    Raises:
        ValueError: If an argument is out of range, nothing would be kept, or all weights are zero with ``scaled``.
        ShardedParameterError: If the weight is sharded.

    Source: Sehwag et al. 2020 (HYDRA), arXiv:2002.10509.

    Examples:
        >>> from torch.nn.utils import parametrize
        >>> layer = nn.Linear(8, 4)
        >>> layer = parametrize.register_parametrization(layer, "weight", ScoreMask(layer.weight, keep=0.25))
        >>> int(layer.weight.count_nonzero())
        8
    """

    kept: Tensor
    mask: Tensor

    def __init__(self, weight: Tensor, keep: float, init: Literal["scaled", "random"] = "scaled") -> None:
        check_choice("init", init, ("scaled", "random"))
        kept = kept_count(weight.numel(), keep)
        super().__init__()
        self.keep = keep
        scores = initial_scores(weight) if init == "scaled" else random_scores(weight)
        mask = largest_mask(scores, kept)
        self.scores = nn.Parameter(scores)
        self.register_buffer("kept", torch.tensor(kept))
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with zeros where the mask is false."""
        if self.scores.requires_grad:
            return straight_through_masked(weight, self.scores, self.mask)
        return torch.where(self.mask, weight, 0.0)

    @torch.no_grad()
    def refresh(self, kept: int | None = None) -> None:
        """Make the mask from the scores as they are now.

        Args:
            kept: How many weights to keep from now on. ``None``: as many as before.

        Raises:
            ValueError: If ``kept`` is out of range, or scores are NaN.
        """
        count = int(self.kept) if kept is None else kept
        self.mask.copy_(largest_mask(self.scores, count))
        self.kept.fill_(count)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self.refresh()


def refresh_masks(masks: Sequence[ScoreMask], scope: Literal["layer", "global"] = "layer") -> None:
    """Make the masks of several layers from their scores as they are now; due after every step of the scores.

    Args:
        masks: Masks of all layers, with one ``keep``.
        scope: ``layer`` keeps the same fraction of every layer, ``global`` the largest scores of all layers together.

    Raises:
        ValueError: If the scope is neither, scores are NaN, or with ``global`` the fractions differ.

    Warns:
        LightningWeightsWarning: If a layer is left without any weight, which only ``global`` can do.

    Examples:
        >>> masks = [ScoreMask(size * torch.eye(2), keep=0.5) for size in (1.0, 2.0)]
        >>> refresh_masks(masks, scope="global")
        >>> [int(mask.kept) for mask in masks]
        [2, 2]
    """
    check_choice("scope", scope, ("layer", "global"))
    if scope == "layer":
        for mask in masks:
            mask.refresh()
        return
    fractions = {mask.keep for mask in masks}
    if len(fractions) > 1:
        raise ValueError(f"keep is one of {sorted(fractions)} in different masks; allowed with 'global' is one for all")
    for i, joint in enumerate(top_k_masks([mask.scores for mask in masks], fractions.pop()) if masks else ()):
        kept = int(joint.sum())
        if kept == 0:
            warnings.warn(
                f"pruning with scope='global' leaves no weight in layer {i} of {len(masks)}, of shape "
                f"{tuple(joint.shape)}: the network is cut there. Exclude the layer, use scope='layer' or keep more.",
                LightningWeightsWarning,
                stacklevel=2,
            )
        masks[i].refresh(kept)


def random_scores(weight: Tensor) -> Tensor:
    """Return Kaiming-uniform scores for a weight, from PyTorch's global generator.

    Args:
        weight: Weight of a layer.

    Raises:
        ValueError: If it has no fan, having one dimension or none.
    """
    check_number("number of dimensions of the weight", weight.dim(), low=2, whole=True)
    scores = torch.empty_like(weight, requires_grad=False)
    return nn.init.kaiming_uniform_(scores, a=math.sqrt(5.0))
