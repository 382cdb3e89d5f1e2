"""Does training on wrong chains of thought, weighted by how slowly their losses fall, help out of domain?

Chains of additions modulo 10 (``3+8+6+9+5=1,7,6,1``). A weak model, trained on a few of them, writes chains for other
problems; half of what is trained on has the right answer, half a wrong one. Digits in training are mostly small; out of
domain all are equally frequent. A tiny Llama is trained from scratch on the right chains, the wrong ones, or both:
plainly, with GLOW, with GLOW's weights shuffled within the batch or turned around, with focal loss, and with DFT (a
token's loss times its detached probability).

    python examples/glow.py                # three seeds
    python examples/glow.py --smollm2      # beside it SmolLM2 on a few of these chains, one seed

Nothing is tuned: all methods have the same optimizer, learning rate and number of steps, long enough to learn the wrong
chains by heart. Right chains alone, or wrong ones alone, are seen twice as often.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from _chain_of_thought import (
    OPERANDS,
    Given,
    Watch,
    accuracy,
    own_trajectories,
    roll_out,
    tiny_lm,
    valid_steps,
)
from _glow_smollm2 import fine_tune_smollm2
from _harness import Column, Results, Settings, arguments, conclude, quiet_trainer, run_all
from _plots import COLOURS, draw_bars, plot
from lightning.pytorch import Callback
from torch import Tensor

from lightning_weights.callbacks import GLOW
from lightning_weights.functional.glow import gain_weights, shifted
from lightning_weights.kernels.weighted_cross_entropy import weighted_cross_entropy
from lightning_weights.modules import GLOWLoss, PerSampleLM

EPOCHS, SIZE = 50, 150  # as many trajectories of either kind
PARTS = 10  # of the training, for the course of the weights
GAMMA = 2.0

RIGHT, WRONG, PLAIN = "right only", "wrong only", "right and wrong"
WEIGHTED, NORMAL, SHUFFLED, INVERTED = "GLOW", "GLOW, normalised", "weights shuffled", "weights turned around"
FOCAL, DFT = "focal loss", "DFT"
METHODS: dict[str, Settings] = {
    RIGHT: {"kinds": "right", "visits": 2},
    WRONG: {"kinds": "wrong", "visits": 2},
    PLAIN: {},
    WEIGHTED: {"glow": {}},
    NORMAL: {"glow": {"normalize": True}},
    SHUFFLED: {"glow": {}, "control": "shuffled"},
    INVERTED: {"glow": {}, "control": "inverted"},
    FOCAL: {"tokens": "focal"},
    DFT: {"tokens": "dft"},
}
BASELINES = (RIGHT, WRONG, PLAIN, SHUFFLED, INVERTED, FOCAL, DFT)


class Controlled(GLOWLoss):
    """GLOW with its weights dealt out to others of the batch, or falling where they should rise."""

    control = "shuffled"

    def forward(self, per_sample_loss: Tensor, ids: Tensor | None = None, epoch: int | None = None) -> Tensor:
        loss = super().forward(per_sample_loss, ids, epoch)
        if not self.training:
            return loss
        if self.control == "shuffled":
            weights = self.last.weights[torch.randperm(len(self.last.weights))]
        else:
            rule = {name: getattr(self, name) for name in ("alpha", "beta", "min_weight", "max_weight")}
            weights = gain_weights(-self.last.gains, **rule)
        self.last = self.last._replace(weights=weights)
        return (weights * per_sample_loss).mean()


class TokenWeighted(PerSampleLM):
    """Losses of tokens times something that depends on their probability."""

    kind = "focal"

    def sample_losses(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        moved = shifted(labels)
        logits = self(input_ids, attention_mask).logits
        losses = weighted_cross_entropy(logits.flatten(0, 1), moved.flatten()).view(moved.shape)
        p = torch.exp(-losses)
        losses = (1 - p) ** GAMMA * losses if self.kind == "focal" else p.detach() * losses
        return losses.sum(dim=1) / (moved >= 0).sum(dim=1)


def train_one(settings: Settings, seed: int, epochs: int = EPOCHS, size: int = SIZE) -> dict[str, float]:
    """Train on chains and measure; trainings on one kind see every chain twice as often, in as many steps."""
    right, wrong = own_trajectories(seed, size)
    given = {"right": right, "wrong": wrong, "both": (*right, *wrong)}[settings.get("kinds", "both")]
    torch.manual_seed(seed)
    lm = tiny_lm(TokenWeighted if "tokens" in settings else PerSampleLM)
    lm.kind = settings.get("tokens", "")
    watch = Watch(len(right), PARTS)
    callbacks: list[Callback] = [watch]
    if "glow" in settings:
        if "control" in settings:
            lm.glow = Controlled(num_samples=len(given), **settings["glow"])
            lm.glow.control = settings["control"]
        callbacks = [GLOW(num_samples=len(given), **settings["glow"]), watch]
    data = Given(given, seed)
    longer = epochs * settings.get("visits", 1)
    quiet_trainer(max_epochs=longer, limit_val_batches=0, callbacks=callbacks).fit(lm, data)
    valid = {"valid_right": valid_steps(right), "valid_wrong": valid_steps(wrong)}
    return {**measure(lm, data), **watch.means(), **kept(lm, right, wrong), **valid}


def measure(lm: PerSampleLM, data: Given) -> dict[str, float]:
    """Return greedy accuracy in and out of domain, and the mean entropy of what is written out of domain."""
    found = {}
    for name, wanted in zip(("inside", "outside"), data.evaluation(), strict=True):
        written = roll_out(lm, [trajectory.problem for trajectory in wanted], 2 * OPERANDS)
        found |= {name: accuracy(written.texts, wanted), f"entropy_{name}": written.entropy}
    return found


@torch.no_grad()
def kept(lm: PerSampleLM, right: Any, wrong: Any) -> dict[str, float]:
    """Return the mean loss of all right and of all wrong trajectories after training."""
    found = {}
    for name, given in (("loss_right", right), ("loss_wrong", wrong)):
        batch = next(iter(Given(given, 0, len(given)).train_dataloader()))
        losses = PerSampleLM.sample_losses(lm.eval(), batch["input_ids"], batch["labels"], batch["attention_mask"])
        found[name] = float(losses.mean())
    return found


def draw(results: Results, path: Path) -> None:
    """Draw accuracy in and out of domain, entropy, and how GLOW's weights go."""
    bars = [
        ("outside", "accuracy out of domain, %", ".1f"),
        ("inside", "accuracy in domain, %", ".1f"),
        ("entropy_outside", "entropy out of domain, nats", ".2f"),
    ]
    with plot(path, widths=(4.0, 2.6, 2.6, 3.0), height=3.4) as (*axes, course):
        for axis, (metric, title, spec) in zip(axes, bars, strict=True):
            draw_bars(axis, results, metric, BASELINES, spec)
            axis.set_title(title)
        for axis in axes[1:]:
            axis.set_yticklabels([])
        places = [100 * (part + 0.5) / PARTS for part in range(PARTS)]
        for kind, colour in (("wrong", COLOURS[3]), ("right", COLOURS[0])):
            found = [results.estimate(f"weight_{kind}_{part}", WEIGHTED) for part in range(PARTS)]
            means, errors = [e.mean for e in found], [e.error for e in found]
            course.errorbar(places, means, errors, label=f"{kind} chains", color=colour, marker="o", markersize=4)
        course.set_title("GLOW: mean weight")
        course.set_xlabel("% of the epochs after the first")
        course.legend()


