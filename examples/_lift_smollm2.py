"""What LIFT's example does with SmolLM2: noise on chosen entries, and additions."""

from functools import cache, partial

import torch
from _harness import Settings
from _smollm2 import learn_to_add, perplexity, pretrained
from torch import Tensor, nn

from lightning_weights.callbacks import LIFTFinetuning
from lightning_weights.functional.lift import budget, select_indices
from lightning_weights.optimizers import LIFTAdamW

DENSITY, FILTER_RANK = 0.05, 32
EVERY = 3  # noise goes to every third block
NOISE = (0.1, 0.2)
SELECTORS = {
    "LIFT": {"selector": "lift"},
    "magnitude": {"selector": "magnitude"},
    "random": {"selector": "random"},
    "bottom": {"selector": "bottom"},
}
RATES = (1e-4, 3e-4, 1e-3)
ADDING = ("LIFT", "magnitude", "random", "full", "LoRA")


@cache
def _model() -> nn.Module:
    return pretrained().model


def _matrices() -> list[nn.Parameter]:
    blocks = _model().model.layers[::EVERY]
    return [layer.weight for layer in blocks.modules() if isinstance(layer, nn.Linear)]


@cache
def _chosen(selector: str, seed: int) -> list[Tensor]:
    rule = {"filter_rank": FILTER_RANK, "svd": "gram"}
    return [
        select_indices(weight, budget(weight.shape, density=DENSITY), selector, seed=1000 * seed + number, **rule)
        for number, weight in enumerate(_matrices())
    ]


@torch.no_grad()
def sensitivity(settings: Settings, seed: int) -> dict[str, float]:
    """Return the perplexity of prose after noise on the entries that a selector chooses, and before.

    Every entry of a matrix gets the same noise for all selectors that choose it.
    """
    selector = settings["selector"]
    chosen = _chosen(selector, seed if selector == "random" else 0)
    principal = _chosen("lift", 0)
    same = sum(int(torch.isin(a, b).sum()) for a, b in zip(chosen, principal, strict=True))
    found = {"base": _base(), "overlap": 100 * same / sum(map(len, principal))}
    for sd in NOISE:
        generator = torch.Generator().manual_seed(seed)
        kept = [weight.detach().clone() for weight in _matrices()]
        for weight, indices in zip(_matrices(), chosen, strict=True):
            noise = torch.randn(weight.numel(), generator=generator)
            weight.view(-1)[indices.long()] += sd * noise[indices.long()]
        found[f"perplexity at {sd:g}"] = perplexity(_model())
        for weight, value in zip(_matrices(), kept, strict=True):
            weight.copy_(value)
    return found


@cache
def _base() -> float:
    return perplexity(pretrained())


def adding(settings: Settings, seed: int, steps: int) -> dict[str, float]:
    """Fine-tune on additions with a method and a learning rate; what is static stays so, for masks of equal size."""
    method, lr, lm = settings["method"], settings["lr"], pretrained()
    torch.manual_seed(seed)
    make, callbacks = partial(torch.optim.AdamW, lr=lr, betas=(0.9, 0.95), weight_decay=0.0), []
    if method == "LoRA":
        import peft

        config = peft.LoraConfig(r=17, lora_alpha=34, target_modules="all-linear")  # as many weights as entries
        lm.model = peft.get_peft_model(lm.model, config)
    elif method != "full":
        selector = "lift" if method == "LIFT" else method
        rule = {"budget_rank": None, "density": DENSITY, "filter_rank": FILTER_RANK, "update_interval": 1000}
        make, callbacks = partial(LIFTAdamW, lr=lr, selector=selector, **rule), [LIFTFinetuning()]
    return {"base": _base(), **learn_to_add(lm, make, seed, callbacks, steps)}
