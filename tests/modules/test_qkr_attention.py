"""Quantized attention, with and without the product of query and key projection."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.ofq import score_matrix, statsq
from lightning_weights.modules import FakeQuantAttention, FakeQuantized, QKRAttention, merge_quantized

WIDTH, HEADS = 8, 2


def projections(q_bias=True, k_bias=True):
    q, k = nn.Linear(WIDTH, WIDTH, bias=q_bias), nn.Linear(WIDTH, WIDTH, bias=k_bias)
    return q, k, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)


def standard(x, q, k, v, proj, q_bias=True, mask=None):
    """Attention by PyTorch, with or without the bias of the queries."""
    parts = (x @ q.weight.T + (q.bias if q_bias else 0), k(x), v(x))
    split = [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts]
    return proj(F.scaled_dot_product_attention(*split, attn_mask=mask).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("k_bias", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_without_quantizers_it_is_attention_for_any_bias_of_the_keys(keep, k_bias):
    parts, x = projections(k_bias=k_bias), torch.randn(3, 5, WIDTH)
    if k_bias:
        parts[1].bias.data.mul_(50)
    attention = QKRAttention.from_projections(*parts, HEADS, weight_bits=None, keep_query_bias=keep)
    torch.testing.assert_close(attention(x), standard(x, *parts, q_bias=keep), rtol=1e-5, atol=1e-5)


def test_without_quantizers_separate_projections_are_attention():
    parts, x = projections(), torch.randn(3, 5, WIDTH)
    attention = FakeQuantAttention.from_projections(*parts, HEADS, weight_bits=None)
    torch.testing.assert_close(attention(x), standard(x, *parts), rtol=1e-5, atol=1e-5)
    assert attention.q.weight is parts[0].weight


@pytest.mark.parametrize("kind", [FakeQuantAttention, QKRAttention])
def test_masks(kind):
    parts, x = projections(q_bias=False), torch.randn(3, 5, WIDTH)
    attention = kind.from_projections(*parts, HEADS, weight_bits=None)
    keep = torch.ones(5, 5, dtype=torch.bool).tril()
    added = torch.randn(3, HEADS, 5, 5)
    for mask in (keep, added):
        want = standard(x, *parts, q_bias=False, mask=mask)
        torch.testing.assert_close(attention(x, mask), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(attention.attend(x, keep)[1].sum(-1), torch.ones(3, HEADS, 5))


@pytest.mark.parametrize("granularity", ["tensor", "token", "channel"])
@pytest.mark.parametrize("kind", [FakeQuantAttention, QKRAttention])
def test_every_parameter_is_trained(kind, granularity):
    attention = kind(WIDTH, HEADS, act_bits=2, granularity=granularity)
    (attention(torch.randn(3, 5, WIDTH)) * torch.randn(3, 5, WIDTH)).sum().backward()
    assert all(parameter.grad is not None for parameter in attention.parameters())
    if granularity != "token":
        assert attention(torch.randn(2, 7, WIDTH)).shape == (2, 7, WIDTH)


def test_the_product_is_quantized_in_one_piece():
    attention = QKRAttention(WIDTH, HEADS, weight_bits=3)
    latent = score_matrix(attention.q.weight, attention.k.weight, HEADS)
    assert torch.equal(attention.quantized_weight(), statsq(latent, 3))
    assert torch.equal(attention.coded_weight().dequantize(), attention.quantized_weight())
    assert [name for name, part in attention.named_modules() if isinstance(part, FakeQuantized)] == ["", "v", "proj"]


@pytest.mark.parametrize("keep", [True, False])
def test_gradients_of_the_factors_know_nothing_of_each_others_rounding(keep):
    attention = QKRAttention(WIDTH, HEADS, weight_bits=2, keep_query_bias=keep)
    upstream = torch.randn(HEADS * WIDTH, WIDTH)
    attention.quantized_weight().backward(upstream)
    q, k = (factor.weight.detach().view(HEADS, -1, WIDTH) for factor in (attention.q, attention.k))
    blocks = upstream.view(HEADS, WIDTH, WIDTH)
    torch.testing.assert_close(attention.q.weight.grad.view_as(q), k @ blocks.mT)
    torch.testing.assert_close(attention.k.weight.grad.view_as(k), q @ blocks)


def test_annealing_reaches_the_product():
    attention, x = QKRAttention(WIDTH, HEADS, weight_bits=2), torch.randn(3, 5, WIDTH)
    plain = attention(x)
    attention.boundary_range = 0.05
    assert torch.equal(attention(x), plain)
    movable = attention.weight_quantizer.movable(attention.latent_weight().detach(), 0.05)
    assert 0 < movable.sum() < movable.numel()
    upstream = torch.randn(HEADS * WIDTH, WIDTH)
    attention.quantized_weight().backward(upstream)
    masked = attention.q.weight.grad.clone()
    attention.zero_grad()
    attention.boundary_range = None
    attention.quantized_weight().backward(upstream * movable)
    assert torch.equal(masked, attention.q.weight.grad)
    pairs = attention.movable(0.05)
    assert [weight for weight, _ in pairs] == attention.latents()
    for weight, mask in pairs:
        assert torch.equal(weight.grad.ne(0), mask)


def test_without_boundary_no_factor_moves():
    attention = QKRAttention(WIDTH, HEADS, weight_bits=2)
    attention.boundary_range = 0.0
    attention(torch.randn(3, 5, WIDTH)).square().sum().backward()
    assert all(not mask.any() and weight.grad.eq(0).all() for weight, mask in attention.movable(0.0))


def test_autocast_and_narrow_networks_keep_the_product_wide():
    attention, x = QKRAttention(WIDTH, HEADS, act_bits=4, keep_query_bias=True), torch.randn(3, 5, WIDTH)
    latent = attention.latent_weight()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention.latent_weight(), latent)
        assert attention(x).isfinite().all()
    with pytest.warns(LightningWeightsWarning, match="stay in fp32"):
        attention.bfloat16()
    assert torch.equal(attention.latent_weight(), latent)
    assert attention(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("keep", [True, False])
def test_merging_keeps_the_outputs(keep):
    attention, x = QKRAttention(WIDTH, HEADS, act_bits=2, keep_query_bias=keep), torch.randn(3, 5, WIDTH)
    want = attention(x)
    codes = attention.weight_codes()
    merged = merge_quantized(copy.deepcopy(attention))
    torch.testing.assert_close(merged(x), want)
    assert merged.score.weight.shape == codes.shape
    assert type(merged.v) is nn.Linear
    assert not any(part.latents() for part in merged.modules() if isinstance(part, FakeQuantized))


def test_checkpoints_load_into_fresh_attention():
    attention, x = QKRAttention(WIDTH, HEADS, act_bits=2), torch.randn(3, 5, WIDTH)
    want, fresh = attention(x), QKRAttention(WIDTH, HEADS, act_bits=2)
    fresh.load_state_dict(attention.state_dict())
    assert torch.equal(fresh(x), want)


def test_bad_input():
    with pytest.raises(ValueError, match="heads is 3"):
        QKRAttention(8, 3)
    with pytest.raises(ValueError, match=r"32 x 4096 x 4096 = 536870912 elements.*force=True"):
        QKRAttention(4096, 32)
    with pytest.raises(ValueError, match="dropout is 1"):
        FakeQuantAttention(8, 2, dropout=1.0)
    with torch.device("meta"):
        assert QKRAttention(4096, 32, force=True).heads == 32
