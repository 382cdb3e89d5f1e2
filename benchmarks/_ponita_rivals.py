"""What PONITA is compared with: itself without fusion, EGNN, and a network of e3nn's tensor products.

All map charges, velocities and positions of complete graphs to one scalar and one vector for each point.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_weights.functional.ponita import bi_invariants, complete_edges, lift, polynomial_features, readout
from lightning_weights.kernels.fiber_conv import fiber_conv_reference, sort_edges
from lightning_weights.modules import Ponita


class Points(NamedTuple):
    """A batch of graphs and its edges, which all networks are given."""

    charges: Tensor
    velocities: Tensor
    pos: Tensor
    edge_index: Tensor
    batch: Tensor


def points(graphs: int, nodes: int) -> Points:
    """Draw complete graphs."""
    count = graphs * nodes
    batch = torch.arange(count) // nodes
    charges = torch.randint(0, 2, (count, 1)).float() * 2 - 1
    return Points(charges, torch.randn(count, 3), torch.randn(count, 3), complete_edges(batch), batch)


def unfused(network: Ponita) -> Callable[[Points], tuple[Tensor, Tensor]]:
    """Return the same function of the same weights as its operators compute it one by one, in mode bundle."""

    def forward(x: Points) -> tuple[Tensor, Tensor]:
        grid, edges = network.grid, sort_edges(x.edge_index, len(x.pos))
        relative = x.pos[edges.senders] - x.pos[edges.receivers]
        basis = invariants_to_basis(network.basis, bi_invariants(relative[:, None], grid))
        fiber_basis = invariants_to_basis(network.fiber_basis, (grid @ grid.mT)[..., None])
        features, outputs = network.embedding(lift(x.charges, x.velocities[:, None], grid)), []
        for block, head in zip(network.blocks, network.readouts, strict=True):
            conv = block.conv
            fiber = conv.fiber_kernel(fiber_basis)
            mixed = fiber_conv_reference(features, basis, conv.kernel.weight, fiber, conv.bias, edges=edges)
            features = features + block.linear_2(F.gelu(block.linear_1(block.norm(mixed))))
            outputs.append(head(features))
        return readout(sum(outputs) / len(outputs), grid, 1)

    return forward


def invariants_to_basis(layers: Any, attributes: Tensor) -> Tensor:
    """Apply a `KernelBasis` to all rows at once."""
    return F.gelu(layers.linear_2(F.gelu(layers.linear_1(polynomial_features(attributes, layers.degree)))))


def sums_over_edges(messages: Tensor, receivers: Tensor, count: int) -> Tensor:
    """Add messages up by receiver."""
    return messages.new_zeros(count, messages.shape[1]).index_add(0, receivers, messages)


class EGNN(nn.Module):
    """E(n)-equivariant network of Satorras et al. 2021, with velocities, and products of charges at the edges."""

    def __init__(self, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(2, hidden)
        self.edge = nn.ModuleList(mlp(2 * hidden + 2, hidden, hidden, last=True) for _ in range(layers))
        self.coordinate = nn.ModuleList(mlp(hidden, hidden, 1) for _ in range(layers))
        self.velocity = nn.ModuleList(mlp(hidden, hidden, 1) for _ in range(layers))
        self.node = nn.ModuleList(mlp(2 * hidden, hidden, hidden) for _ in range(layers))
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Points) -> tuple[Tensor, Tensor]:
        senders, receivers = x.edge_index
        h = self.embedding(torch.cat([x.charges, x.velocities.norm(dim=-1, keepdim=True)], dim=-1))
        pos, degree, products = x.pos, len(senders) / len(x.pos), x.charges[senders] * x.charges[receivers]
        for edge, coordinate, velocity, node in zip(self.edge, self.coordinate, self.velocity, self.node, strict=True):
            relative = pos[receivers] - pos[senders]
            squared = relative.square().sum(-1, keepdim=True)
            messages = edge(torch.cat([h[receivers], h[senders], squared, products], dim=-1))
            moved = sums_over_edges(relative * coordinate(messages), receivers, len(h)) / degree
            pos = pos + moved + velocity(h) * x.velocities
            h = h + node(torch.cat([h, sums_over_edges(messages, receivers, len(h))], dim=-1))
        return self.head(h), (pos - x.pos)[:, None]


def mlp(inputs: int, hidden: int, outputs: int, last: bool = False) -> nn.Sequential:
    """Two layers with SiLU, and one behind them if it is to be ``last``."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs), *([nn.SiLU()] if last else [])
    )


