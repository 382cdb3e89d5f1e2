"""Learning from labels and a teacher."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_weights.modules import KDLoss


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(("hard", "soft"), [(1.0, 1.0), (0.5, 2.0), (0.0, 1.0), (1.0, 0.0)])
def test_sum_of_two_cross_entropies(hard, soft, temperature):
    teacher, x, y = nn.Linear(4, 3), torch.randn(6, 4), torch.randint(3, (6,))
    logits = torch.randn(6, 3, requires_grad=True)
    loss = KDLoss(teacher, hard, soft, temperature)(x, logits, y)
    wanted = F.softmax(teacher(x) / temperature, dim=1)
    want = hard * F.cross_entropy(logits, y) + soft * F.cross_entropy(logits / temperature, wanted)
    torch.testing.assert_close(loss, want)
    for got, expected in zip(torch.autograd.grad(loss, logits), torch.autograd.grad(want, logits), strict=True):
        torch.testing.assert_close(got, expected)


def test_two_heads_have_a_target_each():
    teacher, x, y = nn.Linear(4, 3), torch.randn(6, 4), torch.randint(3, (6,))
    one, other = torch.randn(6, 3), torch.randn(6, 3)
    want = 2 * F.cross_entropy(one, y) + 0.5 * F.cross_entropy(other, F.softmax(teacher(x), dim=1))
    torch.testing.assert_close(KDLoss(teacher, hard=2.0, soft=0.5)(x, (one, other), y), want)


def test_the_teacher_is_no_part_of_the_loss():
    teacher = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    loss = KDLoss(teacher)
    assert loss.state_dict() == {}
    assert list(loss.parameters()) == []
    assert list(loss.modules()) == [loss]
    loss.train()
    assert not loss.teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert copy.deepcopy(loss).teacher is not teacher


@pytest.mark.parametrize("argument", ["hard", "soft", "temperature"])
def test_bad_input(argument):
    with pytest.raises(ValueError, match=f"{argument} is -1"):
        KDLoss(nn.Identity(), **{argument: -1})
    with pytest.raises(ValueError, match="at most one weight of zero"):
        KDLoss(nn.Identity(), hard=0.0, soft=0.0)
