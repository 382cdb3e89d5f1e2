"""The ways in which other libraries lay out self-attention, and quantized attention in their place."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_weights.modules._attention_check import difference
from lightning_weights.modules.fake_quant_attention import FakeQuantAttention
from lightning_weights.modules.qkr_attention import QKRAttention
from lightning_weights.modules.vision_transformer import SelfAttention

SEPARATE = ("q_proj", "k_proj", "v_proj", "o_proj")
PLAIN_CLASSES = ("ViTAttention", "DeiTAttention")  # of transformers, whose scores are products and nothing else
POSITIONS = ("relative_position_bias_table", "rel_pos_bias", "rotary_emb", "rope", "rotary", "cpb_mlp")


class _Projections(NamedTuple):
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    proj: nn.Linear
    heads: int
    dropout: float


class QuantizedMultiheadAttention(nn.Module):
    """Call quantized self-attention as ``nn.MultiheadAttention`` is called.

    Args:
        attention: Quantized attention.
        batch_first: Whether the batch is the first dimension, else the second.

    Examples:
        >>> import torch
        >>> attention, x = QuantizedMultiheadAttention(FakeQuantAttention(8, 2)), torch.randn(3, 5, 8)
        >>> outputs, weights = attention(x, x, x)
        >>> outputs.shape, weights.shape
        (torch.Size([3, 5, 8]), torch.Size([3, 5, 5]))
    """

    in_proj_bias = None  # nn.TransformerEncoderLayer looks here before it goes past its parts
    in_proj_weight = None
    _qkv_same_embed_dim = True

    def __init__(self, attention: FakeQuantAttention, batch_first: bool = True) -> None:
        super().__init__()
        self.attention = attention
        self.batch_first = batch_first
        self.num_heads = attention.heads
        self.embed_dim = attention.proj.in_features

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return outputs and, if needed, weights, with arguments as of ``nn.MultiheadAttention``.

        Args:
            query: Inputs, which keys and values have to be too.
            key: The same tensor.
            value: The same tensor.
            key_padding_mask: Keys to leave out (bool), or what is added to their scores.
            need_weights: Whether weights are returned.
            attn_mask: Scores to leave out (bool), or what is added to them.
            average_attn_weights: Whether weights are averaged over the heads.
            is_causal: A hint that goes with ``attn_mask``.

        Raises:
            ValueError: If keys or values are not the queries, or the hint comes without its mask.
        """
        if query is not key or key is not value:
            raise ValueError(
                "query, key and value differ; quantized attention is self-attention: pass one tensor thrice"
            )
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask, which is missing; pass the mask too")
        x = query if query.dim() == 3 else query.unsqueeze(0 if self.batch_first else 1)
        x = x if self.batch_first else x.transpose(0, 1)
        outputs, weights = self.attention.attend(x, self._mask(x, key_padding_mask, attn_mask))
        outputs = outputs if self.batch_first else outputs.transpose(0, 1)
        weights = weights.mean(1) if average_attn_weights else weights
        if query.dim() == 2:
            outputs, weights = outputs.squeeze(0 if self.batch_first else 1), weights.squeeze(0)
        return outputs, weights if need_weights else None

    def _mask(self, x: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        if padding is not None:
            padding = _added(padding.reshape(len(x), 1, 1, -1), x)
        if mask is not None:
            mask = _added(mask if mask.dim() == 2 else mask.unflatten(0, (len(x), -1)), x)
        if padding is None or mask is None:
            return padding if mask is None else mask
        return padding + mask


def _added(mask: Tensor, x: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=x.dtype).masked_fill_(mask, -torch.inf)


class QuantizedViTAttention(nn.Module):
    """Call quantized self-attention as the attention of transformers' ViT and DeiT is called.

    Args:
        attention: Quantized attention.

    Examples:
        >>> import torch
        >>> outputs, weights = QuantizedViTAttention(FakeQuantAttention(8, 2))(torch.randn(3, 5, 8))
        >>> outputs.shape, weights.shape
        (torch.Size([3, 5, 8]), torch.Size([3, 2, 5, 5]))
    """

    def __init__(self, attention: FakeQuantAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return outputs and attention probabilities of (batch, tokens, width).

        Args:
            hidden_states: Inputs.
            attention_mask: What is added to scores, or whether they count if bool.
            **kwargs: What the library passes through to kernels of its own.
        """
        return self.attention.attend(hidden_states, attention_mask)


def is_attention(module: nn.Module) -> bool:
    """Tell whether a module looks like self-attention with projections of its own.

    Args:
        module: Any module.

    Examples:
        >>> is_attention(nn.MultiheadAttention(8, 2)), is_attention(nn.Linear(8, 2))
        (True, False)
    """
    return isinstance(module, nn.MultiheadAttention) or _has(module, *SEPARATE) or _has(module, "qkv", "proj")


def attention_obstacle(attention: nn.Module) -> str | None:
    """Say why attention cannot be replaced by quantized attention, or None if it can.

    Args:
        attention: What [`is_attention`][lightning_weights.modules.is_attention] knows.

    Examples:
        >>> attention_obstacle(nn.MultiheadAttention(8, 2, kdim=4))
        'keys or values have a width of their own'
    """
    if isinstance(attention, nn.MultiheadAttention):
        if not attention._qkv_same_embed_dim:
            return "keys or values have a width of their own"
        if attention.bias_k is not None or attention.add_zero_attn:
            return "it adds keys of its own (add_bias_kv, add_zero_attn)"
        return None
    if any(getattr(attention, name, None) is not None for name in POSITIONS):
        return "it has rotary or relative positions, which do not commute with the product of the projections"
    if _has(attention, "qkv", "proj"):
        if any(not isinstance(getattr(attention, name, nn.Identity()), nn.Identity) for name in ("q_norm", "k_norm")):
            return "it normalises queries and keys"
        if not isinstance(getattr(attention, "num_heads", None), int):
            return "it has no attribute num_heads"
        if attention.qkv.out_features != 3 * attention.qkv.in_features:
            return "its keys are grouped, or its heads have a width of their own"
        return None if type(attention) is SelfAttention else difference(attention, _without_quantizers)
    if attention.q_proj.weight.shape != attention.k_proj.weight.shape:
        return "its keys are grouped: several query heads share one"
    if type(attention).__name__ not in PLAIN_CLASSES:
        return f"{type(attention).__name__} is none of {', '.join(PLAIN_CLASSES)}; its positions may be rotary"
    if attention.q_proj.out_features != attention.q_proj.in_features:
        return "its heads have a width of their own"
    return None


def quantize_attention(
    attention: nn.Module,
    weight_bits: int | None = 2,
    act_bits: int | None = None,
    weight_quantizer: Literal["statsq", "lsq"] = "statsq",
    granularity: Literal["tensor", "token", "channel"] = "token",
    qkr: bool = False,
    keep_query_bias: bool = False,
    force: bool = False,
    name: str = "attention",
) -> nn.Module:
    """Return quantized attention that is called as the given one is, with its weights.

    Args:
        attention: ``nn.MultiheadAttention``, the attention of transformers' ViT or DeiT, or one with ``qkv``, ``proj``
            and ``num_heads``, as in timm and in [`CompactViT`][lightning_weights.modules.CompactViT].
        weight_bits: From 2 to 8; ``None`` leaves weights as they are.
        act_bits: From 2 to 8; ``None`` leaves activations as they are.
        weight_quantizer: ``statsq`` for a scale from statistics, ``lsq`` for a learned one.
        granularity: As of `FakeQuantAttention`.
        qkr: Whether the product of query and key projection is quantized, instead of each.
        keep_query_bias: With ``qkr``, whether queries keep their bias.
        force: With ``qkr``, whether the product may have more than 10^8 elements.
        name: What the attention is called, for messages.

    Raises:
        ValueError: If an argument is not allowed, or the attention can't be replaced, with its name and the reason.

    Examples:
        >>> import torch
        >>> plain, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(3, 5, 8)
        >>> same = quantize_attention(plain, weight_bits=None, qkr=True, keep_query_bias=True)
        >>> torch.allclose(plain(x, x, x)[0], same(x, x, x)[0], atol=1e-5)
        True
    """
    if not is_attention(attention):
        raise ValueError(f"{name} is a {type(attention).__name__}, which is no attention with projections of its own")
    if (obstacle := attention_obstacle(attention)) is not None:
        raise ValueError(
            f"{name} can't be replaced by quantized attention: {obstacle}. Leave it out of qkr, or quantize its linear "
            f"layers alone"
        )
    kind = QKRAttention if qkr else FakeQuantAttention
    further = {"keep_query_bias": keep_query_bias, "force": force} if qkr else {}
    parts = _projections(attention)._asdict()
    options: dict[str, Any] = {"weight_quantizer": weight_quantizer, "granularity": granularity, **further}
    try:
        quantized = kind.from_projections(**parts, weight_bits=weight_bits, act_bits=act_bits, **options)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    called: nn.Module = quantized
    if isinstance(attention, nn.MultiheadAttention):
        called = QuantizedMultiheadAttention(quantized, attention.batch_first)
    elif _has(attention, *SEPARATE):
        called = QuantizedViTAttention(quantized)
    return called.train(attention.training)


def _without_quantizers(attention: nn.Module) -> nn.Module:
    return FakeQuantAttention.from_projections(**_projections(attention)._asdict(), weight_bits=None)


def _has(module: nn.Module, *names: str) -> bool:
    return all(isinstance(getattr(module, name, None), nn.Linear) for name in names)


def _projections(attention: Any) -> _Projections:
    """Return the projections of known attention; packed ones are cut into parts, which are new parameters."""
    if _has(attention, *SEPARATE):
        layers = (getattr(attention, name) for name in SEPARATE)
        return _Projections(*layers, attention.num_attention_heads, float(attention.attention_dropout))
    if isinstance(attention, nn.MultiheadAttention):
        packed, bias, proj = attention.in_proj_weight, attention.in_proj_bias, attention.out_proj
        dropout = attention.dropout
    else:
        packed, bias, proj = attention.qkv.weight, attention.qkv.bias, attention.proj
        dropout = getattr(getattr(attention, "attn_drop", None), "p", 0.0)
    biases = (None, None, None) if bias is None else bias.chunk(3)
    parts = [_linear(weight, bias) for weight, bias in zip(packed.chunk(3), biases, strict=True)]
    return _Projections(*parts, proj, attention.num_heads, dropout)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer
