"""The factorised layer against the one with its weight formed, and against torch's weight_norm."""

import pytest
import torch
from torch import nn

from lightning_weights.functional.gradnorm_lorp import effective_weight, weight_normed_linear

SCALE = 2.0


def parts(m=5, n=7, r=3, dtype=torch.float64):
    """Weight, bias, magnitude, I and J."""
    shapes = ((m, n), (m,), (m,), (m, r), (r, n))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def formed(x, weight, bias, magnitude, factor_i, factor_j, detach_norm):
    """The same output with the direction formed."""
    direction = weight if factor_i is None else weight + SCALE * factor_i @ factor_j
    norms = direction.norm(dim=1, keepdim=True)
    rows = magnitude[:, None] * direction / (norms.detach() if detach_norm else norms)
    return nn.functional.linear(x, rows, bias)


@pytest.mark.parametrize("detach_norm", [False, True])
@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
def test_output_and_gradients_are_those_of_the_formed_weight(leading, low_rank, detach_norm):
    weight, bias, magnitude, factor_i, factor_j = parts()
    factors = (factor_i, factor_j) if low_rank else (None, None)
    trained = [weight, bias, magnitude, *(factors if low_rank else ())]
    x = torch.randn(*leading, 7, dtype=torch.float64, requires_grad=True)
    outputs = [
        layer(x, weight, bias, magnitude, *factors, *rule)
        for layer, rule in ((weight_normed_linear, (SCALE, detach_norm)), (formed, (detach_norm,)))
    ]
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(outputs[0])
    ours, theirs = (torch.autograd.grad(output, [x, *trained], upstream) for output in outputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("low_rank", [False, True])
def test_gradcheck_of_the_exact_norm(low_rank):
    weight, bias, magnitude, *factors = parts(3, 4, 2)
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    if low_rank:
        tensors = (x, weight, bias, magnitude, *factors)
        assert torch.autograd.gradcheck(lambda *a: weight_normed_linear(*a, SCALE, False), tensors)
    else:
        tensors = (x, weight, bias, magnitude)
        assert torch.autograd.gradcheck(lambda *a: weight_normed_linear(*a, None, None, SCALE, False), tensors)


def test_exact_mode_is_weight_norm_of_torch():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(7, 5, dtype=torch.float64))
    length, direction = (getattr(layer.parametrizations.weight, name) for name in ("original0", "original1"))
    x = torch.randn(4, 7, dtype=torch.float64)
    ours = weight_normed_linear(x, direction, layer.bias, length.flatten(), None, None, 1.0, detach_norm=False)
    torch.testing.assert_close(ours, layer(x), rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(output.square().sum(), (length, direction)) for output in (ours, layer(x))]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)
    assert (gradients[0][1] * direction).sum(1).abs().max() < 1e-10  # tangent to every row


def test_rows_have_the_magnitudes_length_whatever_the_directions():
    weight, _, magnitude, factor_i, factor_j = parts()
    rows = effective_weight(weight, magnitude, factor_i, factor_j, SCALE)
    torch.testing.assert_close(rows.norm(dim=1), magnitude.abs())
    lengths = torch.rand(5, 1, dtype=torch.float64) + 0.1
    scaled = effective_weight(lengths * weight, magnitude, lengths * factor_i, factor_j, SCALE)
    torch.testing.assert_close(scaled, rows)


@pytest.mark.parametrize("low_rank", [False, True])
def test_merged_weight_computes_the_same(low_rank):
    weight, bias, magnitude, *factors = parts(40, 60, 4, torch.float32)
    factors = factors if low_rank else (None, None)
    x = torch.randn(8, 60)
    merged = nn.functional.linear(x, effective_weight(weight, magnitude, *factors, SCALE), bias)
    torch.testing.assert_close(weight_normed_linear(x, weight, bias, magnitude, *factors, SCALE), merged)


def test_start_is_the_plain_layer():
    weight, bias, _, _, factor_j = parts(dtype=torch.float32)
    x, zeros = torch.randn(4, 7), torch.zeros(5, 3)
    start = weight_normed_linear(x, weight, bias, weight.norm(dim=1), zeros, factor_j, SCALE)
    torch.testing.assert_close(start, nn.functional.linear(x, weight, bias), rtol=0, atol=1e-6)


@pytest.mark.parametrize("detach_norm", [False, True])
@pytest.mark.parametrize("low_rank", [False, True])
def test_rows_of_zeros_give_the_bias_and_finite_gradients(low_rank, detach_norm):
    weight, bias, magnitude, factor_i, factor_j = parts(dtype=torch.float32)
    with torch.no_grad():
        weight[2], magnitude[2] = 0.0, 0.0
        factor_i[2] = 0.0
    factors = (factor_i, factor_j) if low_rank else (None, None)
    output = weight_normed_linear(torch.randn(4, 7), weight, bias, magnitude, *factors, SCALE, detach_norm)
    assert torch.equal(output[:, 2], bias[2].expand(4))
    output.square().sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (weight, magnitude))
    assert effective_weight(weight, magnitude, *factors, SCALE)[2].eq(0).all()


def test_known_norms_and_another_input_of_the_factors():
    weight, bias, magnitude, factor_i, factor_j = parts()
    x = torch.randn(4, 7, dtype=torch.float64)
    layer = (x, weight, bias, magnitude, factor_i, factor_j, SCALE)
    known = weight_normed_linear(*layer, weight_norm_sq=weight.detach().square().sum(1))
    torch.testing.assert_close(known, weight_normed_linear(*layer))
    without = weight_normed_linear(*layer, factor_input=torch.zeros_like(x))
    norms = (weight + SCALE * factor_i @ factor_j).norm(dim=1)
    torch.testing.assert_close(without, x @ weight.T * (magnitude / norms) + bias)


def test_autocast_keeps_norms_wide():
    weight, bias, magnitude, factor_i, factor_j = parts(64, 64, 4, torch.float32)
    layer = (weight, bias, magnitude, factor_i, factor_j, SCALE)
    x = torch.randn(4, 64)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = weight_normed_linear(x, *layer)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), weight_normed_linear(x, *layer), rtol=0.05, atol=0.1)


def test_nothing_of_the_weights_size_is_made():
    """The forward and backward pass of the detached norm allocate tensors of the size of inputs and outputs only."""
    weight, bias, magnitude, factor_i, factor_j = parts(256, 256, 4, torch.float32)
    frozen, x = weight.detach(), torch.randn(8, 256, requires_grad=True)
    with torch.profiler.profile(profile_memory=True) as profile:
        weight_normed_linear(x, frozen, bias, magnitude, factor_i, factor_j, SCALE).sum().backward()
    largest = max(event.self_cpu_memory_usage / max(1, event.count) for event in profile.key_averages())
    assert 0 < largest < frozen.nbytes / 4


def test_one_factor_alone_is_refused():
    weight, bias, magnitude, factor_i, _ = parts()
    with pytest.raises(ValueError, match="factor_i and factor_j belong together"):
        weight_normed_linear(torch.randn(4, 7), weight, bias, magnitude, factor_i, None, SCALE)
