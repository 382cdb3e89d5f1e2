"""Mixture layers against plain ones with the weights that they should have."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_weights.functional.mixture_growth import COEFFICIENT_INITS
from lightning_weights.modules import (
    MixtureBatchNorm1d,
    MixtureBatchNorm2d,
    MixtureConv1d,
    MixtureConv2d,
    MixtureLinear,
    TemplateBank,
    grow,
    set_mode,
)

LAYERS = {
    "linear": lambda **o: MixtureLinear(8, 6, **o),
    "stem": lambda **o: MixtureLinear(5, 6, split_in=False, **o),
    "head": lambda **o: MixtureLinear(8, 3, split_out=False, **o),
    "conv1d": lambda **o: MixtureConv1d(4, 6, 3, stride=2, padding=1, **o),
    "conv2d": lambda **o: MixtureConv2d(4, 6, (3, 1), padding=(1, 0), dilation=2, **o),
    "circular": lambda **o: MixtureConv1d(4, 6, 3, padding=1, padding_mode="circular", **o),
    "same": lambda **o: MixtureConv2d(4, 4, 3, padding="same", **o),
    "depthwise": lambda **o: MixtureConv2d(4, 8, 3, groups=4, **o),
    "stem 2d": lambda **o: MixtureConv2d(3, 8, 3, split_in=False, **o),
}
EACH = pytest.mark.parametrize("kind", LAYERS)


def sample(layer, mode):
    """Return an input for a mode."""
    whole = layer.in_features if isinstance(layer, MixtureLinear) else layer.in_channels
    channels = whole // 2 if layer.split_in and mode != "grown" else whole
    sides = {1: (), 2: (7,), 3: (7, 6)}[1 if isinstance(layer, MixtureLinear) else 1 + len(layer.kernel_size)]
    return torch.randn(2, channels, *sides)


def mixed(layer, block):
    """Return a block's weight, in the simplest way."""
    templates = layer.bank.sets[layer.template_sets[block]]
    return sum(factor * template for factor, template in zip(layer.coefficients[block], templates, strict=True))


@EACH
@pytest.mark.parametrize("bias", [False, True])
def test_members_are_plain_layers_of_half_the_width(kind, bias):
    layer = LAYERS[kind](bias=bias, num_templates=3)
    for member in (0, 1):
        layer.mode = f"member{member}"
        plain = layer.plain()
        assert type(plain) in (nn.Linear, nn.Conv1d, nn.Conv2d)
        torch.testing.assert_close(plain.weight, mixed(layer, member))
        x = sample(layer, layer.mode)
        assert torch.equal(layer(x), plain(x))
        assert (plain.bias is not None) is bias


@EACH
def test_grown_blocks_stand_where_they_belong(kind):
    layer = LAYERS[kind](num_templates=3, template_sets=(0, 1, 1, 0))
    layer.mode = "grown"
    blocks = [mixed(layer, block) for block in range(len(layer.order))]
    if len(blocks) == 4:
        wanted = torch.cat([torch.cat([blocks[0], blocks[2]], 1), torch.cat([blocks[3], blocks[1]], 1)])
    else:
        wanted = torch.cat(blocks, 0 if layer.split_out else 1)
    torch.testing.assert_close(layer.weight, wanted)
    x = sample(layer, "grown")
    assert torch.equal(layer(x), layer.plain()(x))


@EACH
def test_gradients_reach_one_member_and_then_all(kind):
    layer = LAYERS[kind](bias=True)
    layer(sample(layer, "member0")).sum().backward()
    idle = [layer.bank.sets[1], layer.biases[1], *list(layer.coefficients)[1:]]
    assert all(param.grad is None for param in idle)
    assert all(param.grad is not None for param in (layer.bank.sets[0], layer.coefficients[0], layer.biases[0]))
    grow(layer)
    layer(sample(layer, "grown")).sum().backward()
    assert all(param.grad is not None for param in layer.parameters())


