"""Do weights of 2 to 4 bits stop jumping between two levels, and does the accuracy gain from it?

A small vision transformer on digits, trained at full precision and then for 25 epochs with few bits in all weights
between the edges, taught by its full-precision copy: learned scales (LSQ), scales from statistics (StatsQ), StatsQ with
the query-key product in one piece (QKR), and torchao's quantization-aware training, if it is installed. Then 5 epochs
at a constant rate, with confidence-guided annealing (CGA) and without. Flips are codes that a step changes, a mean over
the last 100 steps; a weight oscillates if its average frequency is above 0.005.

    python examples/ofq.py                     # three seeds, 2 bits
    python examples/ofq.py --bits 2 3 4        # three times as long
    python examples/ofq.py --first-seed 10 --seeds 5

Nothing is tuned: rates and lengths are the same for all methods, and the boundary range is the paper's.
"""

import shutil
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import torch
from _harness import Column, Results, Settings, arguments, conclude, run_all
from _plots import draw_bars, looks, plot
from _quantized_vit import (
    EPOCHS,
    RATES,
    accuracy,
    digits,
    kept,
    own_codes,
    prepare_torchao,
    pretrained,
    torchao_codes,
    train,
)
from torch import Tensor, nn

from lightning_weights.callbacks import OFQ, ConfidenceGuidedAnnealing
from lightning_weights.functional.ofq import lsq, lsq_step, stats_codes, statsq

BITS = (2,)
MORE, RANGE = 5, 0.005  # epochs that follow, and the boundary range in them
LSQ, TORCHAO, STATSQ, QKR = "LSQ", "torchao QAT", "StatsQ", "StatsQ + QKR"
LONGER, CGA, BOTH = "StatsQ, 5 epochs more", "StatsQ, then CGA", "StatsQ + QKR, then CGA"
# in the order in which they run: those that others go on from come first
METHODS: dict[str, Settings] = {
    STATSQ: {},
    QKR: {"qkr": True},
    LSQ: {"weight_quantizer": "lsq"},
    TORCHAO: {"torchao": True},
    LONGER: {"more": True},
    CGA: {"more": True, "annealed": True},
    BOTH: {"qkr": True, "more": True, "annealed": True},
}
BASELINES = (LSQ, TORCHAO, LONGER)
TOY = {"rows": 256, "columns": 16, "steps": 3000, "seen": 1000}
TOY_RATES = (0.003, 0.01)


def quantizer(settings: Settings, bits: int) -> OFQ:
    """Return what quantizes the weights between the edges; the loss with the teacher is the module's own."""
    chosen = {name: settings[name] for name in ("weight_quantizer", "qkr") if name in settings}
    return OFQ(weight_bits=bits, edge_bits=None, distillation=0.0, track_oscillation=False, **chosen)


def quantize_and_train(name: str, bits: int, seed: int, epochs: int, folder: Path) -> list[dict]:
    """Train with few bits and return the weights and what was measured."""
    settings = METHODS[name]
    network, teacher = (pretrained(seed, epochs, folder) for _ in range(2))
    callbacks, codes = [], own_codes
    if settings.get("torchao"):
        prepare_torchao(network, bits)
        codes = torchao_codes
    else:
        callbacks = [quantizer(settings, bits)]
        callbacks[0].attach(network)
    found = {"direct": accuracy(network, *digits(seed).load()[2:])}
    watch = train(network, teacher, seed, epochs, RATES, codes, callbacks)
    return [network.state_dict(), {**found, **watch.summary(), **watch.path(epochs)}]


