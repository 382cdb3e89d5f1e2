"""A residual network of linear layers, small enough to be edited by hand."""

import torch
from torch import Tensor, nn

from lightning_weights.errors import check_number


class ResidualBlock(nn.Module):
    r"""One block of a `ResidualMLP`: x + W₂ SiLU(W₁ norm(x)).

    Args:
        width: Width of the network.

    Examples:
        >>> ResidualBlock(8)(torch.zeros(2, 8)).shape
        torch.Size([2, 8])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform inputs of shape (N, width)."""
        return x + self.fc2(nn.functional.silu(self.fc1(self.norm(x))))


class ResidualMLP(nn.Module):
    """A linear layer in, residual blocks, a linear layer out.

    Args:
        in_features: Inputs, all tensors that it is called with side by side.
        out_features: Outputs.
        width: Width of the blocks.
        depth: Number of blocks.
        copies: Whether it starts as a network that repeats its first ``out_features`` inputs exactly, whatever the
            others are. Its blocks then compute at random in what is left of the width, which has to be larger than
            ``in_features``. Otherwise it starts as PyTorch does.
        seed: Seed of the weights that copy.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> network, image = ResidualMLP(6, out_features=4, width=10, copies=True), torch.rand(2, 4)
        >>> torch.allclose(network(image, torch.rand(2, 2)), image, atol=1e-5)
        True
    """

    def __init__(
        self,
        in_features: int = 72,
        out_features: int = 64,
        width: int = 96,
        depth: int = 3,
        copies: bool = False,
        seed: int = 0,
    ) -> None:
        for name, value in (("out_features", out_features), ("width", width), ("depth", depth)):
            check_number(name, value, low=1, whole=True)
        check_number("in_features", in_features, low=1, whole=True)
        if copies and not out_features <= in_features < width:
            raise ValueError(
                f"in_features is {in_features} with out_features {out_features} and width {width}; to copy, allowed "
                f"are {out_features} to {width - 1}"
            )
        super().__init__()
        self.embed, self.head = nn.Linear(in_features, width), nn.Linear(width, out_features)
        self.blocks = nn.ModuleList([ResidualBlock(width) for _ in range(depth)])
        if copies:
            self._copy(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _copy(self, generator: torch.Generator) -> None:
        width, outputs = self.embed.out_features, self.head.out_features
        drawn = torch.randn(width, width, generator=generator, device="cpu")
        frame, _ = torch.linalg.qr(drawn)
        self.embed.weight.copy_(frame[:, : self.embed.in_features])
        self.head.weight.copy_(frame[:, :outputs].t())
        for layer in (self.embed, self.head):
            layer.bias.zero_()
        rest = frame[:, outputs:]
        for block in self.blocks:
            inner = torch.randn(rest.shape[1], width, generator=generator, device="cpu") / width**0.5
            block.fc1.weight.copy_(torch.randn(width, width, generator=generator, device="cpu") / width**0.5)
            block.fc2.weight.copy_(rest @ inner)
            block.fc1.bias.zero_()
            block.fc2.bias.zero_()

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map inputs (N, ...), which are flattened and put side by side, to outputs (N, out_features)."""
        x = self.embed(torch.cat([part.flatten(1) for part in inputs], dim=1))
        for block in self.blocks:
            x = block(x)
        return self.head(x)
