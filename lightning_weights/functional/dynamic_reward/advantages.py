"""What a response is worth compared with others: group advantages, returns, and their normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_weights.errors import check_choice, check_number

Estimator = Literal["grpo", "grpo_nostd", "rloo", "reinforce", "reinforce++"]

ESTIMATORS = ("grpo", "grpo_nostd", "rloo", "reinforce", "reinforce++")
GROUPED = ("grpo", "grpo_nostd", "rloo")  # compare the responses to one prompt, of which there must be several
NORMALIZING = ("grpo", "reinforce++")  # divide by a standard deviation, so that a factor on all rewards has no effect
STD_EPSILON, VARIANCE_EPSILON = 1e-6, 1e-8


def check_rewards(rewards: Tensor, objectives: Sequence[str]) -> None:
    """Check that every reward is a finite number.

    Args:
        rewards: Rewards of shape (N, K).
        objectives: Names of the K columns.

    Raises:
        ValueError: If there is another number of columns, or a reward is not finite; the message says which.

    Examples:
        >>> check_rewards(torch.tensor([[1.0, float("nan")]]), ["accuracy", "brevity"])
        Traceback (most recent call last):
        ValueError: reward 'brevity' of response 0 is nan; allowed are finite numbers
    """
    if rewards.ndim != 2 or rewards.shape[1] != len(objectives):
        raise ValueError(
            f"rewards have shape {tuple(rewards.shape)}; allowed is (responses, {len(objectives)}), one column for "
            f"each of {', '.join(objectives)}"
        )
    finite = rewards.isfinite()
    if not bool(finite.all()):
        row, column = (int(place) for place in (~finite).nonzero()[0])
        value = rewards[row, column].item()
        raise ValueError(f"reward {objectives[column]!r} of response {row} is {value}; allowed are finite numbers")


def group_advantage(rewards: Tensor, group: Tensor, estimator: Estimator) -> Tensor:
    r"""Compare every response with the others to the same prompt.

    $$A_i^{grpo} = \frac{R_i - \bar R_g}{s_g + 10^{-6}}, \quad A_i^{nostd} = R_i - \bar R_g, \quad
    A_i^{rloo} = \frac{n}{n - 1} (R_i - \bar R_g), \quad A_i^{reinforce} = R_i$$

    Deviations are taken from the smallest reward of the group first, so that a group of equal rewards has an advantage
    of exactly zero.

    Args:
        rewards: Rewards, shape (N,), or (N, K) for K objectives side by side.
        group: Number of the prompt of each response, (N,), integers in any order.
        estimator: ``grpo`` (the standard deviation s is the unbiased one), ``grpo_nostd``, ``rloo`` or ``reinforce``.

    Returns:
        Advantages of the shape and type of the rewards.

    Raises:
        ValueError: If shapes do not fit, a group has one response only, or the estimator is none of them.

    Source: Shao et al. 2024, arXiv:2402.03300; Liu et al. 2025, arXiv:2503.20783; Ahmadian et al. 2024,
    arXiv:2402.14740.

    Examples:
        >>> rewards, group = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 0, 7, 7])
        >>> group_advantage(rewards, group, "rloo")
        tensor([ 1.0000, -0.5000, -0.5000,  0.0000,  0.0000])
    """
    check_choice("estimator", estimator, [name for name in ESTIMATORS if name != "reinforce++"])
    if group.shape != rewards.shape[:1] or rewards.ndim not in (1, 2):
        raise ValueError(
            f"rewards have shape {tuple(rewards.shape)} and group {tuple(group.shape)}; allowed are (N,) or (N, K), "
            f"and (N,)"
        )
    if estimator == "reinforce" or not len(rewards):
        return rewards.clone()
    _, member, counts = torch.unique(group, return_inverse=True, return_counts=True)
    if int(counts.min()) < 2:
        raise ValueError(
            f"a group has 1 response, and estimator {estimator!r} compares the responses to one prompt; allowed are "
            f"groups of 2 and more. Draw more responses per prompt, or use 'reinforce'"
        )
    columns = rewards if rewards.ndim == 2 else rewards[:, None]
    counts = counts[:, None].to(rewards.dtype)
    place = member[:, None].expand_as(columns)
    empty = columns.new_zeros(len(counts), columns.shape[1])
    lowest = empty.scatter_reduce(0, place, columns, "amin", include_self=False)
    above = columns - lowest[member]
    centred: Tensor = above - (empty.index_add(0, member, above) / counts)[member]
    if estimator == "rloo":
        centred = centred * (counts / (counts - 1))[member]
    elif estimator == "grpo":
        variance = empty.index_add(0, member, centred.square()) / (counts - 1)
        centred = centred / (variance.sqrt() + STD_EPSILON)[member]
    return centred.view_as(rewards)


def returns_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    r"""Turn one reward per response into the discounted return of each of its tokens.

    $$G_t = r_t + \gamma\, m_{t+1} G_{t+1}$$

    The reward sits on the last token of the response.

    Args:
        rewards: Rewards, (N,).
        mask: 1 for tokens of the response, 0 for others, (N, T).
        gamma: γ in [0, 1].

    Returns:
        Returns, (N, T).

    Examples:
        >>> returns_to_go(torch.tensor([8.0]), torch.tensor([[1.0, 1.0, 1.0, 0.0]]), gamma=0.5)
        tensor([[2., 4., 8., 0.]])
    """
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma is {gamma}; allowed is a number in [0, 1]")
    steps = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    last = (mask.to(steps.dtype) * steps).amax(dim=1, keepdim=True) - 1
    token_rewards = torch.where(steps - 1 == last, rewards[:, None], 0.0)
    found, running = [], torch.zeros_like(rewards)
    for t in range(mask.shape[1] - 1, -1, -1):
        running = token_rewards[:, t] + gamma * running
        found.append(running)
        running = running * mask[:, t]
    return torch.stack(found[::-1], dim=1) if found else token_rewards


def whiten(values: Tensor, mask: Tensor, total: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    r"""Give the valid entries a mean of 0 and an unbiased variance of 1.

    Args:
        values: Values, any shape.
        mask: 1 where they count, the same shape.
        total: Adds a tensor up over processes; None: there is one.

    Returns:
        $(x - \mu) / \sqrt{\sigma^2 + 10^{-8}}$ where the mask is 1, else 0.

    Raises:
        ValueError: If fewer than two entries are valid.

    Examples:
        >>> whiten(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([1.0, 1.0, 0.0]))
        tensor([-0.7071,  0.7071,  0.0000])
    """
    total = total or (lambda tensor: tensor)
    count, together = total(torch.stack([mask.sum(), (values * mask).sum()])).unbind()
    if float(count) < 2:
        raise ValueError(f"{int(count)} tokens are valid in this batch; a variance needs 2. Is the mask right?")
    centred = values - together / count
    variance = total((centred.square() * mask).sum()) / (count - 1)
    return centred * (variance + VARIANCE_EPSILON).rsqrt() * mask


def token_advantages(
    rewards: Tensor,
    group: Tensor,
    mask: Tensor,
    estimator: Estimator,
    *,
    gamma: float = 1.0,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return the advantage of every token of every response.

    Args:
        rewards: One reward per response, (N,).
        group: Number of the prompt of each response, (N,).
        mask: 1 for tokens of the response, (N, T).
        estimator: One of the five. ``reinforce`` takes returns, ``reinforce++`` whitens them over all tokens, and the
            others give all tokens of a response what [`group_advantage`][] says.
        gamma: γ of the returns.
        total: Adds a tensor up over processes; None: there is one.

    Returns:
        Advantages, (N, T), 0 where the mask is.

    Raises:
        ValueError: If no token is valid, or as in [`group_advantage`][].

    Examples:
        >>> token_advantages(torch.tensor([1.0, 0.0]), torch.zeros(2), torch.tensor([[1.0, 1.0], [1.0, 0.0]]), "rloo")
        tensor([[ 1.,  1.],
                [-1., -0.]])
    """
    check_choice("estimator", estimator, ESTIMATORS)
    if not bool(mask.any()):
        raise ValueError("the mask has no valid token in this batch; every response needs one at least")
    if estimator in GROUPED:
        return group_advantage(rewards, group, estimator)[:, None] * mask
    returns = returns_to_go(rewards, mask, gamma) * mask
    return whiten(returns, mask, total) if estimator == "reinforce++" else returns


def normalize_then_sum(
    rewards: Tensor, group: Tensor, weights: Tensor, *, total: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Normalise every objective within its group, weight and add them, and normalise the sums over the batch (GDPO).

    Args:
        rewards: Rewards, (N, K).
        group: Number of the prompt of each response, (N,).
        weights: Weights of the objectives, (K,).
        total: Adds a tensor up over processes; None: there is one.

    Returns:
        Advantages, (N,).

    Source: Liu et al. 2026, arXiv:2601.05242.

    Examples:
        >>> rewards, group = torch.tensor([[1.0, 0.0], [0.0, 900.0]]), torch.zeros(2)
        >>> normalize_then_sum(rewards, group, torch.tensor([0.75, 0.25]))
        tensor([ 0.7071, -0.7071])
    """
    check_number("number of objectives", len(weights), low=1, whole=True)
    summed = group_advantage(rewards, group, "grpo") @ weights.to(rewards)
    return whiten(summed, torch.ones_like(summed), total)
