"""The learning rate's way up and down."""

import math

import pytest
import torch

from lightning_weights.modules import WarmupCosine


def rates(epochs, lr=(0.1,), **options):
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in lr]
    optimizer = torch.optim.SGD(groups)
    scheduler, seen = WarmupCosine(optimizer, **options), []
    for _ in range(epochs):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return seen, scheduler


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_is_the_product_of_both(warmup):
    seen, _ = rates(8, max_epochs=8, warmup_epochs=warmup)
    up = [min(1.0, (epoch + 1) / (warmup + 1)) for epoch in range(8)]
    down = [(1 + math.cos(math.pi * epoch / 8)) / 2 for epoch in range(8)]
    assert [rate for (rate,) in seen] == pytest.approx([0.1 * a * b for a, b in zip(up, down, strict=True)])


def test_groups_keep_their_ratio_and_state_goes_on():
    straight, _ = rates(6, lr=(0.1, 0.4), max_epochs=6, warmup_epochs=2)
    assert all(second == pytest.approx(4 * first) for first, second in straight)
    _, half = rates(3, lr=(0.1, 0.4), max_epochs=6, warmup_epochs=2)
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": lr} for lr in (0.1, 0.4)])
    scheduler = WarmupCosine(optimizer, max_epochs=6, warmup_epochs=2)
    for group, rate in zip(optimizer.param_groups, straight[3], strict=True):
        group["lr"] = rate  # as an optimizer's own state brings it
    scheduler.load_state_dict(half.state_dict())
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(straight[4])


@pytest.mark.parametrize(("name", "value"), [("max_epochs", 0), ("warmup_epochs", -1)])
def test_bad_input(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        rates(1, **{"max_epochs": 2, name: value})
