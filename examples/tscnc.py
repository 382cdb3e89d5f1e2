"""Does conditioning a network while it is trained keep it robust when most of its weights are pruned?

Digits, a small network trained with TRADES. From the same dense weights 10 % and 3 % of each layer are kept: the
largest, without training or trained for as long as scores are, or those that scores learn. Accuracy is measured on 497
held-out images, clean and under PGD with 20 steps; conditioning as the geometric mean of the layers' condition numbers.

    python examples/tscnc.py                   # five seeds

Nothing is tuned: the penalties have their default weights, which are those of the published code.
"""

import copy
import math
from functools import cache, partial
from pathlib import Path

import torch
from _harness import Column, Results, Settings, arguments, conclude, quiet_trainer, run_all
from _plots import draw_bars, draw_lines, plot
from lightning.pytorch import Callback
from torch import nn

from lightning_weights.callbacks import TSCNC, FinetunePruned, ScorePruning
from lightning_weights.data import Digits
from lightning_weights.functional.attacks import pgd_attack
from lightning_weights.functional.evaluation_mode import evaluation_mode
from lightning_weights.functional.tscnc import condition_numbers
from lightning_weights.modules import MLP, RobustClassifier, TradesLoss

EPSILON, ATTACK_STEPS, LR, CLIP, TEST_IMAGES = 0.1, 20, 0.05, 5.0, 497
KEEPS = (0.1, 0.03)
SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.97)  # of the figure, by magnitude
SINGULAR = 1e8  # what a layer counts in the mean whose condition number is larger

MAGNITUDE, FINETUNED, SCORES = "magnitude, one shot", "magnitude, fine-tuned", "scores (HYDRA)"
CNC, RELEASED, TSC, BOTH = "scores + CNC", "scores + CNC as released", "scores + TSC", "scores + TSC + CNC"
BASELINES = (MAGNITUDE, FINETUNED, SCORES)
PLAIN = {"gated_layers": None, "cnc_weight": 0.0}
TRAINING = {
    MAGNITUDE: PLAIN,
    FINETUNED: PLAIN,
    SCORES: PLAIN,
    CNC: {"gated_layers": None},
    RELEASED: {"gated_layers": None, "cnc_mode": "released"},
    TSC: {"cnc_weight": 0.0},
    BOTH: {},
}


def fit(network: nn.Module, callbacks: list[Callback], seed: int, epochs: int, batch: int) -> None:
    """Train against TRADES' attack."""
    assert network.training, "Lightning trains a network in the mode that it finds"
    model = RobustClassifier(
        network,
        adversary=TradesLoss(epsilon=EPSILON, step_size=EPSILON / 2, steps=4),
        optimizer=partial(torch.optim.SGD, lr=LR, momentum=0.9, nesterov=True),
        lr_scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
    )
    options = {"gradient_clip_val": CLIP, "limit_val_batches": 0, "callbacks": callbacks}
    quiet_trainer(max_epochs=epochs, **options).fit(model, Digits(batch, TEST_IMAGES, seed=seed))


