"""What one run of each part of the example `gradnorm_lorp.py` is: which layers, which optimizer, what is measured."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from _fine_tuning import LAYERS, Upright, fine_tune, pretrained, state_bytes, with_peft
from _harness import quiet_trainer
from lightning.pytorch import Callback
from torch import nn

from lightning_weights.callbacks import GradNormLoRP
from lightning_weights.data import CausalText
from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.evaluation_mode import evaluation_mode
from lightning_weights.modules import MLP, CausalLM
from lightning_weights.optimizers import GradNormLoRPAdamW

R, REFRESH = 8, 25  # rank of the updates and, unless stated, of the projections; steps between projections
LORA, DORA, GALORE, ADAMW = "LoRA", "DoRA", "GaLore", "AdamW"
OURS, OURS_EXACT, OURS_HALF, OURS_QUARTER = "ours, p = 8", "ours, p = 8, exact norm", "ours, p = 4", "ours, p = 2"
FULL, FULL_8BIT = "ours, full", "ours, full, 8-bit"
FROZEN_LORA, FROZEN_OURS, MERGING = "LoRA, random W₀", "ours, p = 4, random W₀", "ours, p = 4, merging"
RANKS = {OURS: 8, OURS_EXACT: 8, OURS_HALF: 4, OURS_QUARTER: 2}
MERGE = 40  # steps after which factors are folded
# the language model: bytes, two layers; a quarter of the width as rank, as the released scripts have it at most
LENGTH, TEXTS, LM_REFRESH = 128, 8, 50


def hush_warnings() -> None:
    """Leave out that p = 8 only rotates the gradients of rank-8 factors, and that random W₀ are frozen: it is meant."""
    warnings.filterwarnings("ignore", category=LightningWeightsWarning)


def galore(matrices: Iterable[nn.Parameter], **options: Any) -> Callable[[Any], torch.optim.Optimizer]:
    """Return what makes GaLore-AdamW: these matrices are projected, other parameters are not."""
    chosen = list(matrices)

    def make(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        known = {id(param) for param in chosen}
        others = [param for param in params if id(param) not in known and param.requires_grad]
        groups = [{"params": chosen}, {"params": others, "rank": None}] if others else [{"params": chosen}]
        return GradNormLoRPAdamW(groups, **options)

    return make


def fine_tuning(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Train a network that knows upright digits on a few digits that lie on their side."""
    hush_warnings()
    method, lr, network = settings["method"], settings["lr"], pretrained(seed)
    torch.manual_seed(seed)  # adapters are drawn
    ours = partial(GradNormLoRPAdamW, lr=lr, update_proj_gap=REFRESH)
    if method in (LORA, DORA):
        return fine_tune(with_peft(network, method, R), partial(torch.optim.AdamW, lr=lr), seed)
    if method == GALORE:
        matrices = [network.get_submodule(name).weight for name in LAYERS]
        network.requires_grad_(False)
        for matrix in matrices:
            matrix.requires_grad_(True)
        return fine_tune(network, galore(matrices, lr=lr, update_proj_gap=REFRESH), seed)
    layers = GradNormLoRP(R, target_modules=LAYERS, detach_norm=method != OURS_EXACT)
    return fine_tune(network, partial(ours, rank=RANKS[method]), seed, [layers])


def mlp_from_scratch(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Train the same network on upright digits from random weights."""
    hush_warnings()
    method, lr, scale = settings["method"], settings["lr"], settings.get("scale", 1.0)
    torch.manual_seed(seed)
    network, callbacks = MLP(64, (128, 128, 128), 10), []
    ours = partial(GradNormLoRPAdamW, lr=lr, scale=scale, update_proj_gap=REFRESH)
    make: Any = partial(torch.optim.AdamW, lr=lr, weight_decay=0.0)
    if method == FROZEN_LORA:
        network = with_peft(network, LORA, R)
    elif method == GALORE:
        matrices = [network.get_submodule(name).weight for name in LAYERS]
        make = galore(matrices, lr=lr, scale=scale, update_proj_gap=REFRESH)
    elif method == FULL:
        callbacks, make = [GradNormLoRP(mode="full", target_modules=LAYERS)], ours
    elif method in (FROZEN_OURS, MERGING):
        layers = GradNormLoRP(R, target_modules=LAYERS, merge_every=MERGE if method == MERGING else 0)
        layers.attach(network)
        callbacks, make = [layers], partial(ours, rank=4)
    for name, param in network.named_parameters():  # what is not a matrix of the three layers is trained by all
        if name.endswith(".bias") or ".head." in f".{name}":
            param.requires_grad_(True)
    return fine_tune(network, make, seed, callbacks, steps=150, data=Upright(50, seed=seed))


def warm_then_fall(step: int, steps: int) -> float:
    """Return the factor of the learning rate: up over a tenth of the steps, then down along a cosine to a tenth."""
    warm = steps // 10
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def language_model(settings: Mapping[str, Any], seed: int, steps: int, width: int) -> dict[str, float]:
    """Train a small Llama on the bytes of Python's documentation and measure it on documents of its own."""
    method, lr, scale = settings["method"], settings["lr"], settings.get("scale", 1.0)
    torch.manual_seed(seed)
    shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = CausalLM(
        config={"model_type": "llama", "vocab_size": 384, "max_position_embeddings": LENGTH, **shape},
        lr_scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=partial(warm_then_fall, steps=steps)),
    )
    callbacks: list[Callback] = []
    options = {"lr": lr, "scale": scale, "rank": width // 4, "update_proj_gap": LM_REFRESH}
    model.optimizer = partial(torch.optim.AdamW, lr=lr, weight_decay=0.0)
    if method == GALORE:
        matrices = [param for name, param in model.named_parameters() if name.endswith("_proj.weight")]
        model.optimizer = galore(matrices, **options)
    elif method in (FULL, FULL_8BIT):
        callbacks = [GradNormLoRP(mode="full")]
        model.optimizer = partial(GradNormLoRPAdamW, **options, state_bits=8 if method == FULL_8BIT else 32)
    data = CausalText(length=LENGTH, batch_size=TEXTS, seed=seed)
    trainer = quiet_trainer(max_steps=steps, limit_val_batches=0, gradient_clip_val=1.0, callbacks=callbacks)
    trainer.fit(model, data)
    with evaluation_mode(model), torch.no_grad():
        losses = [float(model(**batch).loss) for batch in data.val_dataloader()]
    loss = sum(losses) / len(losses)
    return {"loss": loss, "perplexity": math.exp(loss), "state_bytes": state_bytes(trainer.optimizers[0])}
