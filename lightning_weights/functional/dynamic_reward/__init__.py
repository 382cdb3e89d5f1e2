"""Rewards of several objectives: advantages, weights that follow gradients, and the volume of a Pareto front."""

from lightning_weights.functional.dynamic_reward.advantages import (
    ESTIMATORS,
    GROUPED,
    NORMALIZING,
    Estimator,
    check_rewards,
    group_advantage,
    normalize_then_sum,
    returns_to_go,
    token_advantages,
    whiten,
)
from lightning_weights.functional.dynamic_reward.archive import ParetoArchive
from lightning_weights.functional.dynamic_reward.hypervolume import hypervolume
from lightning_weights.functional.dynamic_reward.weights import (
    checked_weights,
    influence,
    meta_reward,
    update_log_weights,
    update_reward_weights,
)

__all__ = [
    "ESTIMATORS",
    "GROUPED",
    "NORMALIZING",
    "Estimator",
    "ParetoArchive",
    "check_rewards",
    "checked_weights",
    "group_advantage",
    "hypervolume",
    "influence",
    "meta_reward",
    "normalize_then_sum",
    "returns_to_go",
    "token_advantages",
    "update_log_weights",
    "update_reward_weights",
    "whiten",
]
