"""What PONITA is compared with on the motion of charged particles.

All take and return what `Ponita` does, on complete graphs, so that the same LightningModule trains them. EGNN and the
network of tensor products are those of the benchmark.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from lightning_weights.functional.ponita import complete_edges
from lightning_weights.modules import Ponita, PonitaOutput


def from_benchmarks(name: str) -> ModuleType:
    """Import a file of the benchmarks, which are scripts in a folder of their own."""
    folder = str(Path(__file__).parents[1] / "benchmarks")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


class ConstantVelocity(nn.Module):
    """Go on as before: each point moves by a factor times its velocity."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(()))

    def fit(self, velocities: Tensor, displacements: Tensor) -> None:
        """Choose the factor whose squared error is least."""
        self.factor.copy_((velocities * displacements).sum() / velocities.square().sum())

    def forward(
        self, scalars: Tensor, pos: Tensor, edge_index: None, batch: Tensor, vectors: Tensor, condition: None
    ) -> PonitaOutput:
        return PonitaOutput(scalars[:, :0], self.factor * vectors)


class PositionsOnly(nn.Module):
    r"""PNITA, whose features are scalars, with the vectors that scalars can weigh.

    $$v_i = a(h_i)\, \dot x_i + \frac{1}{N} \sum_j w(h_i, h_j, \lVert x_j - x_i \rVert^2)\, (x_j - x_i)$$

    It reads the speed, since it can't read velocities; their directions have a part in the result, in no feature.
    """

    def __init__(self, hidden: int, layers: int) -> None:
        super().__init__()
        self.network = Ponita(2, out_scalars=1 + hidden, hidden_dim=hidden, num_layers=layers, mode="position")
        self.weigh = nn.Sequential(nn.Linear(2 * hidden + 1, hidden), nn.SiLU(), nn.Linear(hidden, 1))

    def forward(
        self, scalars: Tensor, pos: Tensor, edge_index: None, batch: Tensor, vectors: Tensor, condition: None
    ) -> PonitaOutput:
        edges = complete_edges(batch)
        senders, receivers = edges
        found = self.network(torch.cat([scalars, vectors.norm(dim=-1)], dim=-1), pos, edges, batch).scalars
        own, features = found[:, :1], found[:, 1:]
        relative = pos[senders] - pos[receivers]
        squares = relative.square().sum(-1, keepdim=True)
        weights = self.weigh(torch.cat([features[receivers], features[senders], squares], dim=-1))
        moved = torch.zeros_like(pos).index_add(0, receivers, weights * relative) / (len(senders) / len(pos))
        return PonitaOutput(scalars[:, :0], (own * vectors[:, 0] + moved)[:, None])


class Rival(nn.Module):
    """A network of the benchmark's, which has its own kind of batch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, scalars: Tensor, pos: Tensor, edge_index: None, batch: Tensor, vectors: Tensor, condition: None
    ) -> PonitaOutput:
        points = from_benchmarks("_ponita_rivals").Points(scalars, vectors[:, 0], pos, complete_edges(batch), batch)
        return PonitaOutput(scalars[:, :0], self.network(points)[1])


def egnn(hidden: int, layers: int) -> Rival:
    """Return EGNN with velocities and the products of charges."""
    return Rival(from_benchmarks("_ponita_rivals").EGNN(hidden, layers))


def tensor_products(channels: int, lmax: int, layers: int) -> Rival:
    """Return a network of tensor products of irreducible representations, which needs e3nn."""
    return Rival(from_benchmarks("_ponita_rivals").TensorProductNetwork(channels, lmax, layers))
