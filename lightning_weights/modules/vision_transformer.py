"""A small vision transformer."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_weights.errors import check_choice, check_number


class SelfAttention(nn.Module):
    """Attend over tokens.

    Args:
        width: Channels of inputs and outputs.
        heads: Number of heads, a divisor of the width.
        dropout: Probability of dropping an attention probability in training.

    Examples:
        >>> import torch
        >>> SelfAttention(width=8, heads=2)(torch.randn(3, 5, 8)).shape
        torch.Size([3, 5, 8])
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.attn_drop = nn.Dropout(dropout)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs of the shape of the inputs, (batch, tokens, width)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.attn_drop.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attend and transform every token, each behind a normalisation and added to its input.

    Args:
        width: Channels of inputs and outputs.
        heads: Number of heads, a divisor of the width.
        mlp_width: Width of the hidden layer that transforms a token.
        dropout: Probability of dropping attention probabilities and what is added, in training.

    Examples:
        >>> import torch
        >>> TransformerBlock(width=8, heads=2, mlp_width=16)(torch.randn(3, 5, 8)).shape
        torch.Size([3, 5, 8])
    """

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(width, mlp_width))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(mlp_width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs of the shape of the inputs, (batch, tokens, width)."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class CompactViT(nn.Module):
    """Classify small images with a transformer over patches.

    Parts are called ``patch_embed``, ``blocks``, ``norm`` and ``head``. Without classes it is a backbone: the pooled
    features behind the last normalisation come out, and ``head`` is the identity.

    Args:
        image_size: Height and width of the images.
        patch_size: Height and width of a patch, a divisor of the image size.
        in_channels: Channels of the images.
        width: Channels of the tokens.
        depth: Number of blocks.
        heads: Number of heads, a divisor of the width.
        mlp_ratio: Width of the hidden layer of a block divided by that of the tokens.
        num_classes: Number of outputs. ``None``: the pooled features are the output.
        pool: What is classified: the ``mean`` over the patches, or a ``class`` token that is learned and put in front.
        dropout: Probability, from 0 up to but not including 1, of dropping attention probabilities and what a block
            adds, in training.

    Raises:
        ValueError: If an argument is not allowed.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929; mean pooling as Beyer, Zhai & Kolesnikov 2022, arXiv:2205.01580.

    Examples:
        >>> import torch
        >>> CompactViT(image_size=8, patch_size=2)(torch.zeros(4, 1, 8, 8)).shape
        torch.Size([4, 10])
        >>> CompactViT(num_classes=None, width=16)(torch.zeros(4, 64)).shape
        torch.Size([4, 16])
    """

    def __init__(
        self,
        image_size: int = 8,
        patch_size: int = 2,
        in_channels: int = 1,
        width: int = 32,
        depth: int = 2,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        num_classes: int | None = 10,
        pool: Literal["mean", "class"] = "mean",
        dropout: float = 0.0,
    ) -> None:
        sizes = {
            "image_size": image_size,
            "patch_size": patch_size,
            "in_channels": in_channels,
            "width": width,
            "depth": depth,
            "heads": heads,
            "num_classes": 1 if num_classes is None else num_classes,
        }
        for name, size in sizes.items():
            check_number(name, size, low=1, whole=True)
        check_number("mlp_ratio", mlp_ratio, low=0.0, low_allowed=False)
        check_number("dropout", dropout, low=0.0, high=1.0)
        check_choice("pool", pool, ("mean", "class"))
        for name, size, whole in (("patch_size", patch_size, image_size), ("heads", heads, width)):
            if whole % size:
                raise ValueError(f"{name} is {size}; allowed are divisors of {whole}")
        super().__init__()
        self.image_shape = (in_channels, image_size, image_size)
        self.pool = pool
        self.patch_embed = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        tokens = (image_size // patch_size) ** 2 + (pool == "class")
        self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if pool == "class" else None
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, width), std=0.02))
        mlp_width = max(1, round(mlp_ratio * width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, mlp_width, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Identity() if num_classes is None else nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, or features, of images of shape (N, channels, height, width), which may be flattened."""
        tokens = self.patch_embed(x.reshape(-1, *self.image_shape)).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = self.norm(self.blocks(tokens + self.positions))
        return self.head(tokens[:, 0] if self.class_token is not None else tokens.mean(1))
