"""SynapseConv2d: the convolution that nn.Conv2d computes, with devices behind it."""

import pytest
import torch
from torch import nn

from lightning_weights.modules import SynapseConv2d, SynapseSettings
from lightning_weights.optimizers import PulseSGD

SHAPES = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": "same", "dilation": 2},
    {"groups": 2, "bias": False},
    {"padding": 1, "padding_mode": "circular"},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_computes_what_a_plain_convolution_does_there_and_back(shape):
    plain = nn.Conv2d(4, 6, 3, **shape)
    x = torch.randn(2, 4, 8, 8)
    before = plain(x)
    layer = SynapseConv2d.from_layer(plain, SynapseSettings(w_scale=3.0))
    torch.testing.assert_close(layer(x), before, rtol=1e-4, atol=1e-5)
    back = layer.plain()
    assert type(back) is nn.Conv2d
    assert (back.stride, back.padding, back.groups) == (plain.stride, plain.padding, plain.groups)
    torch.testing.assert_close(back(x), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["unidirectional", "bidirectional", "single"])
def test_it_learns_by_pulses(mode):
    torch.manual_seed(0)
    layer = SynapseConv2d(1, 2, 3, device={"kind": "linear", "n_states": 256}, mode=mode, w_scale=2.0)
    target = nn.Conv2d(1, 2, 3)
    optimizer = PulseSGD(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        x = torch.randn(8, 1, 6, 6)
        loss = (layer(x) - target(x).detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])
    array = layer.weight_devices
    low = 0.5 if array.minus is None else array.minus
    assert torch.equal(layer.weight, 2.0 * (array.plus - low))


def test_default_scale_counts_the_whole_kernel():
    assert SynapseConv2d(2, 3, (3, 5)).w_scale == pytest.approx(7.5 * (2 / 30) ** 0.5)
