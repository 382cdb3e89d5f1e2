"""GLOW: weights of samples from how much their losses have fallen since they were last seen, and the losses."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_weights.errors import check_choice, check_number
from lightning_weights.kernels.weighted_cross_entropy import linear_cross_entropy, weighted_cross_entropy

__all__ = [
    "FALLBACKS",
    "Fallback",
    "GainWeights",
    "check_glow",
    "gain_weights",
    "label_checksums",
    "latest",
    "linear_losses",
    "next_token_losses",
    "shifted",
    "weigh",
]

Fallback = Literal["neutral", "batch_mean"]
FALLBACKS = ("neutral", "batch_mean")


class GainWeights(NamedTuple):
    """Weights of a batch and what they come from.

    Attributes:
        weights: One weight per sample, detached.
        gains: How much each loss has fallen, detached; 0 for samples that weren't seen before.
        seen: Which samples were seen before.

    Examples:
        >>> weigh(torch.tensor([1.0]), torch.tensor([torch.nan])).seen
        tensor([False])
    """

    weights: Tensor
    gains: Tensor
    seen: Tensor


def check_glow(alpha: float, beta: float, min_weight: float, max_weight: float, fallback: str) -> None:
    """Check the numbers of the rule.

    Args:
        alpha: α > 0.
        beta: β ≥ 0.
        min_weight: Smallest weight, from 0.
        max_weight: Largest weight, not below the smallest.
        fallback: ``neutral`` or ``batch_mean``.

    Raises:
        ValueError: If one is out of range.

    Examples:
        >>> check_glow(2.0, -10.0, 0.5, 5.0, "neutral")
        Traceback (most recent call last):
        ValueError: beta is -10.0; allowed is a finite number in [0.0, inf)
    """
    check_number("alpha", alpha, low=0.0, low_allowed=False)
    check_number("beta", beta, low=0.0)  # below, samples that are mastered would be boosted
    check_number("min_weight", min_weight, low=0.0)
    check_number("max_weight", max_weight, low=0.0)
    if min_weight > max_weight:
        raise ValueError(f"min_weight is {min_weight} and max_weight {max_weight}; allowed is min_weight <= max_weight")
    check_choice("fallback", fallback, FALLBACKS)


def gain_weights(
    gains: Tensor, *, alpha: float = 2.0, beta: float = 10.0, min_weight: float = 0.5, max_weight: float = 5.0
) -> Tensor:
    r"""Return the weight of a sample from its gain: the more its loss has fallen, the smaller.

    $$w = \operatorname{clip}\bigl(\alpha\,(1 - \sigma(\beta \Delta)),\ w_\text{min},\ w_\text{max}\bigr)$$

    Before it is clipped, w lies in (0, α), is α/2 without a gain, and w(Δ) + w(−Δ) = α.

    Args:
        gains: Gains Δ of any shape: loss at the last visit minus loss now.
        alpha: α.
        beta: β.
        min_weight: Smallest weight.
        max_weight: Largest weight.

    Returns:
        Weights of the gains' shape.

    Source: Tian et al. 2026, arXiv:2601.04992.

    Examples:
        >>> gain_weights(torch.tensor([0.0, 0.2, -0.2]))
        tensor([1.0000, 0.5000, 1.7616])
    """
    return (alpha * torch.sigmoid(-beta * gains)).clamp(min_weight, max_weight)


def weigh(
    losses: Tensor,
    previous: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 10.0,
    min_weight: float = 0.5,
    max_weight: float = 5.0,
    fallback: Fallback = "neutral",
    normalize: bool = False,
) -> GainWeights:
    """Weigh the samples of a batch.

    Args:
        losses: Losses now, (B,).
        previous: Losses at the last visit, (B,); NaN for samples that weren't seen before.
        alpha: α.
        beta: β.
        min_weight: Smallest weight.
        max_weight: Largest weight.
        fallback: Loss at the last visit of a sample that wasn't seen before: that of now, so that its gain is 0
            (``neutral``), or the mean of the batch (``batch_mean``, as the released code has it).
        normalize: Whether weights are divided by their mean over the batch; 1 where all of them vanish.

    Returns:
        Weights and gains in fp32 or wider, without gradients.

    Examples:
        >>> weigh(torch.tensor([1.0, 3.0]), torch.tensor([1.0, torch.nan]), fallback="batch_mean").weights
        tensor([1.0000, 1.9999])
    """
    now = losses.detach().to(torch.promote_types(losses.dtype, previous.dtype))
    seen = ~previous.isnan()
    gains = torch.where(seen, previous, now if fallback == "neutral" else now.mean()) - now
    weights = gain_weights(gains, alpha=alpha, beta=beta, min_weight=min_weight, max_weight=max_weight)
    if normalize:
        mean = weights.mean()
        weights = torch.where(mean > 0, weights / mean, 1.0)
    return GainWeights(weights, torch.where(seen, gains, 0.0), seen)


def latest(ids: Tensor, losses: Tensor, previous: Tensor) -> Tensor:
    """Return what a table is to hold for the samples of a batch: the last finite loss of each, else what it held.

    Samples that occur several times get the same value in every place, so that the order of writing doesn't matter.

    Args:
        ids: Samples, (B,).
        losses: Their losses, (B,).
        previous: What the table holds for them, (B,).

    Returns:
        Values to write, (B,), in the dtype of ``previous``.

    Examples:
        >>> ids, losses = torch.tensor([7, 3, 7]), torch.tensor([1.0, torch.inf, 2.0])
        >>> latest(ids, losses, torch.tensor([9.0, 8.0, 9.0]))
        tensor([2., 8., 2.])
    """
    if ids.shape[0] == 0:  # no maximum
        return previous
    losses = losses.detach().to(previous.dtype)
    places = torch.arange(ids.shape[0], device=ids.device)
    same = (ids[:, None] == ids[None, :]) & losses.isfinite()[None, :]
    last = torch.where(same, places, -1).amax(dim=1)
    return torch.where(last >= 0, losses[last.clamp(min=0)], previous)


def shifted(labels: Tensor, ignore_index: int = -100, segments: Tensor | None = None) -> Tensor:
    """Move labels one place to the left, so that each lies where a language model predicts it.

    Moving labels instead of cutting the last logits off spares a copy of all logits.

    Args:
        labels: Labels as transformers has them, (B, T).
        ignore_index: Label of what is not predicted, which comes last.
        segments: Which sample each token belongs to, (B, T), if several are packed into a sequence: the first token of
            a sample is not predicted by the last one of another.

    Returns:
        Labels of the same shape.

    Examples:
        >>> shifted(torch.tensor([[1, 2, 3]]))
        tensor([[   2,    3, -100]])
    """
    if segments is not None:
        before = torch.nn.functional.pad(segments[:, :-1], (1, 0), value=-1)
        labels = torch.where(segments == before, labels, ignore_index)
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=ignore_index)


def next_token_losses(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    segments: Tensor | None = None,
    num_samples: int | None = None,
) -> Tensor:
    """Return the loss of every sample of a language model: the mean over its predicted tokens.

    Args:
        logits: Logits of shape (B, T, V); those at t predict the label at t + 1.
        labels: Labels of shape (B, T), unshifted, ``ignore_index`` where nothing is to be predicted.
        ignore_index: Label of prompts and padding.
        segments: Which sample each token belongs to, (B, T), if several are packed into a sequence; -1 in padding.
        num_samples: How many samples there are, if ``segments`` is given.

    Returns:
        (B,) losses, or (``num_samples``,), in fp32 or wider; 0 for a sample without predicted tokens.

    Examples:
        >>> next_token_losses(torch.zeros(1, 3, 4), torch.tensor([[-100, 2, 3]]))
        tensor([1.3863])
    """
    moved = shifted(labels, ignore_index, segments)
    return weighted_cross_entropy(logits, moved, _of_next(segments), num_samples, ignore_index=ignore_index)


def linear_losses(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    segments: Tensor | None = None,
    num_samples: int | None = None,
) -> Tensor:
    """Return the same as `next_token_losses` from what the last layer is given, without logits of the whole batch.

    Args:
        hidden: Hidden states of shape (B, T, H).
        weight: Matrix of the last layer, (V, H).
        labels: As for `next_token_losses`.
        bias: Bias of the last layer, (V,).
        ignore_index: Label of prompts and padding.
        segments: As for `next_token_losses`.
        num_samples: As for `next_token_losses`.

    Returns:
        Losses, as from `next_token_losses`.

    Examples:
        >>> linear_losses(torch.ones(1, 3, 8), torch.zeros(4, 8), torch.tensor([[-100, 2, 3]]))
        tensor([1.3863])
    """
    moved, samples = shifted(labels, ignore_index, segments), _of_next(segments)
    return linear_cross_entropy(hidden, weight, moved, bias, samples, num_samples, ignore_index=ignore_index)


def _of_next(segments: Tensor | None) -> Tensor | None:
    """Return the sample of each shifted label; the last one of a row doesn't count."""
    return None if segments is None else torch.nn.functional.pad(segments[:, 1:], (0, 1), value=-1)


def label_checksums(labels: Tensor, ignore_index: int = -100) -> Tensor:
    """Return a number per sample that depends on its labels and their order, and not on the padding around them.

    Args:
        labels: Labels of shape (B, ...), int64.
        ignore_index: Label that padding has.

    Returns:
        (B,) numbers, int64. Samples with other labels very probably have others.

    Examples:
        >>> a, b, c = label_checksums(torch.tensor([[-100, 5, 6], [5, 6, -100], [6, 5, -100]])).tolist()
        >>> a == b, a == c
        (True, False)
    """
    flat = labels.reshape(len(labels), -1)
    counts = flat != ignore_index
    place = counts.cumsum(dim=1)
    # products and sums wrap around, which is what a checksum wants
    return torch.where(counts, (flat + 1) * (place * 0x9E3779B97F4A7C1 + 0x7F4A7C15), 0).sum(dim=1)
