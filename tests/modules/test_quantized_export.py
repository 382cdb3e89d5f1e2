"""Integers and plain networks made of quantized ones."""

import copy

import pytest
import torch
from torch import nn

from lightning_weights.modules import (
    CompactViT,
    FakeQuantConv2d,
    FakeQuantLinear,
    export_codes,
    fake_quantized,
    merge_quantized,
    quantize_attention,
)


def quantized_vit(act_bits, weight_quantizer, qkr):
    """A network with a quantized convolution, attention and linear layers, after one batch."""
    network, x = CompactViT(width=16, depth=1), torch.randn(4, 1, 8, 8)
    options = {"weight_bits": 3, "act_bits": act_bits, "weight_quantizer": weight_quantizer}
    block = network.blocks[0]
    network.patch_embed = FakeQuantConv2d.from_layer(network.patch_embed, **options)
    block.attention = quantize_attention(block.attention, **options, qkr=qkr)
    block.mlp.fc1 = FakeQuantLinear.from_layer(block.mlp.fc1, **options)
    network.head = FakeQuantLinear.from_layer(network.head, **options, granularity="tensor")
    return network, x, network(x)


@pytest.mark.parametrize("act_bits", [None, 4])
@pytest.mark.parametrize("weight_quantizer", ["statsq", "lsq"])
@pytest.mark.parametrize("qkr", [True, False])
def test_plain_layers_compute_the_same(qkr, weight_quantizer, act_bits):
    network, x, want = quantized_vit(act_bits, weight_quantizer, qkr)
    exported = export_codes(network)
    assert set(exported) == set(fake_quantized(network))
    for name, part in fake_quantized(network).items():
        assert torch.equal(exported[name].dequantize(), part.quantized_weight())
        assert exported[name].codes.dtype == torch.int8
        assert len(exported[name].codes.unique()) <= 8
    merged = merge_quantized(copy.deepcopy(network))
    torch.testing.assert_close(merged(x), want)
    assert fake_quantized(merged) == {}
    plain = merged.patch_embed if act_bits is None else merged.patch_embed.layer
    assert type(plain) is nn.Conv2d
    assert torch.equal(plain.weight, network.patch_embed.quantized_weight())
    assert torch.equal(network(x), want)


def test_a_layer_alone():
    layer = FakeQuantLinear(8, 3).eval()
    plain = merge_quantized(layer)
    assert type(plain) is nn.Linear
    assert not plain.training
    assert plain.bias is layer.bias
    x = torch.randn(2, 8)
    assert torch.equal(plain(x), layer(x))
