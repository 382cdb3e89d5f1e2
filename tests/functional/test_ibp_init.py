"""Weights that keep the width of boxes, and BatchNorm put in everywhere."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lightning_weights.errors import ShardedParameterError
from lightning_weights.functional.ibp_init import add_batchnorm_everywhere, ibp_init_
from lightning_weights.functional.intervals import interval_forward


def seeded():
    return torch.Generator().manual_seed(0)


def convolutional():
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 5), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 4, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10), nn.Identity()),
    )


class Residual(nn.Module):
    """One layer of each kind: one operation, none and two operations behind a sum."""

    def __init__(self):
        super().__init__()
        for name in ("first", "second", "behind", "direct", "far", "shifted", "out"):
            self.add_module(name, nn.Linear(64, 64))
        self.norm = nn.BatchNorm1d(64)

    def forward(self, x):
        x = self.first(x)
        x = torch.relu(x + self.second(x))
        x = x.add(self.behind(x))
        x = self.direct(x)
        x += self.second(x)  # the operation on the sum may be a layer
        x = self.far(self.norm(x).relu())
        x = self.shifted((x + 1).relu())
        return self.out((x + self.first(x)).relu())


@pytest.mark.parametrize("output_layer", [None, "9", "module"])
def test_standard_deviations(output_layer):
    net = convolutional()
    before = copy.deepcopy(net.state_dict())
    output_layer = net[9] if output_layer == "module" else output_layer
    sigmas = ibp_init_(net, output_layer=output_layer, generator=seeded())
    inputs = {"0.weight": 3 * 25, "3.weight": 16 * 9, "6.weight": 128}
    assert sigmas == pytest.approx({name: math.sqrt(2 * math.pi) / n for name, n in inputs.items()})
    for name, value in net.state_dict().items():
        if name in inputs:
            assert value.std().item() == pytest.approx(sigmas[name], rel=0.05)
            assert abs(value.mean()) < 0.1 * sigmas[name]
        else:
            assert torch.equal(value, before[name]), name


def test_same_generator_same_weights():
    nets = [convolutional(), convolutional()]
    state = torch.get_rng_state()
    for net in nets:
        ibp_init_(net, generator=seeded())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(nets[0][i].weight, nets[1][i].weight) for i in (0, 3, 6))


def test_width_is_kept():
    """Seven layers of 256: the box grows to twice its width, all of it in the first layer, against 10⁴ by default."""
    growth = {}
    for init in (True, False):
        net = nn.Sequential(*(layer for _ in range(7) for layer in (nn.Linear(256, 256), nn.ReLU())), nn.Linear(256, 2))
        if init:
            ibp_init_(net, generator=seeded())
        x = torch.randn(32, 256, generator=seeded())
        out = interval_forward(net, x, x - 1e-3, x + 1e-3)
        growth[init] = out.preactivations[-1].radius.mean().item() / 1e-3
    assert 1 < growth[True] < 4
    assert growth[False] > 1e4


def test_weights_behind_sums_are_halved():
    full = math.sqrt(2 * math.pi) / 64
    net = Residual()
    sigmas = ibp_init_(net, generator=seeded())
    expected = dict.fromkeys(("first", "direct", "far", "shifted"), full) | {"behind": full / 2, "second": full / 2}
    assert sigmas == pytest.approx({f"{name}.weight": sigma for name, sigma in expected.items()})
    assert net.behind.weight.std().item() == pytest.approx(full / 2, rel=0.05)
    assert set(ibp_init_(Residual(), halve_after_add=False).values()) == {full}


def test_what_cannot_be_traced_needs_names():
    class Branching(nn.Sequential):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    net = Branching(nn.Linear(64, 64), nn.Linear(64, 4))
    with pytest.raises(ValueError, match="cannot be traced"):
        ibp_init_(net)
    assert list(ibp_init_(net, output_layer="1", halve_after_add=False)) == ["0.weight"]


@pytest.mark.parametrize("given", ["head", nn.Linear(1, 1), 3])
def test_unknown_output_layers(given):
    with pytest.raises(ValueError, match=r"output_layer is .*allowed are the modules of the network: 0, 1"):
        ibp_init_(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), output_layer=given)


def test_heads_that_are_functions_need_a_name():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 3))

        def forward(self, x):
            return nn.functional.linear(x, self.weight)

    with pytest.raises(ValueError, match="output_layer="):
        ibp_init_(Functional())


def test_refusals_change_nothing():
    net = convolutional()
    before = copy.deepcopy(net.state_dict())
    net[6].weight.placements = ()
    with pytest.raises(ShardedParameterError, match=r"'6.weight' is sharded"):
        ibp_init_(net)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    net = convolutional()
    parametrize.register_parametrization(net[6], "weight", nn.Identity())
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="'6' is parametrized"):
        ibp_init_(net)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_batch_norm_everywhere():
    relu = nn.ReLU()  # one module in two places
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), relu, nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), relu, nn.Conv2d(5, 6, 1)),
        *(nn.Flatten(), nn.Linear(24, 7), relu, nn.Linear(7, 3)),
    ).eval()
    before = copy.deepcopy(net.state_dict())
    made = add_batchnorm_everywhere(net)
    kinds = [type(m).__name__ for m in made.modules() if not isinstance(m, nn.Sequential)]
    assert kinds == [
        *("Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "Conv2d", "BatchNorm2d"),
        *("Flatten", "Linear", "BatchNorm1d", "Linear"),
    ]
    assert [len(made), len(made[0])] == [6, 8]
    assert not any(module.training for module in made.modules())
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    x = torch.randn(2, 1, 6, 6)
    for module in made.modules():  # with ε = 0 a fresh BatchNorm in evaluation mode changes nothing
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eps = 0.0
    net[0][3].eps = 0.0
    torch.testing.assert_close(made(x), net(x))
    again = add_batchnorm_everywhere(made)
    assert str(again) == str(made)


def test_names_are_kept():
    net = nn.Sequential()
    for name, layer in (("conv", nn.Conv1d(2, 3, 1)), ("act", nn.ReLU()), ("flat", nn.Flatten())):
        net.add_module(name, layer)
    net.add_module("head", nn.Linear(3, 2, dtype=torch.float64))
    made = add_batchnorm_everywhere(net.double())
    assert list(dict(made.named_children())) == ["conv", "conv_norm", "act", "flat", "head"]
    assert made.conv_norm.weight.dtype == torch.float64
    assert made(torch.randn(4, 2, 1, dtype=torch.float64)).shape == (4, 2)


def test_a_name_that_is_taken_is_not_taken_again():
    net = nn.Sequential()
    for name, layer in (("a", nn.Linear(2, 3)), ("relu", nn.ReLU()), ("a_norm", nn.Linear(3, 2))):
        net.add_module(name, layer)
    assert list(dict(add_batchnorm_everywhere(net).named_children())) == ["a", "a_norm_", "relu", "a_norm"]


def test_batch_norm_behind_dropout_is_seen():
    net = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    assert str(add_batchnorm_everywhere(net)) == str(net)


@pytest.mark.parametrize("inside", [False, True])
def test_transposed_convolutions_are_refused(inside):
    layer = nn.ConvTranspose2d(1, 2, 3)
    net = nn.Sequential(nn.Sequential(layer) if inside else layer, nn.Flatten(), nn.Linear(32, 2))
    for change in (add_batchnorm_everywhere, lambda net: ibp_init_(net, output_layer="2", halve_after_add=False)):
        with pytest.raises(ValueError, match="0 is a ConvTranspose2d"):
            change(net)


def test_a_sum_with_a_parameter_is_no_residual_one():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(64))
            self.hidden, self.out = nn.Linear(64, 64), nn.Linear(64, 2)

        def forward(self, x):
            return self.out(self.hidden((x + self.shift).relu()).relu())

    assert ibp_init_(Shifted()) == pytest.approx({"hidden.weight": math.sqrt(2 * math.pi) / 64})


class Backwards(nn.Sequential):
    """A Sequential whose layers run in another order."""

    def forward(self, x):
        for layer in reversed(self):
            x = layer(x)
        return x


@pytest.mark.parametrize(
    "net",
    [
        Residual(),
        nn.Sequential(nn.Linear(64, 64), Residual(), nn.Linear(64, 2)),
        Backwards(nn.Linear(4, 2), nn.Linear(4, 4)),
        nn.Sequential(Backwards(nn.Linear(4, 2), nn.Linear(4, 4)), nn.Linear(2, 2)),
    ],
)
def test_opaque_modules_are_refused(net):
    with pytest.raises(ValueError, match=r"is a (Residual|Backwards)"):
        add_batchnorm_everywhere(net)
