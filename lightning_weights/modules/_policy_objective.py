"""Responses with what is known of them, and the loss that they give."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional.dynamic_reward import ESTIMATORS, GROUPED, normalize_then_sum, token_advantages
from lightning_weights.functional.rollout import Rollout
from lightning_weights.kernels.policy_loss import PolicyLoss, policy_loss

SUM_FIRST, NORMALIZE_FIRST = AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")
LINEAR = ("grpo_nostd", "rloo", "reinforce")  # advantages of a mixture are the mixture of the advantages


class Experience(NamedTuple):
    """Responses and what is known of them.

    Attributes:
        rollout: Prompts and responses.
        rewards: Rewards, (N, K).
        group: Number of the prompt of each response, (N,).
        old: Log-probabilities of the policy that sampled, None where the updated policy is still that one.
        reference: Log-probabilities of the reference, if there is one.
    """

    rollout: Rollout
    rewards: Tensor
    group: Tensor
    old: Tensor | None
    reference: Tensor | None

    def rows(self, part: slice) -> "Experience":
        """Return some of the rows."""
        old, reference = (None if tensor is None else tensor[part] for tensor in (self.old, self.reference))
        return Experience(self.rollout.rows(part), self.rewards[part], self.group[part], old, reference)

    def pieces(self, size: int | None) -> Iterator[slice]:
        """Cut the rows into pieces of a size, or leave them whole."""
        count = len(self.group)
        step = size or count
        return (slice(start, min(start + step, count)) for start in range(0, count, step))


@dataclass(frozen=True)
class PolicyObjective:
    """How rewards become advantages, and advantages a loss.

    Args:
        estimator: How advantages are estimated.
        aggregation: Whether rewards are added up before or after they are normalised.
        gamma: Discount of returns.
        clip_low: ε below 1.
        clip_high: ε above 1.
        dual_clip: c, or None.
        kl_coef: β.
        kl: Kind of the divergence, or auto.
        total: Adds a tensor up over processes.
    """

    estimator: Any
    aggregation: str
    gamma: float
    clip_low: float
    clip_high: float
    dual_clip: float | None
    kl_coef: float
    kl: str
    total: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        check_choice("estimator", self.estimator, ESTIMATORS)
        check_choice("aggregation", self.aggregation, AGGREGATIONS)
        check_choice("kl", self.kl, ("auto", "k3", "mse"))
        for name in ("clip_low", "clip_high", "kl_coef"):
            check_number(name, getattr(self, name), low=0.0)
        if self.dual_clip is not None:
            check_number("dual_clip", self.dual_clip, low=1.0, low_allowed=False)
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"gamma is {self.gamma}; allowed is a number in [0, 1]")

    @property
    def compares(self) -> bool:
        """Whether several responses to one prompt are needed."""
        return self.estimator in GROUPED or self.aggregation == NORMALIZE_FIRST

    @property
    def is_linear(self) -> bool:
        """Whether the advantages of a mixture of rewards are the mixture of their advantages."""
        return self.estimator in LINEAR and self.aggregation == SUM_FIRST

    def advantages(self, experience: Experience, weights: Tensor, meta: Any = None) -> Tensor:
        """Return the advantage of every token for a mixture of rewards; ``meta`` has a factor and says of what."""
        rewards, group, mask = experience.rewards, experience.group, experience.rollout.response_mask
        factor = 1.0 if meta is None else meta.value
        if meta is not None and meta.apply_to == "reward":
            rewards, factor = factor * rewards, 1.0
        if self.aggregation == NORMALIZE_FIRST:
            return factor * normalize_then_sum(rewards, group, weights, total=self.total)[:, None] * mask
        estimate = partial(token_advantages, gamma=self.gamma, total=self.total)
        return factor * estimate(rewards @ weights, group, mask, self.estimator)

    def loss(
        self, experience: Experience, logp: Tensor, advantages: Tensor, tokens: Tensor, divergence: bool = True
    ) -> PolicyLoss:
        """Return the loss of log-probabilities, divided by a number of tokens."""
        return policy_loss(
            logp,
            logp.detach() if experience.old is None else experience.old,
            advantages,
            experience.rollout.response_mask,
            ref_logp=experience.reference if divergence else None,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=self.dual_clip,
            kl_coef=self.kl_coef if divergence else 0.0,
            kl=("mse" if self.estimator == "reinforce++" else "k3") if self.kl == "auto" else self.kl,
            tokens=tokens,
        )
