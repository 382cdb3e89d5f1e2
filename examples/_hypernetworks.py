"""What else may adapt a network: matrices shared by all, an MLP that generates them (text-to-LoRA), all weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_weights.modules import FunctionalMemory, GeneratedLoRA


class SharedLoRA(nn.Module):
    """One set of LoRA matrices for all samples, in the place of a generator."""

    def __init__(self, sizes: Mapping[str, tuple[int, int]], rank: int, scale: float = 2.0) -> None:
        super().__init__()
        self.sizes, self.scale = dict(sizes), scale
        self.a = nn.ParameterList([nn.Parameter(torch.empty(1, rank, inputs)) for inputs, _ in sizes.values()])
        self.b = nn.ParameterList([nn.Parameter(torch.zeros(1, outputs, rank)) for _, outputs in sizes.values()])
        for matrix in self.a:
            nn.init.kaiming_uniform_(matrix[0], a=5**0.5)

    def forward(self, condition: Tensor, mask: Tensor | None = None) -> GeneratedLoRA:
        """Return the matrices, whatever the condition is."""
        samples = len(condition)
        pairs = {
            name: (a.expand(samples, -1, -1), b.expand(samples, -1, -1))
            for name, a, b in zip(self.sizes, self.a, self.b, strict=True)
        }
        return GeneratedLoRA(pairs, self.scale)


class MLPHypernetwork(nn.Module):
    """Text-to-LoRA's way: an MLP maps the condition and an embedding of the layer to A and B, with B zero at first."""

    def __init__(
        self, sizes: Mapping[str, tuple[int, int]], cond_dim: int, rank: int, dim: int = 64, scale: float = 2.0
    ) -> None:
        super().__init__()
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the layers have sizes {set(sizes.values())}; one head makes matrices of one size")
        self.sizes, self.scale, self.rank = dict(sizes), scale, rank
        inputs, outputs = next(iter(sizes.values()))
        self.layers = nn.Parameter(torch.randn(len(sizes), dim // 2))
        self.encoder = nn.Sequential(nn.Linear(cond_dim, dim // 2), nn.SiLU())
        self.mixer = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())
        self.head_a, self.head_b = nn.Linear(dim, rank * inputs), nn.Linear(dim, rank * outputs)
        nn.init.zeros_(self.head_b.weight)
        nn.init.zeros_(self.head_b.bias)

    def forward(self, condition: Tensor, mask: Tensor | None = None) -> GeneratedLoRA:
        """Return the matrices of every sample, from the mean of its condition's tokens."""
        told = self.encoder(condition.mean(1))[:, None].expand(-1, len(self.sizes), -1)
        mixed = self.mixer(torch.cat([told, self.layers.expand(len(condition), -1, -1)], dim=2))
        a = self.head_a(mixed).unflatten(2, (self.rank, -1)).unbind(1)
        b = self.head_b(mixed).unflatten(2, (-1, self.rank)).unbind(1)
        return GeneratedLoRA(dict(zip(self.sizes, zip(a, b, strict=True), strict=True)), self.scale)


class AllWeights(FunctionalMemory):
    """Train the backbone itself; its matrices stay zero."""

    def __init__(self, backbone: nn.Module, sizes: Mapping[str, tuple[int, int]], **options: Any) -> None:
        super().__init__(backbone, SharedLoRA(sizes, rank=1), **options)
        self.memory.generator.requires_grad_(False)
        self.memory.backbone.requires_grad_(True)

    def on_fit_start(self) -> None:
        """Warn of nothing: that the backbone is trained is the purpose."""

    def configure_optimizers(self) -> Any:
        """Return optimizer and scheduler of the backbone's weights."""
        optimizer = self.optimizer(self.memory.backbone.parameters())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"}}