def report(results: Results, out: Path, notes: list[str]) -> None:
    """Print what came out, next to what was asked."""
    columns = [
        Column("inside", "in domain, %"),
        Column("outside", "out of domain, %"),
        Column("entropy_outside", "entropy", ".3f"),
        Column("loss_right", "loss right", ".3f"),
        Column("loss_wrong", "loss wrong", ".3f"),
        Column("weight_right", "weight right", ".3f"),
        Column("weight_wrong", "weight wrong", ".3f"),
    ]
    gain = results.difference("outside", WEIGHTED, PLAIN)
    entropy = results.difference("entropy_outside", WEIGHTED, PLAIN)
    negatives = results.difference("outside", PLAIN, RIGHT)
    alone = results.difference("outside", WRONG, RIGHT)
    both = {name: results.estimate(f"weight_{name}", WEIGHTED) for name in ("right", "wrong")}
    controls = {name: results.difference("outside", WEIGHTED, name) for name in (SHUFFLED, INVERTED)}
    criteria = [
        (
            f"GLOW is better out of domain than plain training on the same chains: {gain:+.1f}",
            gain.mean > 2 * gain.error,
        ),
        (f"its entropy is higher: {entropy:+.3f}", entropy.mean > 2 * entropy.error),
        (
            f"wrong chains have larger weights than right ones: {both['wrong']:.3f} and {both['right']:.3f}",
            both["wrong"].mean > both["right"].mean,
        ),
        *(
            (f"it is better than with {name}: {difference:+.1f}", difference.mean > 2 * difference.error)
            for name, difference in controls.items()
        ),
        (
            f"wrong chains beside the right ones help out of domain: {negatives:+.1f}",
            negatives.mean > 2 * negatives.error,
        ),
        (f"wrong chains alone are better there than right ones: {alone:+.1f}", alone.mean > 2 * alone.error),
    ]
    claim = "wrong chains of thought help out of domain, and GLOW makes more of them"
    valid = [results.estimate(f"valid_{kind}", PLAIN) for kind in ("right", "wrong")]
    steps = f"steps that follow from the step before: {valid[0]} % in right chains, {valid[1]} % in wrong ones"
    conclude(results, columns, criteria, out, claim=claim, notes=[steps, *notes])


def main() -> None:
    parser = arguments("glow", "Chains of thought, right and wrong.", seeds=3)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs of every run (%(default)s)")
    parser.add_argument("--size", type=int, default=SIZE, help="chains of either kind (%(default)s)")
    parser.add_argument("--smollm2", action="store_true", help="also fine-tune SmolLM2, some minutes")
    options = parser.parse_args()
    common = {"epochs": options.epochs, "size": options.size}
    shared = {"common": common, "resume": options.resume, "workers": options.workers}
    train = partial(train_one, **common)
    results = run_all(METHODS, range(options.seeds), train, options.out, watch="outside", **shared)
    draw(results, options.out / "glow.png")
    report(results, options.out, fine_tune_smollm2() if options.smollm2 else [])


if __name__ == "__main__":
    main()
