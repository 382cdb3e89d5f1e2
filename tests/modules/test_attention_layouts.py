"""Quantized attention in the place of that of other libraries."""

import copy

import pytest
import torch
from torch import nn

from lightning_weights.modules import (
    CompactViT,
    FakeQuantAttention,
    QKRAttention,
    QuantizedMultiheadAttention,
    SelfAttention,
    attention_obstacle,
    is_attention,
    quantize_attention,
)

SAME = {"weight_bits": None, "qkr": True, "keep_query_bias": True}


@pytest.mark.parametrize("qkr", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention_without_quantizers_is_itself(batch_first, bias, qkr):
    plain = nn.MultiheadAttention(8, 2, bias=bias, batch_first=batch_first)
    if bias:
        nn.init.normal_(plain.in_proj_bias)
    same, x = quantize_attention(plain, **{**SAME, "qkr": qkr, "keep_query_bias": qkr}), torch.randn(3, 5, 8)
    batch, tokens = x.shape[:2] if batch_first else (5, 3)
    causal, padding = torch.ones(tokens, tokens).triu(1).bool(), torch.rand(batch, tokens) < 0.3
    padding[:, 0] = False
    for options in (
        {},
        {"need_weights": False},
        {"average_attn_weights": False},
        {"attn_mask": causal, "is_causal": True},
        {"key_padding_mask": padding},
        {"attn_mask": torch.randn(batch * 2, tokens, tokens), "key_padding_mask": torch.randn(batch, tokens)},
        {"attn_mask": torch.randn(tokens, tokens), "key_padding_mask": torch.randn(batch, tokens)},
    ):
        for got, want in zip(same(x, x, x, **options), plain(x, x, x, **options), strict=True):
            assert (got is None) == (want is None)
            if want is not None:
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    single = x[0]
    torch.testing.assert_close(same(single, single, single)[0], plain(single, single, single)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("qkr", [True, False])
def test_encoders_call_it_in_training_and_evaluation(qkr):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    network = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    x, padding = torch.randn(3, 5, 8), torch.zeros(3, 5, dtype=torch.bool)
    padding[:, 4] = True
    want = network(x, src_key_padding_mask=padding)
    for block in network.layers:
        block.self_attn = quantize_attention(block.self_attn, weight_bits=None, qkr=qkr, keep_query_bias=qkr)
    torch.testing.assert_close(network(x, src_key_padding_mask=padding), want, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x, src_key_padding_mask=padding), want, rtol=1e-4, atol=1e-5)
        for block in network.layers:
            block.self_attn.attention.proj.weight.zero_()
        assert not torch.allclose(network(x), want)


def test_quantized_layers_take_part():
    plain, x = nn.MultiheadAttention(8, 2, batch_first=True, dropout=0.5), torch.randn(3, 5, 8)
    quantized = quantize_attention(plain.eval(), weight_bits=2, act_bits=2, weight_quantizer="lsq", qkr=True)
    assert isinstance(quantized, QuantizedMultiheadAttention)
    assert isinstance(quantized.attention, QKRAttention)
    assert quantized.attention.dropout.p == 0.5
    assert not any(part.training for part in quantized.modules())
    assert quantized(x, x, x)[0].shape == x.shape
    assert quantized.attention.proj.weight is plain.out_proj.weight


def test_one_input_only():
    attention, x = quantize_attention(nn.MultiheadAttention(8, 2)), torch.randn(3, 5, 8)
    with pytest.raises(ValueError, match="self-attention"):
        attention(x, x, x.clone())
    with pytest.raises(ValueError, match="is_causal is a hint"):
        attention(x, x, x, is_causal=True)


@pytest.mark.parametrize("qkr", [True, False])
def test_own_vision_transformer(qkr):
    network, x = CompactViT(width=16, depth=1), torch.randn(2, 1, 8, 8)
    want, plain = network(x), network.blocks[0].attention
    assert isinstance(plain, SelfAttention)
    network.blocks[0].attention = quantize_attention(plain, weight_bits=None, qkr=qkr, keep_query_bias=qkr)
    assert isinstance(network.blocks[0].attention, QKRAttention if qkr else FakeQuantAttention)
    torch.testing.assert_close(network(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("qkr", [True, False])
@pytest.mark.parametrize("family", ["ViT", "DeiT"])
def test_transformers_of_hugging_face(family, qkr):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = getattr(transformers, f"{family}Config")(**sizes, image_size=8, patch_size=4, num_channels=1)
    network, x = getattr(transformers, f"{family}Model")(config).eval(), torch.randn(2, 1, 8, 8)
    want = network(x).last_hidden_state
    names = [name for name, part in network.named_modules() if is_attention(part)]
    assert len(names) == 1
    plain = network.get_submodule(names[0])
    nn.init.normal_(plain.k_proj.bias)
    network.set_submodule(names[0], quantize_attention(plain, weight_bits=None, qkr=qkr, keep_query_bias=qkr))
    torch.testing.assert_close(network(x).last_hidden_state, want, rtol=1e-4, atol=1e-5)


class Llama(nn.Module):
    """What a language model's attention looks like."""

    def __init__(self, keys, **parts):
        super().__init__()
        self.q_proj, self.o_proj = nn.Linear(8, 8), nn.Linear(8, 8)
        self.k_proj, self.v_proj = nn.Linear(8, keys), nn.Linear(8, keys)
        for name, part in parts.items():
            setattr(self, name, part)


def packed(**parts):
    attention = SelfAttention(8, 2)
    for name, part in parts.items():
        setattr(attention, name, part)
    return attention


@pytest.mark.parametrize(
    ("attention", "reason"),
    [
        (Llama(4), "grouped"),
        (Llama(8), "Llama is none of"),
        (Llama(8, rotary_emb=nn.Identity()), "rotary or relative"),
        (packed(relative_position_bias_table=nn.Parameter(torch.zeros(3))), "rotary or relative"),
        (packed(q_norm=nn.LayerNorm(4)), "normalises"),
        (packed(num_heads=None), "num_heads"),
        (packed(qkv=nn.Linear(8, 16)), "grouped"),
        (nn.MultiheadAttention(8, 2, kdim=4), "width of their own"),
        (nn.MultiheadAttention(8, 2, add_bias_kv=True), "keys of its own"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else type(value).__name__,
)
def test_what_does_not_fit_is_refused_by_name(attention, reason):
    assert is_attention(attention)
    assert reason in attention_obstacle(attention)
    with pytest.raises(ValueError, match=f"blocks.3.attn can't be replaced.*{reason}"):
        quantize_attention(attention, qkr=True, name="blocks.3.attn")


def test_other_bad_input():
    with pytest.raises(ValueError, match="head is a Linear"):
        quantize_attention(nn.Linear(8, 8), name="head")
    with torch.device("meta"):
        large = nn.MultiheadAttention(4096, 32)
    with pytest.raises(ValueError, match=r"encoder\.attn: the product"):
        quantize_attention(large, qkr=True, name="encoder.attn")


class Packed(nn.Module):
    """Attention with ``qkv`` and ``proj``, of a class that nobody knows."""

    def __init__(self, kind="plain"):
        super().__init__()
        self.kind, self.num_heads = kind, 2
        self.qkv, self.norm, self.proj = nn.Linear(8, 24), nn.LayerNorm(8), nn.Linear(8, 8)
        nn.init.zeros_(self.proj.weight)  # so that its own outputs would tell nothing

    def forward(self, x, **masks):
        if self.kind == "needs more":
            x = x + masks["rope"]
        if self.kind == "head first":
            q, k, v = self.qkv(x).unflatten(-1, (2, 3, 4)).permute(3, 0, 2, 1, 4)
        else:
            q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        if self.kind == "key first":
            q, k = k, q
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0 if self.kind == "scale" else None)
        mixed = mixed.transpose(1, 2).flatten(2)
        outputs = self.proj(self.norm(mixed) if self.kind == "norm" else mixed)
        return (outputs, None) if self.kind == "pair" else outputs


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("head first", "computes something else"),
        ("key first", "computes something else"),
        ("scale", "computes something else"),
        ("norm", "computes something else"),
        ("pair", "does not return outputs"),
        ("needs more", "can't be called with tokens alone: KeyError"),
    ],
)
def test_attention_of_unknown_classes_is_tried_out(kind, reason):
    attention = Packed(kind)
    weights, state = copy.deepcopy(attention.state_dict()), torch.get_rng_state()
    assert reason in attention_obstacle(attention)
    with pytest.raises(ValueError, match=reason):
        quantize_attention(attention, qkr=True)
    assert all(torch.equal(value, weights[name]) for name, value in attention.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert attention.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_of_unknown_classes_that_computes_the_same_is_replaced(dtype):
    assert attention_obstacle(Packed().to(dtype)) is None
    assert attention_obstacle(Packed().to("meta")) is None
    assert isinstance(quantize_attention(Packed(), qkr=True), QKRAttention)
