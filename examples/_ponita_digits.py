"""Handwritten digits as graphs of superpixels: one run of a network in the plane."""

import torch
from _harness import Settings
from _ponita_training import SIZES, adam, fit, number_of_parameters

from lightning_weights.data import DigitSuperpixels
from lightning_weights.functional.evaluation_mode import evaluation_mode
from lightning_weights.modules import Ponita, PonitaClassifier

PNITA, PONITA = "PNITA", "PONITA"


@torch.no_grad()
def accuracy(model: PonitaClassifier, data: DigitSuperpixels) -> float:
    """Return the percentage of test digits that are classified right."""
    right = []
    with evaluation_mode(model):
        right = [model(batch).argmax(1) == batch["y"] for batch in data.test_dataloader()]
    return 100 * float(torch.cat(right).float().mean())


def classify_digits(name: str, settings: Settings, seed: int, epochs: int) -> dict[str, float]:
    """Train a classifier and measure."""
    data = DigitSuperpixels(seed=seed)
    mode = "bundle" if name == PONITA else "position"
    network = Ponita(1, out_scalars=10, dim=2, pooling="mean", mode=mode, multiple_readouts=False, **SIZES)
    model = PonitaClassifier(network, **adam(settings["lr"], epochs))
    fit(model, data, epochs)
    found = accuracy(model, data)
    return {"accuracy": found, "parameters": number_of_parameters(network), "score": found}