def measure(network: nn.Module, seed: int, label: str) -> dict[str, float]:
    """Return percentages on the held-out images, and condition numbers."""
    ((x, y),) = Digits(TEST_IMAGES, TEST_IMAGES, seed=seed).test_dataloader()
    attack = {"epsilon": EPSILON, "step_size": EPSILON / 4, "steps": ATTACK_STEPS}
    with evaluation_mode(network):
        attacked = pgd_attack(network, x, y, **attack, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            clean, robust = (100 * (network(inputs).argmax(1) == y).float().mean() for inputs in (x, attacked))
    return {f"clean_{label}": clean, f"robust_{label}": robust, f"log_kappa_{label}": log_kappa(network)}


def log_kappa(network: nn.Module) -> float:
    """Return log10 of the geometric mean of the layers' condition numbers."""
    numbers = condition_numbers(network).values()
    return sum(math.log10(min(number, SINGULAR)) for number in numbers) / len(numbers)


@cache
def train_dense(options: tuple[tuple[str, object], ...], seed: int, epochs: int, batch: int) -> MLP:
    """Return the network before pruning; methods that differ in the pruning only share it."""
    torch.manual_seed(seed)
    network = MLP(64, (64, 96, 64), 10, batch_norm=True)
    fit(network, [TSCNC(ema_decay=None, **dict(options))], seed, epochs, batch)
    return network


def pruned(network: nn.Module, keep: float) -> nn.Module:
    """Return a copy in which the largest weights of each layer are left."""
    copied, pruning = copy.deepcopy(network), ScorePruning(keep)
    pruning.attach(copied)
    pruning.prune(copied)
    return copied


def train_one(settings: Settings, seed: int, epochs: int, pruning_epochs: int, batch: int) -> dict[str, float]:
    """Train, prune to both sizes and measure."""
    method = settings["method"]
    dense = train_dense(tuple(TRAINING[method].items()), seed, epochs, batch)
    metrics = {"kappa_head": condition_numbers(dense)["head"], **measure(dense, seed, "dense")}
    metrics |= {f"log_kappa_at_{s}": log_kappa(pruned(dense, 1 - s)) for s in SPARSITIES}
    for keep in KEEPS:
        network = pruned(dense, keep)
        if method != MAGNITUDE:
            torch.manual_seed(seed)
            phase = FinetunePruned() if method == FINETUNED else ScorePruning(keep)
            fit(network, [phase], seed, pruning_epochs, batch)
        metrics |= measure(network, seed, f"{keep:g}")
    return metrics


def draw(results: Results, path: Path) -> None:
    """Draw conditioning over sparsity, and robustness after pruning."""
    learned = Results([run for run in results.runs if run.method not in (MAGNITUDE, FINETUNED)])
    with plot(path, widths=(4.4, 3.6, 3.6), height=4.1) as (left, middle, right):
        draw_lines(left, learned, {100 * s: f"log_kappa_at_{s}" for s in SPARSITIES}, BASELINES)
        left.set(title="conditioning when pruned by magnitude", xlabel="weights pruned, %")
        left.set(ylabel="log₁₀ of the condition number, mean of layers")
        left.figure.legend(loc="outside lower center", ncols=5)
        draw_bars(middle, results, "robust_0.1", BASELINES)
        middle.set(title="adversarial accuracy, 10 % kept", xlabel="%, with standard error", xlim=(0, 105))
        draw_bars(right, results, "robust_0.03", BASELINES)
        right.set(title="adversarial accuracy, 3 % kept", xlabel="%, with standard error", xlim=(0, 105))
        right.set(yticklabels=[])


def report(results: Results, out: Path) -> None:
    """Print what came out, next to what was asked."""
    notes = [
        "clean, PGD: accuracy on 497 held-out images, in %; dense, and with 10 % and 3 % of the weights\n"
        "κ head: condition number of the dense classifier\n"
        f"log κ: log10 of the condition numbers, mean of the layers, each at most {SINGULAR:g}"
    ]
    for method in (FINETUNED, RELEASED, TSC, BOTH):
        for keep in KEEPS:
            gain = results.difference(f"robust_{keep:g}", method, SCORES)
            word = "level within two standard errors" if gain.within_noise() else "better" if gain.mean > 0 else "worse"
            notes.append(f"{method} against {SCORES}, {keep:.0%} kept: {gain:+.1f} points under PGD: {word}")
    head, other = results.estimate("kappa_head", CNC), results.estimate("kappa_head", SCORES)
    gain = results.difference("robust_0.03", CNC, SCORES)
    learned = results.difference("clean_0.1", SCORES, MAGNITUDE)
    joint = [results.difference("robust_0.03", BOTH, rest) for rest in (SCORES, CNC, TSC)]
    shown = ", ".join(f"{difference:+.1f}" for difference in joint)
    criteria = [
        (
            f"CNC brings κ of the classifier below 1.5 and below the baseline's {other:.2f}: {head:.2f}",
            head.mean < 1.5 and head.mean < other.mean,
        ),
        (f"with 3 % kept, CNC adds at least 2 points under PGD: {gain:+.1f}", gain.mean >= 2),
        (
            f"with 10 % kept, learned scores add at least 40 clean points to one shot by magnitude: {learned:+.1f}",
            learned.mean >= 40,
        ),
        (
            f"with 3 % kept, TSC and CNC together beat the baseline, CNC alone and TSC alone: {shown}",
            min(d.mean for d in joint) > 0,
        ),
    ]
    columns = [Column("kappa_head", "κ head")]
    for label, title in [("dense", ""), *((f"{keep:g}", f", {keep:.0%}") for keep in KEEPS)]:
        columns += [
            Column(f"{metric}_{label}", name + title)
            for metric, name in (("clean", "clean"), ("robust", "PGD"), ("log_kappa", "log κ"))
        ]
    claim = "better conditioned, more robust when pruned, and more so with both constraints"
    conclude(results, columns, criteria, out, claim=claim, notes=notes)


def main() -> None:
    parser = arguments("tscnc", "Robustness after pruning with TSC and CNC, against HYDRA's scores and magnitudes.")
    parser.add_argument("--epochs", type=int, default=25, help="epochs of dense training (%(default)s)")
    parser.add_argument("--pruning-epochs", type=int, default=8, help="epochs of the scores (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images per batch (%(default)s)")
    options = parser.parse_args()
    common = {"epochs": options.epochs, "pruning_epochs": options.pruning_epochs, "batch": options.batch}
    train = partial(train_one, **common)
    methods = {method: {"method": method, **settings} for method, settings in TRAINING.items()}
    shared = {"watch": "robust_0.03", "common": common, "resume": options.resume, "workers": options.workers}
    results = run_all(methods, range(options.seeds), train, options.out, **shared)
    draw(results, options.out / "tscnc.png")
    report(results, options.out)


if __name__ == "__main__":
    main()