def train_one(
    settings: Settings, seed: int, folder: Path, bits: Sequence[int] = BITS, epochs: int = EPOCHS
) -> dict[str, float]:
    """Train with all bits and measure."""
    settings = {**METHODS[settings["method"]], **settings}
    name = settings["method"] if not settings.get("more") else QKR if settings.get("qkr") else STATSQ
    found = {}
    for b in bits:
        path = folder / f"{name}-{b}-{epochs}-{seed}.pt"
        weights, metrics = kept(path, partial(quantize_and_train, name, b, seed, epochs, folder))
        if settings.get("more"):
            metrics = go_on(settings, b, seed, epochs, folder, weights) | {"direct": metrics["direct"]}
        found |= {f"{metric}_{b}": value for metric, value in metrics.items()}
    if settings["method"] in (LSQ, STATSQ):
        found |= {f"jitter_{b}_{rate}": scale_jitter(settings, b, rate, seed) for b, rate in toy_cases(bits)}
    return found


def go_on(
    settings: Settings, bits: int, seed: int, epochs: int, folder: Path, weights: dict[str, Tensor]
) -> dict[str, float]:
    """Train on at a constant rate, annealed or not."""
    network, teacher = (pretrained(seed, epochs, folder) for _ in range(2))
    ofq = quantizer(settings, bits)
    ofq.attach(network)
    network.load_state_dict(weights)
    more, rate = min(MORE, epochs), RATES[1]
    callbacks = [ofq]
    if settings.get("annealed"):
        callbacks.append(ConfidenceGuidedAnnealing(RANGE, start_epoch=0, lr=rate))
    watch = train(network, teacher, seed, more, (rate, rate), own_codes, callbacks)
    return {**watch.summary(), **watch.path(more, epochs)}


def toy_cases(bits: Sequence[int]) -> list[tuple[int, float]]:
    """Return bits and rates of the linear regressions."""
    return list(product(bits[:2], TOY_RATES))


def scale_jitter(settings: Settings, bits: int, rate: float, seed: int) -> float:
    """Fit linear regressions with quantized weights and return the relative deviation of their scales over time."""
    torch.manual_seed(seed)
    learned = "weight_quantizer" in settings
    rows, columns = TOY["rows"], TOY["columns"]
    target = torch.randn(rows, columns)
    weight = nn.Parameter(target.clone())
    step = nn.Parameter(lsq_step(target, bits, True, 0))
    optimizer = torch.optim.SGD([weight, step] if learned else [weight], lr=rate, momentum=0.9)
    scales = []
    for index in range(TOY["steps"]):
        x = torch.randn(rows, 8, columns)
        quantized = lsq(weight, step, bits, True, 0) if learned else statsq(weight, bits)
        error = (x @ (quantized - target).unsqueeze(2)).squeeze(2)
        optimizer.zero_grad()
        error.square().mean(1).sum().div(2).backward()
        optimizer.step()
        if index >= TOY["steps"] - TOY["seen"]:
            scales.append(step.detach().clone() if learned else stats_codes(weight.detach(), bits).step)
    history = torch.stack(scales)
    return float((history.std(0) / history.mean(0)).mean())


def draw(results: Results, path: Path, bits: int, epochs: int) -> None:
    """Draw oscillation over the epochs, and where flips and accuracy end, for one number of bits."""
    with plot(path, widths=(4.8, 4.2, 2.8), height=3.4) as axes:
        for method, look in looks(results, BASELINES).items():
            known = [f"oscillating_at_{epoch}_{bits}" for epoch in range(1, epochs + MORE + 1)]
            metrics = results.runs[[run.method for run in results.runs].index(method)].metrics
            places = [place for place, metric in enumerate(known, 1) if metric in metrics]
            means = [results.estimate(known[place - 1], method).mean for place in places]
            axes[0].plot(places, means, label=method, linewidth=1.3, markersize=3, **look)
        axes[0].set(title=f"{bits} bits", xlabel="epoch", ylabel="oscillating weights, %")
        axes[0].legend()
        draw_bars(axes[1], results, f"flips_{bits}", BASELINES, spec=".3f")
        axes[1].set(title=f"{bits} bits", xlabel="codes that a step changes, %")
        draw_bars(axes[2], results, f"last_{bits}", BASELINES)
        means = [results.estimate(f"last_{bits}", method).mean for method in results.methods]
        axes[2].set(title=f"{bits} bits", xlabel="accuracy, %", xlim=(min(means) - 3, max(means) + 2))
        axes[2].set(yticklabels=[])


