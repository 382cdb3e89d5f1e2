"""What the examples of quantization share: one layer with made-up inputs, and SmolLM2-135M as a whole."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _harness import Settings
from _smollm2 import SOURCE, pretrained
from torch import Tensor, nn

from lightning_weights.data import CausalText
from lightning_weights.functional.column_solver import (
    CompensationConfig,
    FOEMConfig,
    InputStatistics,
    quantize_weight,
)
from lightning_weights.modules import QuantizedLinear
from lightning_weights.modules.quantization import quantize

GRID = {  # groups as long as the solver's blocks, so that no scale is searched on columns that will still change
    "grid": "gptq",
    "sym": False,
    "mse_clip": False,
    "group_size": 64,
    "block_size": 64,
    "act_order": True,
    "damp": 0.01,
}
INPUTS, OUTPUTS, HELD_OUT_INPUTS = 256, 96, 4096
LENGTH, CALIBRATION, HELD_OUT = 256, 12, 8  # tokens of a sequence, and sequences of SmolLM2
BLOCKS = "model.layers"
DEPTHS = (6, 12, 18, 24, 30)  # blocks whose outputs are compared


def config_of(settings: Settings) -> CompensationConfig:
    """Return the solver's configuration: FOEM's where there is a β."""
    return FOEMConfig(**settings) if "beta" in settings else CompensationConfig(**settings)


class MadeUpLayer(NamedTuple):
    """A layer, what goes into it in the full-precision network, and what does after quantized layers, one row each."""

    weight: Tensor
    full: Tensor
    quantized: Tensor
    held_out_full: Tensor
    held_out_quantized: Tensor


def made_up_layer(seed: int, tokens: int, noise: float) -> MadeUpLayer:
    """Return a random layer, whose inputs vary along few directions, and are disturbed linearly.

    Args:
        seed: Seed of all of it.
        tokens: Number of calibration inputs.
        noise: ε, how much earlier quantized layers have changed the inputs.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    basis = torch.linalg.qr(normal(INPUTS, INPUTS))[0]
    spread = torch.arange(1, INPUTS + 1) ** -0.3  # square roots of the eigenvalues
    disturb = torch.eye(INPUTS) + noise * normal(INPUTS, INPUTS) / math.sqrt(INPUTS)
    weight = normal(OUTPUTS, INPUTS)
    full, held_out = (normal(count, INPUTS) * spread @ basis.T for count in (tokens, HELD_OUT_INPUTS))
    return MadeUpLayer(weight, full, full @ disturb, held_out, held_out @ disturb)


def layer_errors(layer: MadeUpLayer, config: CompensationConfig) -> dict[str, float]:
    """Quantize and return squared errors of the outputs, relative to the square of those in full precision."""
    statistics = InputStatistics(INPUTS, config.asymmetric)
    statistics.update(layer.quantized, layer.full if config.asymmetric else None)
    quantized = quantize_weight(layer.weight, statistics.hessian, statistics.asymmetry, config=config).dequantized
    pairs = {
        "calibration": (layer.quantized, layer.full),
        "held-out": (layer.held_out_quantized, layer.held_out_full),
    }
    found = {}
    for name, (x, full) in pairs.items():
        target = full @ layer.weight.T
        found[name] = float((x @ quantized.T - target).square().sum() / target.square().sum())
    return found


@cache
def _text() -> tuple[Tensor, Tensor]:
    """Return the training and validation sequences of Python's documentation, which share no document."""
    train, validation, _ = CausalText(tokenizer=SOURCE, length=LENGTH, shuffle=False).load()
    return train.input_ids, validation.input_ids[:HELD_OUT]


def calibration_batches(seed: int) -> list[dict[str, Tensor]]:
    """Return the sequences that a seed draws from the training part, four to a batch."""
    tokens = _text()[0]
    chosen = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))[:CALIBRATION]
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in tokens[chosen].split(4)]


@torch.no_grad()
def run_held_out(model: nn.Module) -> tuple[float, dict[int, Tensor]]:
    """Return the loss on the held-out sequences, and what comes out of some of the blocks."""
    outputs: dict[int, list[Tensor]] = {depth: [] for depth in DEPTHS}

    def keep(depth: int) -> Any:
        return lambda block, inputs, output: outputs[depth].append(output if isinstance(output, Tensor) else output[0])

    handles = [model.get_submodule(f"{BLOCKS}.{depth - 1}").register_forward_hook(keep(depth)) for depth in DEPTHS]
    losses = [model(input_ids=part, labels=part, use_cache=False).loss for part in _text()[1].split(4)]
    for handle in handles:
        handle.remove()
    return float(torch.stack(losses).mean()), {depth: torch.cat(parts) for depth, parts in outputs.items()}


@cache
def full_precision() -> tuple[float, dict[int, Tensor]]:
    """Return what ``run_held_out`` does before anything is quantized."""
    return run_held_out(pretrained().model.eval())


def quantize_smollm2(settings: Settings, seed: int) -> dict[str, float]:
    """Quantize all linear layers of all blocks, and measure on text that was not calibrated on.

    Args:
        settings: Those of the solver.
        seed: Chooses the calibration sequences; the held-out ones are always the same.

    Returns:
        Perplexities, relative squared errors of the blocks' outputs, mean relative error of the layers on their
        calibration inputs, seconds and peak memory of the quantization, size of the quantized layers as a share of
        bfloat16.
    """
    if settings.get("method") == "rtn":
        seed = 0  # it looks at no data
    return dict(_quantize_smollm2(tuple(settings.items()), seed))


@cache
def _quantize_smollm2(settings: tuple[tuple[str, Any], ...], seed: int) -> dict[str, float]:
    loss, outputs = full_precision()
    model, batches = pretrained().model.eval(), calibration_batches(seed)
    with peak_memory() as memory:
        report = quantize(model, batches, config_of(dict(settings)), blocks=BLOCKS, export="packed", progress=False)
    own_loss, own_outputs = run_held_out(model)
    layers = [layer for layer in model.modules() if isinstance(layer, QuantizedLinear)]
    size = sum(tensor.numel() * tensor.element_size() for layer in layers for tensor in layer.state_dict().values())
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    found = {"perplexity": math.exp(own_loss), "full precision": math.exp(loss), "bits": 8 * size / weights}
    for depth in DEPTHS:
        difference = (own_outputs[depth] - outputs[depth]).square().sum()
        found[f"error of block {depth}"] = float(difference / outputs[depth].square().sum())
    found |= {"error of layers": report.mean_relative_error, "solve seconds": report.seconds}
    return {**found, "gigabytes": memory["gigabytes"], "share of bfloat16": size / (2 * weights)}


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Measure the most memory that the process held meanwhile, on Linux; NaN elsewhere."""
    found = {"gigabytes": math.nan}
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if status.exists():
        reset.write_text("5")  # the peak starts from what is held now
    yield found
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        found["gigabytes"] = int(line.split()[1]) / 2**20
