"""Networks on positions and orientations: invariants, orientation grids, lifting, and graphs."""

from lightning_weights.functional.ponita.gelu_linear import gelu_linear
from lightning_weights.functional.ponita.graphs import (
    LiftedGraph,
    add_self_loops,
    check_batch,
    check_edges,
    complete_edges,
    lifted_graph,
    radius_edges,
)
from lightning_weights.functional.ponita.invariants import bi_invariants, frame_invariants, safe_norm
from lightning_weights.functional.ponita.kernel_basis import kernel_basis
from lightning_weights.functional.ponita.lifting import lift, readout
from lightning_weights.functional.ponita.orientation_grids import orientation_grid
from lightning_weights.functional.ponita.polynomials import num_polynomial_features, polynomial_features
from lightning_weights.functional.ponita.rotations import random_rotations
from lightning_weights.functional.ponita.window import polynomial_cutoff

__all__ = [
    "LiftedGraph",
    "add_self_loops",
    "bi_invariants",
    "check_batch",
    "check_edges",
    "complete_edges",
    "frame_invariants",
    "gelu_linear",
    "kernel_basis",
    "lift",
    "lifted_graph",
    "num_polynomial_features",
    "orientation_grid",
    "polynomial_cutoff",
    "polynomial_features",
    "radius_edges",
    "random_rotations",
    "readout",
    "safe_norm",
]