def report(results: Results, bits: Sequence[int], out: Path) -> None:
    """Print what came out, next to what was asked."""
    fewest = bits[0]
    notes = ["accuracy on 500 held-out images, mean of the last 5 epochs; flips and oscillating weights in %"]
    for b in bits:
        shown = [f"{method} {results.estimate(f'direct_{b}', method)}" for method in results.methods[:4]]
        notes.append(f"accuracy with {b} bits before any training: {', '.join(shown)}")
        for other in (LSQ, TORCHAO, STATSQ):
            if other in results.methods:
                gains = {m: results.difference(f"last_{b}", m, other) for m in (STATSQ, QKR, CGA) if m != other}
                text = ", ".join(
                    f"{m} {gain:+.2f}{' (noise)' if gain.within_noise() else ''}" for m, gain in gains.items()
                )
                notes.append(f"{b} bits, points of accuracy more than {other}: {text}")
    criteria = []
    for b, rate in toy_cases(bits):
        jitter = {m: results.estimate(f"jitter_{b}_{rate}", m) for m in (STATSQ, LSQ)}
        text = f"toy, {b} bits, rate {rate:g}: scales of StatsQ jitter at most 0.6 times as much as those of LSQ"
        shown = f"{jitter[STATSQ]:.4f} to {jitter[LSQ]:.4f}"
        criteria.append((f"{text}: {shown}", jitter[STATSQ].mean <= 0.6 * jitter[LSQ].mean))
    for metric, title in (("flips", "flips"), ("oscillating", "oscillating weights")):
        pairs = {m: results.estimate(f"{metric}_{fewest}", m).mean for m in (CGA, LONGER)}
        text = f"CGA halves the {title} of {fewest}-bit weights: {pairs[CGA]:.3f} to {pairs[LONGER]:.3f} %"
        criteria.append((text, pairs[CGA] <= pairs[LONGER] / 2))
    gain = results.difference(f"last_{fewest}", CGA, LONGER)
    criteria.append((f"and costs at most half a point of accuracy: {gain:+.2f}", gain.mean >= -0.5))
    for other, least in ((TORCHAO, 0.0), (LSQ, -0.5)):
        if other in results.methods:
            gain = results.difference(f"last_{fewest}", STATSQ, other)
            text = f"{fewest}-bit StatsQ against {other}, at least {least:+.1f} points: {gain:+.2f}"
            criteria.append((text, gain.mean >= least))
    columns = [Column(f"last_{b}", f"{b} bits: accuracy", ".2f") for b in bits]
    columns += [Column(f"flips_{b}", f"{b} bits: flips", ".3f") for b in bits]
    columns += [Column(f"oscillating_{b}", f"{b} bits: oscillating", ".2f") for b in bits]
    claim = "scales that do not wander, and annealing that stops the oscillation without loss of accuracy"
    conclude(results, columns, criteria, out, claim=claim, notes=notes)


def main() -> None:
    parser = arguments("ofq", "Few-bit weights: learned scales, statistics, QKR and annealing.", seeds=3)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs with few bits (%(default)s)")
    parser.add_argument("--bits", type=int, nargs="+", default=BITS, help="bits of weights (%(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, help="where seeds are counted from (%(default)s)")
    options = parser.parse_args()
    common = {"epochs": options.epochs, "bits": list(options.bits)}
    chosen = {method: {"method": method} for method in METHODS if method != TORCHAO or find_spec("torchao")}
    shared = {"common": common, "resume": options.resume, "workers": options.workers}
    weights = options.out / ".weights"
    if not options.resume:
        shutil.rmtree(weights, ignore_errors=True)
    run = partial(train_one, folder=weights, **common)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    results = run_all(chosen, seeds, run, options.out, watch=f"accuracy_{options.bits[0]}", **shared)
    draw(results, options.out / "ofq.png", options.bits[0], options.epochs)
    report(results, options.bits, options.out)


if __name__ == "__main__":
    main()
