"""A small vision transformer."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional.learngene_sws import check_repeats
from lightning_weights.functional.stochastic_depth import drop_path as without_some
from lightning_weights.modules.stage_shared_stack import StageSharedStack


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
        eps: Added to the variance in both normalisations.

    Examples:
        >>> import torch
        >>> TransformerBlock(width=8, heads=2, mlp_width=16)(torch.randn(3, 5, 8)).shape
        torch.Size([3, 5, 8])
    """

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float = 0.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = SelfAttention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(width, mlp_width))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(mlp_width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, drop_path: float = 0.0) -> Tensor:
        """Return outputs of the shape of the inputs, (batch, tokens, width).

        Args:
            x: Inputs.
            drop_path: Probability of leaving out each of the two that are added to a sample, in training.
        """
        x = x + without_some(self.dropout(self.attention(self.norm1(x))), drop_path, self.training)
        return x + without_some(self.dropout(self.mlp(self.norm2(x))), drop_path, self.training)


class CompactViT(nn.Module):
    """Classify small images with a transformer over patches.

    Parts are called ``patch_embed``, ``blocks``, ``norm`` and ``head``; ``architecture`` has the arguments that weights
    depend on, without the depth. Without classes it is a backbone: the pooled features behind the last normalisation
    come out, and ``head`` is the identity.

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
        pool_first: Whether tokens are pooled before the last normalisation, as in timm's networks without a class
            token, instead of after it.
        eps: Added to the variance in every normalisation.
        repeats: How often a block is applied in a row, for every block, with the sum ``depth``: stage-wise weight
            sharing, see [`StageSharedStack`][lightning_weights.modules.StageSharedStack]. ``None``: once, as usual.
        drop_path: Probability, from 0 up to but not including 1, of leaving out each of the two that the last layer
            adds to a sample, in training; over the layers it grows in equal steps from 0.
        init_std: Standard deviation of all linear layers' first weights, drawn from a truncated normal distribution,
            with biases of 0. ``None``: PyTorch's own way.

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
        pool_first: bool = False,
        eps: float = 1e-5,
        repeats: list[int] | None = None,
        drop_path: float = 0.0,
        init_std: float | None = None,
    ) -> None:
        architecture = {
            "image_size": image_size,
            "patch_size": patch_size,
            "in_channels": in_channels,
            "width": width,
            "heads": heads,
            "mlp_ratio": mlp_ratio,
            "num_classes": num_classes,
            "pool": pool,
            "pool_first": pool_first,
            "eps": eps,
        }
        _check(architecture, depth, dropout, drop_path, init_std)
        counts = [1] * depth if repeats is None else check_repeats(repeats, depth)
        super().__init__()
        self.architecture = {**architecture, "mlp_ratio": float(mlp_ratio)}
        self.image_shape = (in_channels, image_size, image_size)
        self.pool = pool
        self.pool_first = pool_first
        self.patch_embed = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        tokens = (image_size // patch_size) ** 2 + (pool == "class")
        self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if pool == "class" else None
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, width), std=0.02))
        mlp_width = max(1, round(mlp_ratio * width))
        blocks = [TransformerBlock(width, heads, mlp_width, dropout, eps) for _ in counts]
        plain = repeats is None and drop_path == 0.0
        self.blocks = nn.Sequential(*blocks) if plain else StageSharedStack(blocks, counts, drop_path)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.head = nn.Identity() if num_classes is None else nn.Linear(width, num_classes)
        if init_std is not None:
            self._draw_weights(init_std)

    def _draw_weights(self, std: float) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=std)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, or features, of images of shape (N, channels, height, width), which may be flattened."""
        tokens = self.patch_embed(x.reshape(-1, *self.image_shape)).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = self.blocks(tokens + self.positions)
        if not self.pool_first:
            tokens = self.norm(tokens)
        pooled = tokens[:, 0] if self.class_token is not None else tokens.mean(1)
        return self.head(self.norm(pooled) if self.pool_first else pooled)


def _check(
    architecture: Mapping[str, Any], depth: int, dropout: float, drop_path: float, init_std: float | None
) -> None:
    sizes = {name: architecture[name] for name in ("image_size", "patch_size", "in_channels", "width", "heads")}
    classes = architecture["num_classes"]
    for name, size in {**sizes, "depth": depth, "num_classes": 1 if classes is None else classes}.items():
        check_number(name, size, low=1, whole=True)
    for name in ("mlp_ratio", "eps"):
        check_number(name, architecture[name], low=0.0, low_allowed=False)
    for name, probability in (("dropout", dropout), ("drop_path", drop_path)):
        check_number(name, probability, low=0.0, high=1.0)
    check_choice("pool", architecture["pool"], ("mean", "class"))
    for name, whole in (("patch_size", sizes["image_size"]), ("heads", sizes["width"])):
        if whole % sizes[name]:
            raise ValueError(f"{name} is {sizes[name]}; allowed are divisors of {whole}")
    if init_std is not None:
        check_number("init_std", init_std, low=0.0, low_allowed=False)
