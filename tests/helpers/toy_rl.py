"""A policy, rewards and data with which training by reinforcement takes a moment."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from lightning_weights.data import DigitSums
from lightning_weights.modules import AccuracyReward, BrevityReward, ClarityReward, GRULanguageModel, MultiObjectiveRL
from tests.helpers.tasks import make_trainer

OBJECTIVES = ["accuracy", "brevity", "clarity"]


def toy_rewards() -> dict[str, Any]:
    """Return the rewards that fit to `DigitSums`."""
    return {
        "accuracy": AccuracyReward(r"\d"),
        "brevity": BrevityReward(),
        "clarity": ClarityReward("", "S", "", 2),
    }


def toy_module(**options: Any) -> MultiObjectiveRL:
    """Return a module with a small policy, always with the same weights."""
    tokenizer = DigitSums.tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        policy = GRULanguageModel(len(tokenizer), hidden=8, embedding=4)
    defaults = {
        "rewards": toy_rewards(),
        "policy": policy,
        "tokenizer": tokenizer,
        "estimator": "rloo",
        "group_size": 4,
        "max_new_tokens": 5,
        "kl_coef": 0.0,
        "optimizer": partial(torch.optim.Adam, lr=1e-2),
    }
    return MultiObjectiveRL(**{**defaults, **options})


def toy_data(**options: Any) -> DigitSums:
    """Return 24 prompts in batches of 4."""
    defaults = {"train_size": 24, "validation_size": 8, "test_size": 8, "batch_size": 4, "val_batch_size": 8}
    return DigitSums(**{**defaults, **options})


def toy_fit(module: Any, callbacks: Iterable[Any] = (), seed: int = 1, ckpt: Any = None, **options: Any) -> Any:
    """Train and return the trainer."""
    torch.manual_seed(seed)
    trainer = make_trainer(list(callbacks), **{"max_epochs": 2, "val_check_interval": 2, **options})
    trainer.fit(module, toy_data(), ckpt_path=ckpt, weights_only=None if ckpt is None else True)
    return trainer
