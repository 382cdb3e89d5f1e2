"""Do weights that are generated from each instruction edit images better than one set of weights for all?

A small network (three residual blocks of width 96) has learned to copy digits of 8 x 8 pixels while it ignores an
instruction of 8 numbers. Now it is told to blur or sharpen, to shift to the left or right, to invert or raise the
contrast, by a strength between 0.2 and 0.8. Six ways to adapt it to these opposite edits, tested on unseen digits and
on strengths outside of the range:

- a LoRA shared by all instructions, of the same rank, of about the generator's parameters, and one whose backbone
  doesn't see the instruction;
- all weights;
- text-to-LoRA's way, an MLP that generates matrices of the same rank;
- HY-WU's generator, also run with the weights of another sample and with the mean of the batch's.

    python examples/hy_wu.py                # three seeds, less than five minutes on two cores
    python examples/hy_wu.py --tune         # choose the learning rates on another seed first, and use them
    python examples/hy_wu.py --smollm2      # also SmolLM2-135M, told in which style to write: two more packages

What is compared is fair at equal rank of what is injected; the parameters that are trained differ by far, and the table
says how many.
"""

import json
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from _grid import tune
from _harness import Column, Estimate, Results, Settings, arguments, conclude, quiet_trainer, run_all
from _hy_wu_smollm2 import report_smollm2
from _hypernetworks import AllWeights, MLPHypernetwork, SharedLoRA
from _plots import plot
from torch import Tensor, nn

from lightning_weights.callbacks.condition_shuffle_probe import probe, task_gradients
from lightning_weights.data import DigitEdits
from lightning_weights.data.digit_edits import EDITS, WIDTH, edited, instructions
from lightning_weights.functional.hy_wu import cosine_matrix
from lightning_weights.functional.whole_files import replacing_file
from lightning_weights.modules import FunctionalMemory, ResidualMLP, WeightGenerator

STEPS, PRETRAINING, BATCH, RANK, WIDE = 1200, 800, 64, 4, 76
TEST, PROBED = 500, 600  # held-out digits, and of their edits those that are probed, each with its matrices
INSIDE, OUTSIDE = (0.2, 0.8), (0.8, 1.1)
GENERATOR = {"token_dim": 96, "dim": 64, "head_dim": 16, "accumulation": 4, "depth": 1}
PAIRS = (("blur", "sharpen"), ("left", "right"), ("invert", "contrast"))
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
TUNING_SEEDS = (100,)

HIDDEN, SHARED, LARGE = "shared LoRA, instruction hidden", "shared LoRA", "shared LoRA, equal parameters"
FULL, MLP, OURS = "all weights", "text-to-LoRA (MLP)", "HY-WU"
METHODS: dict[str, Settings] = {
    HIDDEN: {"kind": "shared", "rank": RANK, "instruct": False, "lr": 3e-3},
    SHARED: {"kind": "shared", "rank": RANK, "lr": 3e-2},
    LARGE: {"kind": "shared", "rank": WIDE, "lr": 3e-3},
    FULL: {"kind": "full", "lr": 1e-2},
    MLP: {"kind": "mlp", "rank": RANK, "lr": 1e-2},
    OURS: {"kind": "generator", "rank": RANK, "lr": 3e-3},
}


@cache
def pretrained(seed: int, steps: int) -> dict[str, Tensor]:
    """Return the weights of a network that copies images and ignores instructions."""
    torch.manual_seed(seed)
    network = ResidualMLP(64 + WIDTH, 64)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    data = samples(seed, INSIDE, "train")
    for _ in range(steps):
        rows = torch.randint(len(data["task"]), (BATCH,))
        images = data["inputs"][0][rows]
        loss = nn.functional.mse_loss(
            network(images, data["inputs"][1][torch.randperm(len(data["task"]))[:BATCH]]), images
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.state_dict()


@cache
def samples(seed: int, strengths: tuple[float, float], part: str) -> Any:
    """Return all training or test samples as one batch."""
    data = DigitEdits(strengths=strengths, seed=seed, test_size=TEST)
    data.setup()
    return data.batch(data._sets[{"train": 0, "test": 2}[part]].tensors)


def adapted(settings: Settings, seed: int, steps: int, pretraining: int) -> FunctionalMemory:
    """Return the module that is trained."""
    network = ResidualMLP(64 + WIDTH, 64)
    network.load_state_dict(pretrained(seed, pretraining))
    torch.manual_seed(seed + 1)
    kind, rank = settings["kind"], settings.get("rank", RANK)
    options = {
        "loss_fn": nn.MSELoss(),
        "optimizer": partial(torch.optim.AdamW, lr=settings["lr"]),
        "lr_scheduler": partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps),
    }
    sizes = {"rank": rank, "alpha": 2.0 * rank, **GENERATOR}
    generator = WeightGenerator.for_backbone(network, ["fc1", "fc2"], WIDTH, **sizes)
    if kind == "full":
        return AllWeights(network, generator.sizes, **options)
    others = {
        "shared": lambda: SharedLoRA(generator.sizes, rank),
        "mlp": lambda: MLPHypernetwork(generator.sizes, WIDTH, rank),
    }
    return FunctionalMemory(network, others[kind]() if kind in others else generator, **options)


