"""Linear layers and convolutions with quantized weights and inputs, and what all quantized parts have in common."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.ofq import start_oscillation, stats_codes, statsq
from lightning_weights.modules import (
    FakeQuantConv2d,
    FakeQuantLinear,
    LSQQuantizer,
    StatsQuantizer,
    fake_quantized,
    warn_about_zero_rows,
)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["statsq", "lsq"])
def test_linear_layers_keep_parameters_and_compute_with_quantized_weights(kind, bias):
    plain, x = nn.Linear(8, 3, bias=bias).eval(), torch.randn(2, 5, 8)
    layer = FakeQuantLinear.from_layer(plain, weight_bits=2, weight_quantizer=kind)
    assert layer.weight is plain.weight
    assert layer.bias is plain.bias
    assert not layer.training
    assert torch.equal(layer(x), F.linear(x, layer.quantized_weight(), plain.bias))
    assert max(len(row.unique()) for row in layer.quantized_weight()) <= 4
    assert torch.equal(layer.coded_weight().dequantize(), layer.quantized_weight())
    assert torch.equal(layer.weight_codes(), layer.coded_weight().codes)
    assert set(plain.state_dict()) <= set(layer.state_dict())


def test_statistics_pass_gradients_straight_to_the_latents():
    layer, x = FakeQuantLinear(8, 3, act_bits=2), torch.randn(2, 5, 8)
    upstream = torch.randn(2, 5, 3)
    layer(x).backward(upstream)
    want = upstream.flatten(0, 1).T @ layer.input_quantizer(x).flatten(0, 1)
    torch.testing.assert_close(layer.weight.grad, want)
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize("bits", [None, 8])
def test_many_bits_are_the_plain_layer(bits):
    for plain, kind, x in (
        (nn.Linear(8, 3), FakeQuantLinear, torch.randn(2, 5, 8)),
        (
            nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, padding_mode="circular"),
            FakeQuantConv2d,
            torch.randn(2, 4, 7, 7),
        ),
    ):
        layer = kind.from_layer(plain, weight_bits=bits, act_bits=bits, weight_quantizer="lsq")
        error = (layer(x) - plain(x)).norm() / plain(x).norm()
        assert error == 0 if bits is None else 0 < error < 0.1


def test_convolutions_have_steps_per_output_channel_and_per_input_channel():
    plain, x = nn.Conv2d(3, 4, 2, stride=2), torch.randn(2, 3, 8, 8)
    layer = FakeQuantConv2d.from_layer(plain, weight_bits=2, act_bits=4)
    layer(x).sum().backward()
    assert layer.weight is plain.weight
    assert torch.equal(layer.quantized_weight(), statsq(plain.weight, 2))
    assert layer.coded_weight().step.shape == (4,)
    assert layer.input_quantizer.quantizer.step.shape == (3,)
    assert layer.input_quantizer.quantizer.step.grad is not None
    assert layer(x[0]).shape == (4, 4, 4)


def test_one_network_names_its_quantized_parts():
    network = nn.Sequential(FakeQuantLinear(8, 8), nn.ReLU(), FakeQuantLinear(8, 8, weight_bits=None), nn.Linear(8, 2))
    assert list(fake_quantized(network)) == ["0"]
    with pytest.raises(ValueError, match="not quantized"):
        network[2].coded_weight()


@pytest.mark.parametrize("kind", ["statsq", "lsq"])
def test_tracking_follows_the_codes(kind):
    layer = FakeQuantLinear(16, 4, weight_quantizer=kind)
    with torch.no_grad():
        layer.quantized_weight()
        state = start_oscillation(layer.weight_codes())
        before = layer.weight_codes()
        layer.weight.mul_(-1)
    counts = layer.track(state, momentum=0.5, threshold=0.1)
    assert int(counts.flips) == int((before != layer.weight_codes()).sum())
    assert torch.equal(state.previous, layer.weight_codes())


def test_annealing_is_for_statistics_alone():
    assert FakeQuantLinear(8, 3, weight_quantizer="lsq").movable(0.1) == []
    layer = FakeQuantLinear(64, 8)
    [(weight, mask)] = layer.movable(0.1)
    assert weight is layer.weight
    assert 0 < int(mask.sum()) < mask.numel()


def annealed_step(layer, optimizer, boundary_range):
    """What annealing does around a step: mask the gradient, keep what is frozen, and put it back."""
    pairs = layer.movable(boundary_range)
    kept = [weight.detach().clone() for weight, _ in pairs]
    for weight, mask in pairs:
        weight.grad.mul_(mask)
    optimizer.step()
    for (weight, mask), old in zip(pairs, kept, strict=True):
        weight.data.copy_(torch.where(mask, weight, old))


def test_without_boundary_nothing_moves_and_with_all_of_it_everything_interior_does():
    torch.manual_seed(0)
    layer = FakeQuantLinear(64, 8, bias=False, weight_bits=4)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01, weight_decay=0.1)
    layer(torch.randn(3, 64)).square().sum().backward()
    before = layer.weight.detach().clone()
    annealed_step(layer, optimizer, 0.0)
    assert torch.equal(layer.weight, before)
    interior = stats_codes(layer.weight, 4).codes.abs() < 6
    annealed_step(layer, optimizer, 0.5)
    assert layer.weight[interior].ne(before[interior]).all()


def test_rows_of_zeros_are_named():
    network = nn.Sequential(FakeQuantLinear(8, 3), FakeQuantLinear(3, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_about_zero_rows(network)
    network[1].weight.data[1:] = 0.0
    with pytest.warns(LightningWeightsWarning, match=r"1 \(2\)"):
        warn_about_zero_rows(network)
    assert network(torch.randn(2, 8)).isfinite().all()


def test_latents_stay_wide():
    with pytest.warns(LightningWeightsWarning, match="stay in fp32"):
        layer = FakeQuantLinear(8, 3, act_bits=2).bfloat16()
    assert layer.weight.dtype == torch.float32
    assert layer.bias.dtype == torch.bfloat16
    y = layer(torch.randn(2, 5, 8, dtype=torch.bfloat16))
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer.weight.grad.dtype == torch.float32
    with pytest.warns(LightningWeightsWarning, match="stay in fp32"):
        layer = FakeQuantLinear.from_layer(nn.Linear(8, 3, dtype=torch.bfloat16))
    assert layer.weight.dtype == torch.float32


def test_autocast_rounds_after_the_quantizer():
    layer, x = FakeQuantLinear(64, 16, act_bits=4, granularity="tensor"), torch.randn(2, 64)
    full = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.quantized_weight(), statsq(layer.weight, 2))
        torch.testing.assert_close(layer(x).float(), full, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", ["statsq", "lsq"])
def test_checkpoints_of_calibrated_layers_load_into_fresh_ones(kind):
    layer, x = FakeQuantLinear(8, 3, act_bits=2, weight_quantizer=kind), torch.randn(2, 5, 8)
    want = layer(x)
    fresh = FakeQuantLinear(8, 3, act_bits=2, weight_quantizer=kind)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), want)
    assert torch.equal(copy.deepcopy(layer)(x), want)


def test_bad_input():
    with pytest.raises(ValueError, match="weight_quantizer is 'minmax'"):
        FakeQuantLinear(8, 3, weight_quantizer="minmax")
    with pytest.raises(ValueError, match="bits is 9"):
        FakeQuantConv2d(1, 3, 2, weight_bits=9)
    assert isinstance(FakeQuantLinear(8, 3).weight_quantizer, StatsQuantizer)
    assert isinstance(FakeQuantConv2d(1, 3, 2, weight_quantizer="lsq").weight_quantizer, LSQQuantizer)


def test_compiles_whole():
    layer, x = FakeQuantLinear(8, 3, act_bits=2), torch.randn(2, 5, 8)
    want = layer(x)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), want)