@pytest.mark.parametrize("init", COEFFICIENT_INITS)
@pytest.mark.parametrize("sets", [(0, 1, 0, 1), (0, 1, 1, 0)])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d"])
def test_growth_keeps_every_bit_of_the_members(init, sets, kind):
    layer = LAYERS[kind](template_sets=sets, num_templates=3)
    members = []
    for member in ("member0", "member1"):
        set_mode(layer, member)
        members.append(layer.weight)
    grow(layer, init, coefficient_scale=0.7)
    o, i = members[0].shape[:2]
    weight = layer.weight
    assert torch.equal(weight[:o, :i], members[0])
    assert torch.equal(weight[o:, i:], members[1])
    upper, lower = weight[:o, i:], weight[o:, :i]
    if init == "zero":
        assert not torch.stack([upper, lower]).any()
    if init == "copy":
        grow(layer, init, coefficient_scale=0.0)
        first, second = members if sets[2] == 0 else reversed(members)
        assert torch.equal(layer.weight[:o, i:], first)
        assert torch.equal(layer.weight[o:, :i], second)


def test_checkpoints_and_copies_know_the_mode():
    layer = nn.Sequential(MixtureLinear(4, 4), MixtureBatchNorm1d(4))
    grow(layer)
    other = nn.Sequential(MixtureLinear(4, 4), MixtureBatchNorm1d(4))
    other.load_state_dict(layer.state_dict())
    assert [part.mode for part in (*other, *copy.deepcopy(layer))] == ["grown"] * 4
    x = torch.randn(5, 4)
    assert torch.equal(layer(x), other(x))
    assert layer[0].phase.dtype == torch.int8


def test_averaged_copies_follow_the_phase_of_the_network():
    network = nn.Sequential(MixtureLinear(4, 4, split_in=False), MixtureBatchNorm1d(4))
    average = torch.optim.swa_utils.AveragedModel(network)
    average.update_parameters(network)
    grow(network, "zero")
    average.update_parameters(network)
    assert [part.mode for part in average.eval().module] == ["grown"] * 2
    assert average(torch.zeros(1, 4)).shape == (1, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_mixes_in_fp32_and_rounds_once(dtype):
    layer = MixtureLinear(8, 6)
    x = sample(layer, "member0")
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, F.linear(x.to(dtype), mixed(layer, 0).to(dtype)))
    y.float().sum().backward()
    assert layer.bank.sets[0].grad.dtype == torch.float32
    with torch.autocast("cpu", dtype=dtype):
        assert layer.double()(x.double()).dtype == torch.float64


@EACH
def test_layers_on_the_meta_device_have_shapes_and_gradients(kind):
    layer = LAYERS[kind](bias=True)
    with torch.device("meta"):
        empty = LAYERS[kind](bias=True)
        for mode in ("member0", "member1", "grown"):
            layer.mode = empty.mode = mode
            x = sample(layer, mode)
            y = empty(x)
            assert y.is_meta
            y.sum().backward()
            assert (y.shape, empty.plain().weight.shape) == (
                layer(x.new_zeros(x.shape, device="cpu")).shape,
                layer.weight.shape,
            )
    assert all(param.grad is not None for param in empty.parameters())
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert empty.mode == "grown"
    assert torch.equal(empty.weight, layer.weight)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixtureLinear(7, 4), "in_features is 7, which is odd"),
        (lambda: MixtureLinear(4, 5), "out_features is 5, which is odd"),
        (lambda: MixtureLinear(4, 4, split_in=False, split_out=False), "split_in and split_out are False"),
        (lambda: MixtureLinear(4, 4, num_templates=0), "num_templates is 0"),
        (lambda: MixtureLinear(4, 4, template_sets=(0, 0, 1, 1)), "template_sets is"),
        (lambda: MixtureLinear(4, 4, init="he"), "init is 'he'"),
        (lambda: MixtureLinear(4, 4, start="zeros"), "start is 'zeros'"),
        (lambda: MixtureConv2d(6, 6, 3, groups=3), "groups is 3, so that a group would straddle"),
        (lambda: MixtureConv2d(6, 6, 3, groups=2, split_in=False), "groups, which must not straddle"),
        (lambda: MixtureConv1d(6, 5, 3), "out_channels is 5, which is odd"),
        (lambda: MixtureBatchNorm2d(5), "num_features is 5, which is odd"),
        (lambda: MixtureBatchNorm2d(4, momentum=None), "momentum is None"),
        (lambda: TemplateBank((4, 0)), "block_shape is 0"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