def train(settings: Settings, seed: int, steps: int, pretraining: int) -> FunctionalMemory:
    """Train one way to adapt the network."""
    module = adapted(settings, seed, steps, pretraining)
    data = DigitEdits(
        batch_size=BATCH, seed=seed, test_size=TEST, strengths=INSIDE, instruct=settings.get("instruct", True)
    )
    options = {"max_steps": steps, "gradient_clip_val": 1.0, "limit_val_batches": 0}
    quiet_trainer(**options).fit(module, data)
    return module.eval()


def measure(module: Any, seed: int, instruct: bool) -> dict[str, float]:
    """Return what is measured, errors times 1000."""
    found: dict[str, float] = {}
    for name, strengths in (("inside", INSIDE), ("outside", OUTSIDE)):
        batch = seen(samples(seed, strengths, "test"), instruct)
        with torch.no_grad():
            found[name] = 1e3 * float(module.memory_loss(batch))
    batch = seen(first(samples(seed, INSIDE, "test"), PROBED), instruct)
    _, probed = probe(module, batch)
    unedited = 1e3 * float(nn.functional.mse_loss(batch["inputs"][0], batch["target"]))
    found |= {name: 1e3 * value for name, value in probed.items() if name.startswith("loss")}
    found |= {name: value for name, value in probed.items() if name.startswith("similarity")}
    cosines = cosine_matrix(task_gradients(module, batch, batch["task"]))
    for one, other in PAIRS:
        found[f"cosine_{one}_{other}"] = float(cosines[EDITS.index(one), EDITS.index(other)])
    return {**found, "unedited": unedited, "score": -found["inside"]}


