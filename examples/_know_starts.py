"""Weights that a second training begins with, all made from the same snapshots of forgetting."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from lightning_weights.functional.weight_extrapolation import fit_coefficients, mean_coefficients, shrink_coefficients
from lightning_weights.modules import KNOWNBank, LinearExtrapolation, Snapshot, predict_overflowed
from lightning_weights.modules.weight_kinds import weight_kinds

SESSIONS = 5
NETWORK = "network."  # what a Classifier calls the network in it
RULES: dict[str, Callable[[], Tensor]] = {
    "shrink 0.93": lambda: shrink_coefficients(SESSIONS, 0.93),
    "shrink 0.8": lambda: shrink_coefficients(SESSIONS, 0.8),
    "mean": lambda: mean_coefficients(SESSIONS),
    "linear": lambda: fit_coefficients(SESSIONS, points=2),
}
Weights = dict[str, Tensor]


@cache
def bank_of(rule: str, bank: str) -> KNOWNBank:
    """Return the hyper-models of a bank, or a rule made by hand in their place."""
    if rule == "bank":
        return KNOWNBank.from_pretrained(bank)
    return KNOWNBank(*(LinearExtrapolation(RULES[rule]()) for _ in range(3)))


def predicted(snapshots: Sequence[Snapshot], rule: str, recursions: int, bank: str) -> Weights:
    """Return weights that a rule or a bank predicts from snapshots, most forgotten first.

    Args:
        snapshots: Snapshots of a Classifier.
        rule: ``bank``, or a rule made by hand.
        recursions: How often it is applied; 0 leaves the newest snapshot.
        bank: Name or file of the bank.
    """
    weights = predict_overflowed(snapshots, bank_of(rule, bank), recursions)
    return {name.removeprefix(NETWORK): tensor for name, tensor in weights.items()}


def part_of(new: Mapping[str, Tensor], old: Mapping[str, Tensor], part: str) -> Weights:
    r"""Return what one part of a prediction makes of the weights.

    With the factor f = ⟨new, old⟩ / ⟨old, old⟩ of each tensor, a prediction is the sum of f · old, its ``size``, and of
    new - f · old, which is at right angles to the old weights; old + (new - f · old) is its ``direction``. What is not
    predicted stays.

    Args:
        new: The prediction.
        old: The weights before it.
        part: ``size`` or ``direction``.
    """
    weights = dict(new)
    for name in weight_kinds(old):
        tensor = new[name]
        factor = (tensor * old[name]).sum() / old[name].square().sum()
        scaled = factor * old[name]
        weights[name] = scaled if part == "size" else old[name] + (tensor - scaled)
    return weights


def size_of(new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> float:
    """Return the factor f of all predicted tensors, at which f times the old weights are closest to the new ones."""
    a, b = (torch.cat([weights[name].flatten() for name in weight_kinds(old)]) for weights in (new, old))
    return float(a @ b / (b @ b))
