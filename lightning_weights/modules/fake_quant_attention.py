"""Self-attention that computes with quantized weights and activations."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.modules.fake_quant_linear import FakeQuantLinear, take_parameters
from lightning_weights.modules.input_quantizer import InputQuantizer
from lightning_weights.modules.lsq_quantizer import LSQQuantizer


class FakeQuantAttention(nn.Module):
    r"""Attend over tokens with quantized projections, queries, keys, values and probabilities.

    $$\operatorname{softmax}(\hat Q \hat K^\top / \sqrt{d}) \hat V$$

    The quantized input is shared by queries, keys and values. Activations have a step per token, values one per
    channel, and probabilities, which have no sign, one per query.

    Args:
        width: Channels C of inputs and outputs.
        heads: Number of heads, a divisor of the width.
        weight_bits: From 2 to 8; ``None`` leaves weights as they are.
        act_bits: From 2 to 8; ``None`` leaves activations as they are.
        weight_quantizer: ``statsq`` for a scale from statistics, ``lsq`` for a learned one.
        granularity: What has a step of its own where that is a ``token`` in the paper. A step per token ties a network
            to a sequence length; ``tensor`` and ``channel`` do not.
        bias: Whether queries, keys and values have a bias.
        dropout: Probability, from 0 up to but not including 1, of dropping an attention probability in training.

    Raises:
        ValueError: If an argument is not allowed.

    Source: Liu, Liu & Cheng 2023, arXiv:2302.02210.

    Examples:
        >>> import torch
        >>> FakeQuantAttention(width=8, heads=2, act_bits=2)(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        width: int,
        heads: int,
        weight_bits: int | None = 2,
        act_bits: int | None = None,
        weight_quantizer: Literal["statsq", "lsq"] = "statsq",
        granularity: Literal["tensor", "token", "channel"] = "token",
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        check_number("width", width, low=1, whole=True)
        check_number("heads", heads, low=1, whole=True)
        check_number("dropout", dropout, low=0.0, high=1.0)
        if width % heads:
            raise ValueError(f"heads is {heads}; allowed are divisors of the width {width}")
        super().__init__()
        self.heads = int(heads)
        self.granularity = granularity
        self.act_bits = act_bits
        self.input_quantizer = self._activations(width)
        self._make_scores(width, weight_bits, weight_quantizer, bias)
        self.v = FakeQuantLinear(width, width, bias, weight_bits, None, weight_quantizer)
        self.value_quantizer = None if act_bits is None else InputQuantizer(width, act_bits, True, "channel")
        self.probability_quantizer = self._steps(signed=False)
        self.dropout = nn.Dropout(dropout)
        self.proj = FakeQuantLinear(width, width, True, weight_bits, act_bits, weight_quantizer, granularity)

    def _make_scores(
        self, width: int, weight_bits: int | None, weight_quantizer: Literal["statsq", "lsq"], bias: bool
    ) -> None:
        self.q = FakeQuantLinear(width, width, bias, weight_bits, None, weight_quantizer)
        self.k = FakeQuantLinear(width, width, bias, weight_bits, None, weight_quantizer)
        self.query_quantizer = self._steps()
        self.key_quantizer = self._steps()

    def _activations(self, features: int) -> InputQuantizer | None:
        if self.act_bits is None:
            return None
        return InputQuantizer(features, self.act_bits, True, self.granularity)

    def _steps(self, signed: bool = True) -> LSQQuantizer | None:
        # the last dimension of probabilities are tokens too, and that of queries is shared by the heads
        granularity: Any = "token" if self.granularity == "token" else "tensor"
        return None if self.act_bits is None else LSQQuantizer(self.act_bits, signed, granularity)

    @classmethod
    def from_projections(
        cls, q: nn.Linear, k: nn.Linear, v: nn.Linear, proj: nn.Linear, heads: int, dropout: float = 0.0, **options: Any
    ) -> "FakeQuantAttention":
        """Return attention with the parameters of plain projections, the same objects.

        Args:
            q: Projection of queries.
            k: Projection of keys.
            v: Projection of values.
            proj: Projection of outputs.
            heads: Number of heads.
            dropout: Probability of dropping an attention probability in training.
            **options: Further arguments of the constructor.
        """
        with torch.device("meta"):
            attention = cls(q.in_features, heads, bias=v.bias is not None, dropout=dropout, **options)
        for part in attention.modules():
            if isinstance(part, InputQuantizer):
                part.to_empty(device=q.weight.device).reset_parameters()
            elif isinstance(part, LSQQuantizer):
                part.to_empty(device=q.weight.device)
        attention._take_scores(q, k)
        take_parameters(attention.v, v)
        take_parameters(attention.proj, proj)
        return attention.train(v.training)

    def _take_scores(self, q: nn.Linear, k: nn.Linear) -> None:
        take_parameters(self.q, q)
        take_parameters(self.k, k)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Return outputs of the shape of the inputs, (batch, tokens, width).

        Args:
            x: Inputs.
            attn_mask: What is added to scores of shape (batch, heads, tokens, tokens), or whether they count if bool.
        """
        return self.attend(x, attn_mask)[0]

    def attend(self, x: Tensor, attn_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return outputs and the probabilities that they come from, (batch, heads, tokens, tokens).

        Args:
            x: Inputs.
            attn_mask: As of ``forward``.
        """
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        scores = self._scores(x) * (x.shape[-1] // self.heads) ** -0.5
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        probabilities = scores.softmax(-1)
        if self.probability_quantizer is not None:
            probabilities = self.probability_quantizer(probabilities)
        probabilities = self.dropout(probabilities)
        values = self.v(x)
        if self.value_quantizer is not None:
            values = self.value_quantizer(values)
        mixed = (probabilities @ self._split(values)).transpose(1, 2).flatten(2)
        return self.proj(mixed), probabilities

    def _scores(self, x: Tensor) -> Tensor:
        q, k = self._split(self.q(x)), self._split(self.k(x))
        if self.query_quantizer is not None and self.key_quantizer is not None:
            q, k = self.query_quantizer(q), self.key_quantizer(k)
        return q @ k.transpose(-2, -1)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
