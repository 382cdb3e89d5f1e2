"""Rules of users."""

import pytest
import torch
from torch import nn

from lightning_weights.functional.intervals import Interval, interval_forward, monotone, register_interval_rule
from lightning_weights.functional.intervals.registry import find_rule


def test_subclasses_inherit_rules_with_their_forward():
    class Renamed(nn.Linear):
        pass

    class Doubled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    assert find_rule(Renamed(1, 1)) is find_rule(nn.Linear(1, 1))
    assert find_rule(Doubled(1, 1)) is None
    x, layer = torch.randn(4, 3), Doubled(3, 2)
    out = interval_forward(nn.Sequential(layer), x, x - 0.1, x + 0.1)
    radius = 2 * 0.1 * layer.weight.abs().sum(1).expand(4, 2)
    torch.testing.assert_close((out.clean, (out.upper - out.lower) / 2), (layer(x), radius))


def test_modules_with_a_rule_are_not_traced_into():
    class Cube(nn.Module):
        def forward(self, x):
            assert x.sum() < 1e9, "such a look at values cannot be traced"
            return x**3

    @register_interval_rule(Cube)
    def cube(apply, x):
        return Interval.between(apply(x.clean), apply(x.lower), apply(x.upper))

    x = torch.tensor([[-1.0, 2.0]])
    out = interval_forward(nn.Sequential(Cube()), x, x - 1, x + 1)
    assert (out.lower.tolist(), out.upper.tolist()) == ([[-8.0, 1.0]], [[0.0, 27.0]])


def test_functions_and_methods():
    class Arcs(nn.Module):
        def forward(self, x):
            return torch.arctan(x).asinh_()

    assert register_interval_rule(torch.arctan, monotone) is monotone
    register_interval_rule("asinh_", monotone)
    x = torch.tensor([[0.5]])
    out = interval_forward(Arcs(), x, x - 1, x + 1)
    torch.testing.assert_close(out.upper, (x + 1).arctan().asinh())


@pytest.mark.parametrize("op", [nn.ReLU(), 3, None])
def test_anything_else_is_refused(op):
    with pytest.raises(ValueError, match=r"op is .*allowed is a class of modules"):
        register_interval_rule(op, monotone)
