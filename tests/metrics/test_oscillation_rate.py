"""OscillationRate against a loop over plain integers, and what it refuses."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.metrics import OscillationRate


def by_hand(history: list[list[int]], momentum: float, threshold: float) -> dict[str, float]:
    """Follow the definition code by code."""
    flips = turns = restless = 0
    for codes in zip(*history, strict=True):
        f = last = 0
        for before, now in itertools.pairwise(codes):
            direction = (before > now) - (before < now)
            turned = direction != 0 and direction == -last
            flips, turns = flips + (direction != 0), turns + turned
            f = momentum * turned + (1 - momentum) * f
            last = direction or last
        restless += f > threshold
    size, steps = len(history[0]), len(history) - 1
    return {"flips": flips / (size * steps), "oscillating": restless / size, "oscillations": float(turns)}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(-2, 1), min_size=3, max_size=3), min_size=2, max_size=12))
def test_counts_what_the_definition_says(history):
    metric = OscillationRate(momentum=0.3, threshold=0.25)
    for codes in history:
        metric.update({"a": torch.tensor(codes[:1], dtype=torch.int8), "b": torch.tensor([codes[1:]])})
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found == pytest.approx(by_hand(history, 0.3, 0.25), abs=1e-6)


def test_constant_codes_do_not_oscillate_and_alternating_ones_always_do():
    still, restless = OscillationRate(momentum=0.1), OscillationRate(momentum=0.1, threshold=0.99)
    for step in range(60):
        still.update(torch.full((4,), 1))
        restless.update(torch.full((4,), step % 2))
    assert {name: float(value) for name, value in still.compute().items()} == dict.fromkeys(still.compute(), 0.0)
    assert float(restless.compute()["flips"]) == 1.0
    assert float(restless.compute()["oscillating"]) == 1.0
    assert float(restless.compute()["oscillations"]) == 4 * 58  # the first flip has no direction to turn from


def test_codes_have_to_be_the_same_integers_and_reset_begins_anew():
    metric = OscillationRate()
    assert float(metric.compute()["flips"]) == 0.0
    with pytest.raises(ValueError, match=r"codes are torch\.float32; allowed are integers"):
        metric.update(torch.zeros(3))
    metric.update(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="codes are 3 now and were 2 before"):
        metric.update(torch.tensor([0, 1, 1]))
    metric.update(torch.tensor([1, 1]))
    assert float(metric.compute()["flips"]) == 0.5
    metric.reset()
    metric.update(torch.tensor([0, 1, 1]))
    assert float(metric.compute()["flips"]) == 0.0


@pytest.mark.parametrize("arguments", [{"momentum": 0.0}, {"momentum": 1.5}, {"threshold": -0.1}])
def test_arguments_are_checked(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        OscillationRate(**arguments)