def first(batch: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Return the first samples of a batch."""
    return {
        name: [own[:size] for own in part] if isinstance(part, list) else part[:size] for name, part in batch.items()
    }


def seen(batch: Mapping[str, Any], instruct: bool) -> dict[str, Any]:
    """Return a batch whose backbone sees the instruction, or zeros."""
    images, told = batch["inputs"]
    return {**batch, "inputs": [images, told if instruct else torch.zeros_like(told)]}


def train_one(settings: Settings, seed: int, steps: int = STEPS, pretraining: int = PRETRAINING) -> dict[str, float]:
    """Train and measure."""
    module = train({**METHODS[settings["method"]], **settings}, seed, steps, pretraining)
    numbers = sum(param.numel() for param in module.parameters() if param.requires_grad)
    instruct = METHODS[settings["method"]].get("instruct", True)
    return {**measure(module, seed, instruct), "trained": float(numbers)}


def draw(seed: int, rates: Mapping[str, float], steps: int, pretraining: int, path: Path, results: Results) -> None:
    """Draw edits by HY-WU, how alike the matrices of samples are, and the errors of all."""
    module = train({**METHODS[OURS], "lr": rates[OURS]}, seed, steps, pretraining)
    batch = samples(seed, INSIDE, "test")
    order = batch["task"][:240].argsort(stable=True)
    image, kinds = batch["inputs"][0][:1].expand(6, -1), torch.arange(6)
    told = instructions(kinds, torch.full((6,), INSIDE[1]))
    with torch.no_grad():
        rows = module.memory(told[:, None], image, told)
        flat = module.memory.adapters(batch["condition"][order]).flatten()
    shown = [image, rows, edited(image, kinds, torch.full((6,), INSIDE[1]))]
    framed = [nn.functional.pad(part.view(-1, 8, 8), (1, 1, 1, 1), value=1.2) for part in shown]
    grid = torch.cat([torch.cat([*part], dim=1) for part in framed])
    with plot(path, widths=(5.2, 3.2, 3.6), height=3.0) as axes:
        axes[0].imshow(grid.numpy(), cmap="gray", vmin=-0.2, vmax=1.2)
        axes[0].set(title=f"strength {INSIDE[1]}")
        axes[0].set_xticks([10 * place + 4.5 for place in range(6)], EDITS, rotation=30)
        axes[0].set_yticks([4.5, 14.5, 24.5], ["image", "edited", "target"])
        heat = axes[1].imshow(cosine_matrix(flat - flat.mean(0)).numpy(), cmap="RdBu", vmin=-1, vmax=1)
        axes[1].figure.colorbar(heat, ax=axes[1], shrink=0.8)
        axes[1].set(title="cosine of generated matrices")
        ends = [40 * place + 20 for place in range(6)]
        axes[1].set_xticks(ends, EDITS, rotation=60)
        axes[1].set_yticks(ends, EDITS)
        for axis in axes[:2]:
            axis.grid(visible=False)
        for place, method in enumerate(results.methods):
            for name, shift, colour in (("inside", -0.2, "#0072B2"), ("outside", 0.2, "#a8a8a8")):
                value = results.estimate(name, method)
                axes[2].barh(place + shift, value.mean, 0.38, color=colour, label=name if not place else None)
        axes[2].set_yticks(range(len(results.methods)), results.methods)
        axes[2].invert_yaxis()
        axes[2].set(xscale="log", xlabel="mean squared error, × 1000")
        axes[2].legend(title="strengths")


def report(results: Results, out: Path) -> None:
    """Print what came out, next to what was asked."""
    columns = [
        Column("trained", "trained numbers", ".0f"),
        Column("inside", "error"),
        Column("outside", "error outside"),
    ]
    columns += [Column("loss_shuffled", "shuffled"), Column("loss_averaged", "averaged")]
    columns += [Column("similarity_within", "alike within", ".2f"), Column("similarity_across", "across", ".2f")]
    notes = [
        "mean squared error on 500 held-out digits with six edits each, × 1000; alike: cosine of generated matrices"
    ]
    notes.append(f"an image left as it is: {results.estimate('unedited', OURS):.1f}")
    criteria = []
    for other in (SHARED, MLP):
        gap = Estimate.of([1 - ours / results.values("inside", other)[seed] for seed, ours in inside(results).items()])
        criteria.append((f"at equal rank HY-WU's error is at least 20 % below {other}'s: {gap:.2f}", gap.mean >= 0.2))
    for other in (LARGE, FULL):
        notes.append(f"HY-WU's error minus that of {other}: {results.difference('inside', OURS, other):+.1f}")
    matched = results.values("loss_matched", OURS)
    for control in ("loss_shuffled", "loss_averaged"):
        factor = Estimate.of([results.values(control, OURS)[seed] / own for seed, own in matched.items()])
        criteria.append(
            (f"{control.removeprefix('loss_')} matrices are at least 3 times worse: {factor}", factor.mean >= 3)
        )
    similar = [results.estimate(f"similarity_{where}", OURS) for where in ("within", "across")]
    criteria.append(
        (
            f"matrices cluster by edit: {similar[0]:.2f} within, {similar[1]:.2f} across",
            similar[0].mean > similar[1].mean,
        )
    )
    for one, other in PAIRS:
        name = f"cosine_{one}_{other}"
        cosine, blind = (results.estimate(name, method) for method in (SHARED, HIDDEN))
        conflict = cosine.mean < 0 and not cosine.within_noise()
        criteria.append((f"gradients of {one} and {other} conflict in the shared LoRA: {cosine:.2f}", conflict))
        notes.append(f"their cosine where the instruction is hidden: {blind:.2f} for {one} and {other}")
    conclude(results, columns, criteria, out, claim="generated weights beat shared ones of equal rank", notes=notes)


def inside(results: Results) -> dict[int, float]:
    """Return HY-WU's error of every seed."""
    return results.values("inside", OURS)


def main() -> None:
    parser = arguments("hy_wu", "Weights generated per instruction, against weights shared by all.", seeds=3)
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of every run (%(default)s)")
    parser.add_argument("--pretraining", type=int, default=PRETRAINING, help="steps of the network (%(default)s)")
    parser.add_argument("--tune", action="store_true", help="choose learning rates on another seed first")
    parser.add_argument("--smollm2", action="store_true", help="also train a generator for SmolLM2-135M")
    options = parser.parse_args()
    common = {"steps": options.steps, "pretraining": options.pretraining}
    shared = {"common": common, "resume": options.resume, "workers": options.workers}
    run = partial(train_one, **common)
    rates = {name: settings["lr"] for name, settings in METHODS.items()}
    if options.tune:
        best = tune({name: {"lr": RATES} for name in METHODS}, TUNING_SEEDS, run, options.out, best="score", **shared)
        rates = {name: found["lr"] for name, found in best.items()}
        with replacing_file(options.out / "rates.json") as file:
            file.write_text(json.dumps(rates), "utf-8")
    methods = {name: {"method": name, "lr": rate} for name, rate in rates.items()}
    results = run_all(methods, range(options.seeds), run, options.out, watch="inside", **shared)
    draw(0, rates, **common, path=options.out / "hy_wu.png", results=results)
    report(results, options.out)
    if options.smollm2:
        report_smollm2(options.out)


if __name__ == "__main__":
    main()
