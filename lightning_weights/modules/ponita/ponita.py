"""The network: equivariant functions of points, their scalars and their vectors."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional.ponita import orientation_grid, random_rotations, readout
from lightning_weights.functional.rotated import rotated
from lightning_weights.modules.ponita.block import PonitaBlock
from lightning_weights.modules.ponita.calibration import calibrating
from lightning_weights.modules.ponita.geometry import (
    Geometry,
    bundle_geometry,
    pointcloud_geometry,
    position_geometry,
    product_geometry,
)
from lightning_weights.modules.ponita.graph_inputs import (
    GraphInputs,
    check_inputs,
    graph_inputs,
    graph_of_points,
    num_graphs,
)
from lightning_weights.modules.ponita.kernel_basis import KernelBasis
from lightning_weights.modules.ponita.separable_fiber_conv import SeparableFiberConv

ATTRIBUTES = {"bundle": 2, "pointcloud": 3, "position": 1}  # numbers of invariants of a pair
FEWEST_ORIENTATIONS = {2: 3, 3: 4}  # with fewer, vectors can't be written as means over orientations


class PonitaOutput(NamedTuple):
    """What the network says about points, or about graphs if it pools.

    Attributes:
        scalars: (N, out_scalars), or (G, out_scalars).
        vectors: (N, out_vectors, n), or (G, out_vectors, n).

    Examples:
        >>> PonitaOutput(torch.ones(2, 1), torch.zeros(2, 0, 3)).scalars.shape
        torch.Size([2, 1])
    """

    scalars: Tensor
    vectors: Tensor


class Ponita(nn.Module):
    r"""Map points with scalars and vectors to scalars and vectors, so that rotations and translations go through.

    Features live on positions and orientations, $f(x, o)$. Kernels depend on invariants of pairs of them alone, see
    `bi_invariants`, and are separable, see `SeparableFiberConv`. Modes:

    - ``bundle``: every point has the same grid of orientations. Equivariant exactly if the grid turns too, under the
      grid's own symmetries, and approximately else; with a randomly turned grid the error averages out.
    - ``pointcloud``: every edge is a point that looks along it. Exactly equivariant; costs grow with degrees squared.
    - ``position``: no orientations, PNITA in the paper. Exactly equivariant; knows distances only, no vectors.

    Args:
        in_scalars: Scalars per point.
        in_vectors: Vectors per point.
        out_scalars: Scalars to predict.
        out_vectors: Vectors to predict.
        dim: Dimension of space.
        hidden_dim: Channels C, and width of the networks of invariants.
        basis_dim: Basis functions B; ``None`` for ``hidden_dim``.
        num_layers: Number of blocks.
        num_orientations: Size O of the grid, in mode ``bundle``.
        degree: Largest degree of monomials of invariants.
        radius: End of a smooth window. Without given edges it also decides who is connected.
        widening_factor: Width of the blocks' networks divided by C.
        layer_scale: Initial scale of what a block adds, such as 1e-6; ``None`` for no scale.
        multiple_readouts: Whether all blocks are read out and averaged, or the last one only.
        pooling: ``none`` for outputs per point, ``sum`` or ``mean`` for outputs per graph.
        mode: ``bundle``, ``pointcloud`` or ``position``.
        random_grid: When the grid is turned at random, once per forward pass, by PyTorch's global generator: ``off``,
            in training mode (``train``) or ``always``.
        conditioning_dim: Numbers per graph that scalars and invariants are extended by, such as a noise level.
        grid: How orientations are spread in space: ``fibonacci``, ``repulsion``, ``antipodal`` or ``platonic``, see
            `orientation_grid`. The last two have opposite orientations, which on CPUs halves the work at edges.
        separable: Whether kernels are products of functions of (a₁, a₂) and of a₃, in mode ``bundle``; otherwise one
            function of all three, which costs O times as much.
        depthwise: Whether convolutions keep channels apart; otherwise they mix them where they mix orientations, in
            mode ``bundle``.

    Raises:
        ValueError: If an argument is out of range, or vectors are asked for where none can be represented.

    Source: Bekkers, Vadgama, Hesselink, van der Linden & Romero 2024, arXiv:2310.02970. Differs from the released code:
    sizes of layers are known at once; calibration is a pass of its own; vectors are pooled over points; in the plane
    a₂ is signed.

    Examples:
        >>> network = Ponita(1, 1, 1, 1, hidden_dim=8, num_layers=2, num_orientations=8)
        >>> charges, velocities = torch.ones(5, 1), torch.randn(5, 1, 3)
        >>> scalars, vectors = network(charges, torch.randn(5, 3), vectors=velocities)
        >>> scalars.shape, vectors.shape
        (torch.Size([5, 1]), torch.Size([5, 1, 3]))
    """

    grid: Tensor

    def __init__(
        self,
        in_scalars: int,
        in_vectors: int = 0,
        out_scalars: int = 1,
        out_vectors: int = 0,
        dim: Literal[2, 3] = 3,
        hidden_dim: int = 128,
        basis_dim: int | None = None,
        num_layers: int = 5,
        num_orientations: int = 16,
        degree: int = 3,
        radius: float | None = None,
        widening_factor: int = 4,
        layer_scale: float | None = None,
        multiple_readouts: bool = True,
        pooling: Literal["none", "sum", "mean"] = "none",
        mode: Literal["bundle", "pointcloud", "position"] = "bundle",
        random_grid: Literal["off", "train", "always"] = "train",
        conditioning_dim: int = 0,
        grid: Literal["fibonacci", "repulsion", "antipodal", "platonic"] = "fibonacci",
        separable: bool = True,
        depthwise: bool = True,
    ) -> None:
        super().__init__()
        basis_dim = hidden_dim if basis_dim is None else basis_dim
        counts = {"in_scalars": in_scalars, "in_vectors": in_vectors, "out_scalars": out_scalars}
        _check_counts({**counts, "out_vectors": out_vectors, "conditioning_dim": conditioning_dim}, low=0)
        sizes = {"hidden_dim": hidden_dim, "basis_dim": basis_dim, "num_layers": num_layers}
        _check_counts({**sizes, "num_orientations": num_orientations}, low=1)
        _check_choices(dim, pooling, mode, random_grid, radius)
        _check_convolutions(mode, separable, depthwise)
        bundle = mode == "bundle"
        with torch.device("cpu"):  # where values can be looked at, also if the network is made on the meta device
            directions = orientation_grid(num_orientations, dim, grid) if bundle else torch.empty(0, dim)
        _check_features(mode, grid, directions, in_scalars, in_vectors, out_scalars, out_vectors)
        self.in_scalars, self.in_vectors, self.conditioning_dim = in_scalars, in_vectors, conditioning_dim
        self.out_scalars, self.out_vectors, self.dim, self.radius = out_scalars, out_vectors, dim, radius
        self.mode, self.pooling, self.random_grid = mode, pooling, random_grid
        self.separable, fibers = separable, bundle and separable
        attributes = ATTRIBUTES[mode] + bundle - fibers
        self.basis = KernelBasis(attributes + conditioning_dim, hidden_dim, basis_dim, degree)
        self.fiber_basis = KernelBasis(1, hidden_dim, basis_dim, degree) if fibers else None
        self.embedding = nn.Linear(in_scalars + conditioning_dim + in_vectors, hidden_dim, bias=False)
        self.register_buffer("grid", directions.to(self.embedding.weight))
        convs = [SeparableFiberConv(hidden_dim, basis_dim, None, depthwise, fibers) for _ in range(num_layers)]
        self.blocks = nn.ModuleList(PonitaBlock(conv, widening_factor, layer_scale) for conv in convs)
        readouts = num_layers if multiple_readouts else 1
        self.readouts = nn.ModuleList(nn.Linear(hidden_dim, out_scalars + out_vectors) for _ in range(readouts))

    def forward(
        self,
        scalars: Any,
        pos: Tensor | None = None,
        edge_index: Tensor | None = None,
        batch: Tensor | None = None,
        vectors: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> PonitaOutput:
        """Compute outputs for graphs.

        Args:
            scalars: Scalars of the points, (N, in_scalars); or, alone, a batch that has everything, see `graph_inputs`.
            pos: Positions, (N, n).
            edge_index: Senders and receivers, (2, E); ``None`` for all pairs, or those within the radius. Self loops
                are added, and repeated edges count once.
            batch: Number of its graph for each point, ascending; ``None`` for one graph.
            vectors: Vectors of the points, (N, in_vectors, n).
            condition: Numbers of the graphs, (G, conditioning_dim).

        Returns:
            Scalars and vectors of points, or of graphs.

        Raises:
            ValueError: If shapes don't fit, graphs are not sorted, or positions are of no use.
        """
        if pos is None:
            inputs = graph_inputs(scalars)
        else:
            inputs = GraphInputs(scalars, pos, edge_index, batch, vectors, condition)
        check_inputs(inputs, self.in_scalars, self.in_vectors, self.dim, self.conditioning_dim)
        dtype = self.embedding.weight.dtype
        with torch.autocast(inputs.pos.device.type, enabled=False):
            geometry = self._geometry(inputs, dtype)
        basis = self.basis(geometry.attributes, geometry.window)
        fiber_basis = None
        if self.fiber_basis is not None:
            fiber_basis = self.fiber_basis(geometry.fiber_attributes)
        features = self.embedding(geometry.features).to(dtype)
        total: Tensor | None = None
        for number, block in enumerate(self.blocks):
            features = block(features, basis, fiber_basis, geometry.edges)
            place = number - len(self.blocks) + len(self.readouts)
            if place >= 0:
                part = self.readouts[place](features)
                total = part if total is None else total + part
        assert total is not None
        with torch.autocast(inputs.pos.device.type, enabled=False):
            return self._output(total.to(dtype) / len(self.readouts), geometry, inputs)

    def calibrate(self, scalars: Any, *arguments: Any, **options: Any) -> None:
        """Rescale the convolutions on a batch, once; arguments as those of a forward pass.

        Args:
            scalars: Scalars of the points, or a batch that has everything.
            *arguments: Further arguments of a forward pass.
            **options: The same by name.
        """
        with torch.no_grad(), calibrating(self):
            self(scalars, *arguments, **options)

    def _geometry(self, inputs: GraphInputs, dtype: torch.dtype) -> Geometry:
        if self.mode == "position":
            return position_geometry(inputs, dtype, self.radius)
        if self.mode == "pointcloud":
            return pointcloud_geometry(inputs, dtype, self.radius)
        grid = self.grid.to(dtype)
        if self.random_grid == "always" or (self.random_grid == "train" and self.training):
            grid = rotated(grid, random_rotations(1, self.dim)[0].mT)
        return (bundle_geometry if self.separable else product_geometry)(inputs, grid, self.radius)

    def _output(self, features: Tensor, geometry: Geometry, inputs: GraphInputs) -> PonitaOutput:
        """Read features (N', O, c) out, and add them up over what they belong to."""
        if geometry.orientations is None:
            scalars, vectors = features[:, 0], features.new_zeros(len(features), 0, self.dim)
        else:
            scalars, vectors = readout(features, geometry.orientations, self.out_scalars)
        if geometry.bases is not None:
            scalars, vectors = (_add_up(x, geometry.bases, len(inputs.pos), mean=True) for x in (scalars, vectors))
        if self.pooling != "none":
            graphs, mean = graph_of_points(inputs), self.pooling == "mean"
            scalars, vectors = (_add_up(x, graphs, num_graphs(inputs), mean) for x in (scalars, vectors))
        return PonitaOutput(scalars, vectors)


def _add_up(values: Tensor, groups: Tensor, count: int, mean: bool) -> Tensor:
    sums = values.new_zeros(count, *values.shape[1:]).index_add(0, groups, values)
    if not mean:
        return sums
    sizes = torch.bincount(groups, minlength=count).clamp(min=1)
    return sums / sizes.view(-1, *(1 for _ in values.shape[1:]))


def _check_counts(counts: dict[str, int], low: int) -> None:
    for name, value in counts.items():
        check_number(name, value, low=low, whole=True)


def _check_choices(dim: int, pooling: str, mode: str, random_grid: str, radius: float | None) -> None:
    check_choice("dim", dim, (2, 3))
    check_choice("pooling", pooling, ("none", "sum", "mean"))
    check_choice("mode", mode, ("bundle", "pointcloud", "position"))
    check_choice("random_grid", random_grid, ("off", "train", "always"))
    if radius is not None:
        check_number("radius", radius, low=0.0, low_allowed=False)


def _check_convolutions(mode: str, separable: bool, depthwise: bool) -> None:
    if mode != "bundle" and not (separable and depthwise):
        raise ValueError(
            f"separable is {separable} and depthwise {depthwise} in mode {mode!r}; allowed is True for both: only "
            f"mode='bundle' has orientations at every point"
        )
    if not (separable or depthwise):
        raise ValueError(
            "separable and depthwise are False; allowed is one of them: channels are mixed where orientations are "
            "contracted, in separable convolutions"
        )


def _check_features(
    mode: str, grid: str, directions: Tensor, in_scalars: int, in_vectors: int, out_scalars: int, out_vectors: int
) -> None:
    if not (in_scalars or in_vectors) or not (out_scalars or out_vectors):
        raise ValueError(
            f"in_scalars is {in_scalars}, in_vectors {in_vectors}, out_scalars {out_scalars} and out_vectors "
            f"{out_vectors}; allowed is at least one input and one output: give points without features a scalar of 1"
        )
    if mode == "position" and (in_vectors or out_vectors):
        raise ValueError(
            f"in_vectors is {in_vectors} and out_vectors {out_vectors} in mode 'position'; allowed are none: positions "
            f"without orientations know no directions. Use mode='bundle' or 'pointcloud'"
        )
    if mode == "bundle" and (in_vectors or out_vectors):
        count, dim = directions.shape
        spanned = int(torch.linalg.matrix_rank(directions))
        if count < FEWEST_ORIENTATIONS[dim] or spanned < dim:
            raise ValueError(
                f"num_orientations is {count} with grid={grid!r}, whose directions span {spanned} of {dim} dimensions; "
                f"vectors need at least {FEWEST_ORIENTATIONS[dim]} that span them all: take more, such as 6, or set "
                f"in_vectors and out_vectors to 0"
            )
