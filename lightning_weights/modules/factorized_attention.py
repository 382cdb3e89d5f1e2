"""Attention over layers, within a layer, and to a condition: the blocks of a weight generator."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_weights.functional.hy_wu import rotate


class WideRMSNorm(nn.RMSNorm):
    """Root-mean-square normalisation that computes in fp32 and keeps the data type."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            return F.rms_norm(wide, self.normalized_shape, self.weight.to(wide.dtype), self.eps).to(x.dtype)


class RotaryAttention(nn.Module):
    """Attention of heads whose queries and keys are turned by their positions, with biased projections.

    Args:
        dim: Width of the tokens.
        head_dim: Width of a head, a divisor of it.
    """

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim) for _ in range(4))

    def forward(
        self, x: Tensor, source: Tensor, query_table: Tensor, key_table: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Let tokens look at a source.

        Args:
            x: Tokens (..., length, dim).
            source: What they look at (..., other length, dim); leading dimensions are broadcast.
            query_table: Cosines and sines of the tokens' positions.
            key_table: Those of the source.
            mask: Which tokens of the source count (..., other length). ``None``: all.
        """
        query, key, value = (
            projection(tokens).unflatten(-1, (-1, self.head_dim)).transpose(-3, -2)
            for projection, tokens in ((self.query, x), (self.key, source), (self.value, source))
        )
        query, key = rotate(query, query_table), rotate(key, key_table)
        if len(query) != len(key):  # scaled_dot_product_attention's fast paths broadcast nothing
            query = query.expand(len(key), *query.shape[1:])
        if mask is not None:
            mask = mask[..., None, None, :]
        found = F.scaled_dot_product_attention(query, key, value.to(key.dtype), attn_mask=mask)
        return self.output(found.transpose(-3, -2).flatten(-2))


class GeneratorBlock(nn.Module):
    r"""Attention over the backbone's layers, within each layer and to the condition, then a network for every token.

    With N layers of S tokens, N·S² + S·N² scores take the place of (N·S)².

    Args:
        dim: Width of the tokens.
        head_dim: Width of a head.
    """

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.norm_layers, self.norm_tokens, self.norm_condition, self.norm_feed = (
            WideRMSNorm(dim, eps=1e-6) for _ in range(4)
        )
        self.over_layers = RotaryAttention(dim, head_dim)
        self.over_tokens = RotaryAttention(dim, head_dim)
        self.to_condition = RotaryAttention(dim, head_dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))

    def forward(
        self, x: Tensor, condition: Tensor, tables: tuple[Tensor, Tensor, Tensor, Tensor], mask: Tensor | None
    ) -> Tensor:
        """Transform tokens (B or 1, N, S, dim) by the condition (B, L, dim) to (B, N, S, dim)."""
        layer_table, token_table, query_table, key_table = tables
        columns = self.norm_layers(x).transpose(1, 2)
        x = x + self.over_layers(columns, columns, layer_table, layer_table).transpose(1, 2)
        rows = self.norm_tokens(x)
        x = x + self.over_tokens(rows, rows, token_table, token_table)
        flat = self.norm_condition(x).flatten(1, 2)
        x = x + self.to_condition(flat, condition, query_table, key_table, mask).unflatten(1, x.shape[1:3])
        return x + self.feed_forward(self.norm_feed(x))
