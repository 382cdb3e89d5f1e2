"""Chains of additions that a model has written itself, right and wrong, for examples that train on them."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from _harness import quiet_trainer
from lightning.pytorch import Callback

from lightning_weights.data import ChainOfThought
from lightning_weights.data.chain_of_thought import Trajectory
from lightning_weights.functional.evaluation_mode import evaluation_mode
from lightning_weights.modules import PerSampleLM

OPERANDS, SKEW = 5, 1.5
LLAMA = {
    "model_type": "llama",
    "vocab_size": 72,  # bytes of digits and signs
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
ASKED = 300  # problems in and out of domain
SHAPE = {"operands": OPERANDS, "skew": SKEW, "validation_size": ASKED, "test_size": ASKED}
WEAK_SIZE, WEAK_EPOCHS = 70, 80  # of the model that writes the trajectories
LR = 3e-3  # of all models
POOL = 1200  # problems that it tries


class Rollout(NamedTuple):
    """What a model wrote: texts behind the problems, and the mean entropy of what it chose from."""

    texts: list[str]
    entropy: float


class Given(ChainOfThought):
    """The same problems for validation and test, with trajectories from elsewhere."""

    def __init__(self, given: Sequence[Trajectory], seed: int, batch_size: int = 32, **shape: Any) -> None:
        super().__init__(**{**SHAPE, **shape}, train_size=1, batch_size=batch_size, seed=seed)
        self.given = list(given)

    def trajectories(self) -> list[Trajectory]:
        return self.given


class Watch(Callback):
    """Adds up the weights of right trajectories, which come first, and of wrong ones, from the second epoch on."""

    def __init__(self, right: int, parts: int) -> None:
        self.right, self.parts = right, parts
        self.sums, self.counts = torch.zeros(2, 2, parts)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        epoch, last = trainer.current_epoch - 1, getattr(getattr(pl_module, "glow", None), "last", None)
        if last is None or epoch < 0:
            return
        part = self.parts * epoch // (trainer.max_epochs - 1)
        for kind, chosen in enumerate((last.ids < self.right, last.ids >= self.right)):
            self.sums[kind, part] += last.weights[chosen].sum()
            self.counts[kind, part] += chosen.sum()

    def means(self) -> dict[str, float]:
        """Return mean weights of either kind, of all epochs and of equal parts of them; 1 where there are none."""
        found = {}
        for kind, sums, counts in zip(("right", "wrong"), self.sums, self.counts, strict=True):
            found[f"weight_{kind}"] = sums.sum() / counts.sum() if counts.any() else 1.0
            for part in range(self.parts):
                found[f"weight_{kind}_{part}"] = sums[part] / counts[part] if counts[part] else 1.0
        return found


def tiny_lm(make: Callable[..., PerSampleLM] = PerSampleLM) -> PerSampleLM:
    """Return an untrained model."""
    return make(config=LLAMA, optimizer=partial(torch.optim.AdamW, lr=LR), tokenizer="bytes")


@torch.no_grad()
def roll_out(lm: PerSampleLM, problems: Sequence[str], tokens: int, sample: bool = False, prefix: str = "") -> Rollout:
    """Let a model answer problems whose tokens are equally many, greedily or by drawing from its probabilities."""
    tokenizer = lm.tokenizer
    asked = torch.tensor([tokenizer(prefix + text, add_special_tokens=False).input_ids for text in problems])
    end = tokenizer.eos_token_id
    with evaluation_mode(lm):
        found = lm.model.generate(
            input_ids=asked,
            attention_mask=torch.ones_like(asked),
            max_new_tokens=tokens,
            do_sample=sample,
            eos_token_id=end,
            pad_token_id=end,
            output_logits=True,
            return_dict_in_generate=True,
        )
    written = found.sequences[:, asked.shape[1] :]
    log_p = torch.stack(found.logits, dim=1).float().log_softmax(dim=-1)
    entropy = -(log_p.exp() * log_p).sum(dim=-1)
    before_end = (written == end).cumsum(dim=1) - (written == end).long() == 0
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in written]
    return Rollout(texts, float(entropy[before_end].mean()))


def steps_of(text: str, count: int) -> tuple[int, ...] | None:
    """Return the steps in a text, or nothing if it is none of so many numbers."""
    parts = text.split("\n")[0].strip().split(",")
    if len(parts) != count or not all(part.isascii() and part.isdigit() and len(part) < 4 for part in parts):
        return None
    return tuple(map(int, parts))


def accuracy(texts: Sequence[str], wanted: Sequence[Trajectory]) -> float:
    """Return the percentage of problems whose last number is right."""
    found = (steps_of(text, len(right.steps)) for text, right in zip(texts, wanted, strict=True))
    hits = [steps is not None and steps[-1] == right.steps[-1] for steps, right in zip(found, wanted, strict=True)]
    return 100 * sum(hits) / len(hits)


def sorted_out(
    data: ChainOfThought, problems: Sequence[Trajectory], texts: Sequence[str]
) -> tuple[list[Trajectory], list[Trajectory]]:
    """Return trajectories whose answer is right, and those whose answer is wrong; what is no trajectory goes."""
    right, wrong = [], []
    for problem, text in zip(problems, texts, strict=True):
        steps = steps_of(text, len(problem.steps))
        if steps is not None:
            answer = data.running_sums(problem.operands)[-1]
            (right if steps[-1] == answer else wrong).append(Trajectory(problem.operands, steps))
    return right, wrong


@cache
def own_trajectories(seed: int, size: int) -> tuple[tuple[Trajectory, ...], tuple[Trajectory, ...]]:
    """Train a weak model on a few right chains and let it write: as many right as wrong ones, each ``size``.

    Raises:
        ValueError: If it is too weak, or too strong, to write enough of both.
    """
    pool, few = (
        ChainOfThought(**SHAPE, wrong_share=0.0, train_size=n, seed=s)
        for n, s in ((POOL, seed), (WEAK_SIZE, 1000 + seed))
    )
    problems = pool.trajectories()
    with torch.random.fork_rng():
        torch.manual_seed(1000 + seed)
        weak = tiny_lm()
        quiet_trainer(max_epochs=WEAK_EPOCHS, limit_val_batches=0).fit(weak, few)
        written = roll_out(weak, [problem.problem for problem in problems], 2 * OPERANDS, sample=True)
    right, wrong = sorted_out(pool, problems, written.texts)
    if min(len(right), len(wrong)) < size:
        raise ValueError(
            f"the weak model wrote {len(right)} right and {len(wrong)} wrong chains; {size} of each are needed: change "
            f"WEAK_SIZE or WEAK_EPOCHS"
        )
    return tuple(right[:size]), tuple(wrong[:size])


def valid_steps(trajectories: Sequence[Trajectory], modulus: int = 10) -> float:
    """Return the percentage of steps that follow from the step before, right or wrong."""
    valid = [
        (step - before - operand) % modulus == 0
        for operands, steps in trajectories
        for before, operand, step in zip((operands[0], *steps), operands[1:], steps, strict=False)
    ]
    return 100 * sum(valid) / len(valid)
