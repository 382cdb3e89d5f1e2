"""Groups that are split off an optimizer, and the schedulers that exist by then."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from lightning_weights.callbacks._parameter_groups import move_to_own_group

SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 8),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=8),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, base_lr=0.01, max_lr=0.1, step_size_up=3),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.8)], milestones=[2]
    ),
}


def parts():
    first, second = nn.Linear(3, 2), nn.Linear(2, 2)
    return torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1, momentum=0.9), first, second


def test_schedules_reach_a_whole_group():
    first, second = nn.Linear(3, 2), nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": first.parameters()}, {"params": second.parameters()}], lr=0.1)
    scheduler = lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    move_to_own_group(optimizer, second.parameters(), [scheduler], lr_scale=0.1)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.005])
    assert scheduler.base_lrs == pytest.approx([0.1, 0.01])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedules_reach_the_new_group_in_proportion(name):
    optimizer, _, second = parts()
    scheduler = SCHEDULERS[name](optimizer)
    (group,) = move_to_own_group(optimizer, second.parameters(), [scheduler], lr_scale=0.5, momentum=0.8)
    reference, *_ = parts()
    alone = SCHEDULERS[name](reference)
    assert group["momentum"] == 0.8
    for _ in range(6):
        for one, schedule in ((optimizer, scheduler), (reference, alone)):
            one.step()
            schedule.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(reference.param_groups[0]["lr"])
        assert optimizer.param_groups[1]["lr"] == pytest.approx(0.5 * reference.param_groups[0]["lr"])
    assert len(scheduler.get_last_lr()) == 2


def test_a_plateau_lowers_all_groups_and_other_schedulers_are_left_alone():
    optimizer, first, _ = parts()
    other = lr_scheduler.StepLR(parts()[0], 1)
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.1, min_lr=[0.02])
    move_to_own_group(optimizer, first.parameters(), [other, plateau], lr_scale=0.5)
    for _ in range(3):
        plateau.step(1.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.01])
    assert len(other.base_lrs) == 1


def test_names_go_along_and_whole_groups_are_changed_in_place():
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.named_parameters(), lr=0.1, weight_decay=0.2)
    (group,) = move_to_own_group(optimizer, [layer.bias], weight_decay=0.0)
    assert [g["param_names"] for g in optimizer.param_groups] == [["weight"], ["bias"]]
    assert (group["weight_decay"], optimizer.param_groups[0]["weight_decay"]) == (0.0, 0.2)
    (whole,) = move_to_own_group(optimizer, [layer.weight], lr_scale=0.5, weight_decay=0.1)
    assert whole is optimizer.param_groups[0]
    assert (len(optimizer.param_groups), whole["lr"], whole["weight_decay"]) == (2, 0.05, 0.1)
    assert whole["params"] == [layer.weight]
    assert move_to_own_group(optimizer, [nn.Parameter(torch.ones(1))]) == []
