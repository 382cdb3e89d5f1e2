"""Pruning by learned scores: where scores start, which weights they keep, and how they learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_weights.errors import ShardedParameterError, check_number

SAMPLING = 128  # every so many values, one goes into a sample
SMALLEST_SAMPLE = 1024


def kept_count(numel: int, keep: float) -> int:
    """Return how many of ``numel`` weights are kept: n - int((1 - k)·n), at least 1 for n > 0.

    Args:
        numel: Number of weights n.
        keep: Fraction k to keep, in (0, 1].

    Raises:
        ValueError: If ``keep`` is out of range, or so small that nothing is kept.

    Examples:
        >>> kept_count(10, 0.25), kept_count(10, 1.0)
        (3, 10)
    """
    check_number("keep", keep, low=0.0, high=math.nextafter(1.0, 2.0), low_allowed=False)
    kept = numel - int((1.0 - keep) * numel)
    if numel and kept == 0:
        raise ValueError(f"keep is {keep}, which keeps none of {numel} weights; allowed is what keeps at least one")
    return kept


def largest_mask(scores: Tensor, kept: int) -> Tensor:
    """Mark exactly the ``kept`` largest scores in magnitude; of equal ones, those with the lower index.

    Args:
        scores: Scores S of any shape.
        kept: How many to mark, from 0 to ``scores.numel()``.

    Returns:
        Boolean mask of the shape of ``scores``.

    Raises:
        ValueError: If ``kept`` is out of range or scores are NaN.
        ShardedParameterError: If the scores are sharded: their order needs the whole tensor.

    Examples:
        >>> largest_mask(torch.tensor([1.0, -3.0, 1.0, 0.5]), 2).tolist()
        [True, True, False, False]
    """
    check_number("kept", kept, low=0, high=scores.numel() + 1, whole=True)
    if hasattr(scores, "placements"):
        raise ShardedParameterError(
            "the largest scores of a tensor cannot be found in its shards; train without FSDP2, or gather the scores"
        )
    if kept == scores.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    magnitude = scores.detach().abs().flatten()
    if kept == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if magnitude.amax().isnan():
        raise ValueError("scores holds NaN; allowed are numbers; look for a learning rate that is too high")
    threshold = _kth_largest(magnitude, kept)
    mask = magnitude > threshold
    ties = (magnitude == threshold).nonzero().flatten()
    missing = kept - int(mask.count_nonzero())
    mask[ties[:missing]] = True
    return mask.view(scores.shape)


def _kth_largest(values: Tensor, k: int) -> Tensor:
    """Return the k-th largest of flat values, looked for between two guesses from a sample, or, if not there, anywhere.

    Selecting among a few percent of the values takes a third of the time of selecting among all.
    """
    sample = values[::SAMPLING]
    if len(sample) >= SMALLEST_SAMPLE:
        rank, margin = k / SAMPLING, 2.0 * math.sqrt(len(sample))  # at least four standard deviations
        ranks = (max(1, int(rank - margin)), min(len(sample), math.ceil(rank + margin)))
        high, low = (sample.kthvalue(len(sample) - rank + 1).values for rank in ranks)
        between = values[(values >= low) & (values <= high)]
        position = k - int((values > high).count_nonzero())
        if 1 <= position <= len(between):
            return between.kthvalue(len(between) - position + 1).values
    return values.kthvalue(len(values) - k + 1).values


def top_k_mask(scores: Tensor, keep: float) -> Tensor:
    r"""Mark the fraction of scores that is largest in magnitude, exactly n - int((1 - k)·n) of them.

    Masks are nested: what a small ``keep`` marks, a larger one marks too. Of equal scores, those with the lower index
    go first.

    Args:
        scores: Scores S of any shape.
        keep: Fraction k to keep, in (0, 1].

    Returns:
        Boolean mask of the shape of ``scores``.

    Raises:
        ValueError: If ``keep`` is out of range or keeps nothing, or scores are NaN.
        ShardedParameterError: If the scores are sharded.

    Source: Sehwag et al. 2020 (HYDRA), arXiv:2002.10509. The published code leaves equal scores to an unstable sort.

    Examples:
        >>> top_k_mask(torch.tensor([[0.1, -0.4], [0.3, 0.2]]), keep=0.5).tolist()
        [[False, True], [True, False]]
    """
    return largest_mask(scores, kept_count(scores.numel(), keep))


def top_k_masks(scores: Sequence[Tensor], keep: float) -> list[Tensor]:
    """Mark the largest scores of several tensors together, as if they were one, first tensor first.

    Args:
        scores: Scores of all layers.
        keep: Fraction k to keep of their union, in (0, 1].

    Returns:
        One boolean mask per tensor.

    Raises:
        ValueError: If ``keep`` is out of range or keeps nothing, or scores are NaN.
        ShardedParameterError: If scores are sharded.

    Examples:
        >>> [mask.tolist() for mask in top_k_masks([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])], keep=0.5)]
        [[False, False], [True, True]]
    """
    if any(hasattr(score, "placements") for score in scores):
        raise ShardedParameterError("scores of several layers cannot be compared in shards; train without FSDP2")
    joint = top_k_mask(torch.cat([score.detach().flatten() for score in scores]), keep)
    parts = joint.split([score.numel() for score in scores])
    return [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]


def initial_scores(weight: Tensor) -> Tensor:
    r"""Return the scores from which pruning starts: weights, scaled to the size of a Kaiming-uniform initialisation.

    $$S = \sqrt{\frac{6}{\mathrm{fan_{in}}}}\; \frac{W}{\max|W|}$$

    Args:
        weight: Weights W of a layer, of shape (out, in, ...); the fan is that of one output.

    Returns:
        Scores of the shape of ``weight``, detached. Their mask is that of magnitude pruning.

    Raises:
        ValueError: If the weight has fewer than two dimensions, or no element other than zero.

    Source: Sehwag et al. 2020 (HYDRA), arXiv:2002.10509.

    Examples:
        >>> initial_scores(torch.tensor([[1.0, -2.0], [0.5, 0.0]]))
        tensor([[ 0.8660, -1.7321],
                [ 0.4330,  0.0000]])
    """
    if weight.dim() < 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; allowed are two dimensions or more, (out, in, ...)")
    weight = weight.detach()
    largest = weight.abs().amax()
    if not bool(largest > 0):
        raise ValueError(
            f"the weight of shape {tuple(weight.shape)} is all zero or NaN, so no score can be made from it; exclude "
            f"the layer from pruning or use random scores"
        )
    return weight * (math.sqrt(6.0 / weight[0].numel()) / largest)


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, weight, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight, scores, mask = ctx.saved_tensors
        for_weight, for_scores, _ = ctx.needs_input_grad
        return (
            torch.where(mask, upstream, 0.0) if for_weight else None,
            (scores.sign() * upstream * weight).to(scores.dtype) if for_scores else None,
            None,
        )


def straight_through_masked(weight: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    r"""Mask a weight so that the scores learn as if the mask were their magnitude.

    $$\tilde W = W \odot M, \qquad
    \frac{\partial L}{\partial S} = \operatorname{sign}(S) \odot \frac{\partial L}{\partial \tilde W} \odot W$$

    Args:
        weight: Weights W.
        scores: Scores S, of the shape of ``weight``.
        mask: Boolean mask M that the scores make.

    Returns:
        The masked weights.

    Source: Ramanujan et al. 2020, arXiv:1911.13299; Sehwag et al. 2020 (HYDRA), arXiv:2002.10509.

    Examples:
        >>> scores = torch.tensor([0.1, -0.9], requires_grad=True)
        >>> straight_through_masked(torch.tensor([2.0, 3.0]), scores, torch.tensor([False, True])).sum().backward()
        >>> scores.grad
        tensor([ 2., -3.])
    """
    masked: Tensor = _StraightThrough.apply(weight, scores, mask)  # type: ignore[no-untyped-call]
    return masked
