"""How the weights of objectives follow their gradients, and how a growing front is rewarded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_weights.errors import check_number

SUM_TOLERANCE = 1e-3  # 0.334 + 0.333 + 0.333 is meant to be 1


def checked_weights(name: str, weights: Sequence[float] | None, count: int) -> list[float]:
    """Check weights that a user gave, and return them with a sum of exactly 1.

    Args:
        name: Argument name, for the message.
        weights: Positive numbers with a sum of 1, within a thousandth; None: all alike.
        count: Number K of objectives.

    Returns:
        A plain list.

    Raises:
        ValueError: If there are more or fewer of them, one is zero, negative or not finite, or their sum is not 1.

    Examples:
        >>> checked_weights("initial", [0.5, 0.25], 2)
        Traceback (most recent call last):
        ValueError: initial is [0.5, 0.25], with a sum of 0.75; allowed are weights with a sum of 1
    """
    if weights is None:
        return [1.0 / count] * count
    if isinstance(weights, str) or not isinstance(weights, Sequence) or len(weights) != count:
        raise ValueError(f"{name} is {weights!r}; allowed is a list of {count} weights, one per objective")
    for place, weight in enumerate(weights):
        if weight == 0:
            raise ValueError(
                f"{name}[{place}] is 0, and an update that multiplies would leave it 0 for ever; allowed are positive "
                f"weights. Leave the objective out, or give it a small weight"
            )
        check_number(f"{name}[{place}]", weight, low=0.0)
    together = math.fsum(weights)
    if abs(together - 1.0) > SUM_TOLERANCE:
        raise ValueError(f"{name} is {list(weights)}, with a sum of {together:g}; allowed are weights with a sum of 1")
    return [float(weight) / together for weight in weights]


def influence(gram: Tensor) -> Tensor:
    r"""Return how well a step along each objective's gradient serves all objectives.

    $$I_k = \sum_j \langle g_k, g_j \rangle, \qquad \sum_k I_k = \Bigl\| \sum_k g_k \Bigr\|^2$$

    Args:
        gram: Inner products of the K gradients, (K, K), with those of each with itself.

    Returns:
        I, (K,).

    Raises:
        ValueError: If it is no square matrix.

    Examples:
        >>> influence(torch.tensor([[1.0, -0.5], [-0.5, 0.25]]))
        tensor([ 0.5000, -0.2500])
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"gram has shape {tuple(gram.shape)}; allowed is (K, K)")
    return gram.sum(dim=1)


def update_log_weights(log_weights: Tensor, influence: Tensor, eta: float, min_weight: float = 0.0) -> Tensor:
    r"""Take one step of exponentiated-gradient ascent on the logarithms of the weights.

    $$w = \operatorname*{arg\,max}_{w \in \Delta} \langle w, \bar I \rangle - \tfrac1\eta\, \mathrm{KL}(w \| w_{old})
    = \mathrm{softmax}(\log w_{old} + \eta \bar I)$$

    Args:
        log_weights: Logarithms of K weights, up to a constant.
        influence: Ī, (K,).
        eta: η ≥ 0.
        min_weight: What no weight falls below, below 1/K; the others share what is left in their proportions.

    Returns:
        Logarithms of weights with a sum of 1.

    Raises:
        ValueError: If η is negative, or there is no room for so large a floor.

    Examples:
        >>> logs = torch.tensor([0.5, 0.5]).log()
        >>> update_log_weights(logs, torch.tensor([1.0, -1.0]), eta=5.0, min_weight=0.25).exp()
        tensor([0.7500, 0.2500])
    """
    check_number("eta", eta, low=0.0)
    check_number("min_weight", min_weight, low=0.0, high=1.0 / len(log_weights) if len(log_weights) > 1 else 1.0)
    logs = torch.log_softmax(log_weights + eta * influence.to(log_weights), dim=0)
    if min_weight == 0.0:
        return logs
    low = torch.zeros_like(logs, dtype=torch.bool)
    while bool((fallen := ~low & (logs < math.log(min_weight))).any()):
        low |= fallen
        rest = torch.log_softmax(logs.masked_fill(low, -torch.inf), dim=0)
        logs = torch.where(low, math.log(min_weight), rest + math.log1p(-min_weight * int(low.sum())))
    return logs


def update_reward_weights(weights: Tensor, influence: Tensor, eta: float, min_weight: float = 0.0) -> Tensor:
    """Take one step of exponentiated-gradient ascent on weights, see [`update_log_weights`][].

    Args:
        weights: K weights, positive.
        influence: Ī, (K,).
        eta: η ≥ 0.
        min_weight: What no weight falls below.

    Returns:
        Weights with a sum of 1.

    Examples:
        >>> update_reward_weights(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 1.0]), eta=0.1)
        tensor([0.5000, 0.5000])
    """
    return update_log_weights(weights.log(), influence, eta, min_weight).exp()


def meta_reward(gain: float, low: float = 0.5, spread: float = 1.5) -> float:
    r"""Return what the growth of a Pareto front is worth.

    $$\mu = l + s \tanh(\max(\Delta HV, 0)) \in [l, l + s)$$

    Args:
        gain: ΔHV, by how much the dominated volume has grown.
        low: l, for no growth at all.
        spread: s.

    Examples:
        >>> meta_reward(0.0), round(meta_reward(1.0), 4)
        (0.5, 1.6424)
    """
    return low + spread * math.tanh(max(gain, 0.0))
