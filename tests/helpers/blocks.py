"""A tiny network of attention blocks, and what it is calibrated with."""

import torch
from torch import Tensor, nn

TOKENS, WIDTH = 20, 16


class AttentionBlock(nn.Module):
    """A block whose first three layers share an input."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """Return what goes into the next block."""
        h = self.norm(x)
        attention = torch.softmax(self.q(h) @ self.k(h).mT / 4, dim=-1)
        x = x + scale * self.o(attention @ self.v(h))
        return x + self.down(torch.relu(self.up(x)))


class TinyTransformer(nn.Module):
    """Blocks between an embedding and a head."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        self.layers = nn.ModuleList(AttentionBlock() for _ in range(blocks))
        self.head = nn.Linear(WIDTH, TOKENS)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return logits."""
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, scale=0.9)
        return self.head(x)


def transformer(seed: int = 0, blocks: int = 2) -> TinyTransformer:
    """Return the network, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyTransformer(blocks)


def token_batches(number: int = 4, size: int = 3, length: int = 8) -> list[Tensor]:
    """Return batches of tokens."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(TOKENS, (size, length), generator=generator) for _ in range(number)]
