"""Self-attention that quantizes the product of query and key projection in one piece."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_weights.functional.ofq import key_bias, movable_factors, score_matrix
from lightning_weights.modules.fake_quant_attention import FakeQuantAttention
from lightning_weights.modules.fake_quantized import FakeQuantized, make_weight_quantizer, widen
from lightning_weights.modules.stats_quantizer import StatsQuantizer

LARGEST_PRODUCT = 10**8  # elements of all heads' products of one layer


class QKRAttention(FakeQuantized, FakeQuantAttention):
    r"""Attend over tokens with one quantized matrix per head between queries and keys (query-key reparameterization).

    $$M^h = (W_q^h)^\top W_k^h, \quad Z^h = \hat M^h \hat X^\top, \quad
    \operatorname{softmax}(\hat X \hat Z^h / \sqrt{d})$$

    Neither factor is quantized alone, so that the rounding of one does not enter the gradient of the other. Scores have
    a step per token and head. M is what is deployed; it takes heads · width² weights and as many products per token.

    Args:
        width: Channels C of inputs and outputs.
        heads: Number of heads, a divisor of the width.
        weight_bits: From 2 to 8; ``None`` leaves weights as they are.
        act_bits: From 2 to 8; ``None`` leaves activations as they are.
        weight_quantizer: ``statsq`` for a scale from statistics, ``lsq`` for a learned one.
        granularity: As of `FakeQuantAttention`.
        bias: Whether values have a bias. Keys have none: it adds the same to all scores of a query, which the softmax
            removes.
        dropout: Probability, from 0 up to but not including 1, of dropping an attention probability in training.
        keep_query_bias: Whether queries keep their bias, as one vector per head that is not quantized. The paper drops
            it, which changes the function.
        force: Whether M may have more than 10^8 elements.

    Raises:
        ValueError: If an argument is not allowed, or M is too large and not forced.

    Source: Liu, Liu & Cheng 2023, arXiv:2302.02210.

    Examples:
        >>> import torch
        >>> attention = QKRAttention(width=8, heads=2, weight_bits=2)
        >>> attention(torch.randn(2, 5, 8)).shape, attention.weight_codes().shape
        (torch.Size([2, 5, 8]), torch.Size([16, 8]))
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
        keep_query_bias: bool = False,
        force: bool = False,
    ) -> None:
        if width * width * heads > LARGEST_PRODUCT and not force:
            raise ValueError(
                f"the product of query and key projection has {heads} x {width} x {width} = {width * width * heads} "
                f"elements, allowed are {LARGEST_PRODUCT}; leave the layer out of qkr, or pass force=True"
            )
        super().__init__(width, heads, weight_bits, act_bits, weight_quantizer, granularity, bias, dropout)
        if not keep_query_bias:
            self.q.register_parameter("bias", None)
        self.boundary_range: float | None = None  # annealing: gradients reach only elements of M this near a threshold

    def _make_scores(
        self, width: int, weight_bits: int | None, weight_quantizer: Literal["statsq", "lsq"], bias: bool
    ) -> None:
        self.q: Any = nn.Linear(width, width, bias=bias)
        self.k: Any = nn.Linear(width, width, bias=False)
        self.score: nn.Linear | None = None
        self.directions: nn.Linear | None = None
        self.weight_quantizer = make_weight_quantizer(weight_quantizer, weight_bits)
        self.score_quantizer = self._activations(width * self.heads)

    def _take_scores(self, q: nn.Linear, k: nn.Linear) -> None:
        self.q.weight, self.k.weight = q.weight, k.weight
        for latent in self.latents():
            widen(latent)
        if self.q.bias is not None:
            self.q.bias = q.bias
        if self.weight_quantizer is not None:
            self.weight_quantizer.to_empty(device=q.weight.device)
            with torch.no_grad():
                self.quantized_weight()  # learned steps follow from the weight

    def latent_weight(self) -> Tensor:
        """Return M of shape (heads · width, width) in full precision; what it was quantized to after a merge."""
        if self.score is not None:
            return self.score.weight
        return score_matrix(self.q.weight, self.k.weight, self.heads)

    def quantized_weight(self) -> Tensor:
        """Return what scores are computed with. While annealing, no gradient reaches elements far from a threshold."""
        latent = self.latent_weight()
        if self.weight_quantizer is None:
            return latent
        if self.boundary_range is not None and isinstance(self.weight_quantizer, StatsQuantizer):
            movable = self.weight_quantizer.movable(latent.detach(), self.boundary_range)
            latent = torch.where(movable, latent, latent.detach())
        return self.weight_quantizer(latent)

    def latents(self) -> list[nn.Parameter]:
        """Return the weights of both projections."""
        return [] if self.score is not None else [self.q.weight, self.k.weight]

    @torch.no_grad()
    def merge(self) -> None:
        """Replace both projections by the quantized product, ``score``, and the bias of queries by ``directions``.

        Outputs stay the same; the attention can't be trained as before.
        """
        matrix = self.quantized_weight()
        self.score = nn.Linear(matrix.shape[1], len(matrix), bias=False, device="meta")
        self.score.weight = nn.Parameter(matrix.clone())
        if self.q.bias is not None:
            directions = key_bias(self.q.bias, self.k.weight, self.heads)
            self.directions = nn.Linear(directions.shape[1], self.heads, bias=False, device="meta")
            self.directions.weight = nn.Parameter(directions)
        self.q = self.k = self.weight_quantizer = None

    def _masked_parameters(self, mask: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        masks = movable_factors(mask, self.heads)
        return [
            (weight, columns.repeat_interleave(len(weight) // self.heads, dim=0))
            for weight, columns in zip(self.latents(), masks, strict=True)
        ]

    def _scores(self, x: Tensor) -> Tensor:
        z = F.linear(x, self.quantized_weight().to(x.dtype))
        if self.score_quantizer is not None:
            shifted = (z + self.score_quantizer.before).unflatten(-1, (self.heads, -1))
            quantized = self.score_quantizer.quantizer(shifted.flatten(1, 2)).view_as(shifted)
            z = (quantized.flatten(2) + self.score_quantizer.after).to(x.dtype)
        scores = x.unsqueeze(1) @ z.unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1)
        directions = self._directions()
        if directions is not None:
            scores = scores + F.linear(x, directions.to(x.dtype)).transpose(1, 2).unsqueeze(2)
        return scores

    def _directions(self) -> Tensor | None:
        if self.score is not None:
            return None if self.directions is None else self.directions.weight
        return None if self.q.bias is None else key_bias(self.q.bias, self.k.weight, self.heads)