class TensorProductNetwork(nn.Module):
    """Layers as in NequIP: depthwise tensor products with spherical harmonics, radial weights, linear maps and gates.

    ``channels`` of every degree up to ``lmax``, even and odd as spherical harmonics are.
    """

    def __init__(self, channels: int, lmax: int, layers: int) -> None:
        super().__init__()
        from e3nn import o3  # beside the project, for the comparison alone
        from e3nn.nn import Gate

        self.o3 = o3
        self.harmonics = o3.Irreps.spherical_harmonics(lmax)
        hidden = o3.Irreps([(channels, (degree, (-1) ** degree)) for degree in range(lmax + 1)])
        gated = o3.Irreps([(channels, (degree, (-1) ** degree)) for degree in range(1, lmax + 1)])
        scalars, gates = o3.Irreps(f"{channels}x0e"), o3.Irreps(f"{channels * lmax}x0e")
        irreps = o3.Irreps("1x0e + 1x1o")
        self.first, self.products, self.radial = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.second, self.skip, self.gate = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for _ in range(layers):
            product = depthwise_product(o3, irreps, self.harmonics, hidden)
            self.gate.append(Gate(scalars, [torch.nn.functional.silu], gates, [torch.sigmoid], gated))
            self.first.append(o3.Linear(irreps, irreps))
            self.products.append(product)
            self.radial.append(mlp(8, 64, product.weight_numel))
            self.second.append(o3.Linear(product.irreps_out.simplify(), self.gate[-1].irreps_in))
            self.skip.append(o3.Linear(irreps, self.gate[-1].irreps_in))
            irreps = hidden
        self.head = o3.Linear(irreps, "1x0e + 1x1o")

    def forward(self, x: Points) -> tuple[Tensor, Tensor]:
        senders, receivers = x.edge_index
        relative = x.pos[senders] - x.pos[receivers]
        harmonics = self.o3.spherical_harmonics(self.harmonics, relative, True, "component")
        radial = bessel(relative.norm(dim=-1))
        h, scale = torch.cat([x.charges, x.velocities], dim=-1), (len(senders) / len(x.pos)) ** -0.5
        for first, product, weights, second, skip, gate in zip(
            self.first, self.products, self.radial, self.second, self.skip, self.gate, strict=True
        ):
            messages = product(first(h)[senders], harmonics, weights(radial))
            h = gate(second(sums_over_edges(messages, receivers, len(h)) * scale) + skip(h))
        out = self.head(h)
        return out[:, :1], out[:, None, 1:]


def depthwise_product(o3: Any, left: Any, right: Any, wanted: Any) -> Any:
    """Every path from a channel and a harmonic to a wanted degree, with a weight per edge and channel."""
    paths, outputs = [], []
    for i, (channels, one) in enumerate(left):
        for j, (_, two) in enumerate(right):
            for three in one * two:
                if three in wanted:
                    paths.append((i, j, len(outputs), "uvu", True))
                    outputs.append((channels, three))
    irreps, order, _ = o3.Irreps(outputs).sort()
    paths = [(i, j, order[k], mode, train) for i, j, k, mode, train in paths]
    return o3.TensorProduct(left, right, irreps, paths, shared_weights=False, internal_weights=False)


def bessel(distances: Tensor, count: int = 8, radius: float = 5.0) -> Tensor:
    """Radial functions that are finite at zero."""
    waves = torch.arange(1, count + 1, device=distances.device) / radius
    return torch.sinc(distances[:, None] * waves) * waves
