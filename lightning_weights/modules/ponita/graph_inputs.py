"""What the network reads from a batch of graphs, whatever class the batch has, and what it refuses."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_weights.functional.ponita import check_batch, check_edges

NAMES = {
    "scalars": "x",
    "pos": "pos",
    "edge_index": "edge_index",
    "batch": "batch",
    "vectors": "vec",
    "condition": "condition",
}


class GraphInputs(NamedTuple):
    """Graphs as plain tensors.

    Attributes:
        scalars: Scalars of the points, (N, c_s).
        pos: Positions, (N, n).
        edge_index: Senders and receivers, (2, E); ``None`` for all pairs, or those within the network's radius.
        batch: Number of its graph for each point, ascending; ``None`` for one graph.
        vectors: Vectors of the points, (N, c_v, n).
        condition: Numbers of each graph, (G, c).

    Examples:
        >>> GraphInputs(torch.ones(2, 1), torch.zeros(2, 3)).vectors is None
        True
    """

    scalars: Tensor
    pos: Tensor
    edge_index: Tensor | None = None
    batch: Tensor | None = None
    vectors: Tensor | None = None
    condition: Tensor | None = None


def graph_inputs(batch: Any) -> GraphInputs:
    """Read the inputs of `Ponita` from a batch: a mapping, or an object with attributes as torch_geometric's.

    Args:
        batch: Has ``x`` and ``pos``, and maybe ``edge_index``, ``batch``, ``vec`` and ``condition``. Vectors (N, n)
            stand for (N, 1, n).

    Returns:
        The tensors.

    Raises:
        ValueError: If ``x`` or ``pos`` is missing.

    Examples:
        >>> graph_inputs({"x": torch.ones(2, 1), "pos": torch.zeros(2, 3)}).edge_index is None
        True
    """
    read = batch.get if isinstance(batch, Mapping) else lambda name: getattr(batch, name, None)
    found = {argument: read(name) for argument, name in NAMES.items()}
    if not all(isinstance(found[needed], Tensor) for needed in ("scalars", "pos")):
        raise ValueError(
            f"batch is a {type(batch).__name__} without tensors x and pos; allowed is a mapping or an object with "
            f"them, such as a torch_geometric batch, and maybe edge_index, batch, vec and condition"
        )
    vectors = found["vectors"]
    if isinstance(vectors, Tensor) and vectors.dim() == 2:
        found["vectors"] = vectors[:, None]
    return GraphInputs(**found)


def check_inputs(inputs: GraphInputs, in_scalars: int, in_vectors: int, dim: int, conditioning_dim: int) -> None:
    """Check what a network is given.

    Args:
        inputs: The tensors.
        in_scalars: Scalars that the network reads.
        in_vectors: Vectors that it reads.
        dim: Dimension of space.
        conditioning_dim: Numbers per graph that it reads.

    Raises:
        ValueError: If shapes or data types don't fit or, on the CPU, positions are not finite.
    """
    count = inputs.scalars.shape[0]
    vectors, condition = inputs.vectors, inputs.condition
    if inputs.scalars.shape != (count, in_scalars) or inputs.pos.shape != (count, dim):
        raise ValueError(
            f"scalars has shape {tuple(inputs.scalars.shape)} and pos {tuple(inputs.pos.shape)}; allowed are "
            f"(N, {in_scalars}) and (N, {dim}), as in_scalars and dim say"
        )
    if in_vectors if vectors is None else vectors.shape != (count, in_vectors, dim):
        shape = "missing" if vectors is None else f"of shape {tuple(vectors.shape)}"
        wanted = f"(N, {in_vectors}, {dim})" if in_vectors else "none, since in_vectors is 0"
        raise ValueError(f"vectors are {shape}; allowed are {wanted}")
    if inputs.batch is not None:
        check_batch(inputs.batch, count)
    if inputs.edge_index is not None:
        check_edges(inputs.edge_index, count)
    if conditioning_dim if condition is None else condition.shape != (num_graphs(inputs), conditioning_dim):
        shape = "missing" if condition is None else f"of shape {tuple(condition.shape)}"
        wanted = (
            f"({num_graphs(inputs)}, {conditioning_dim}), a row per graph"
            if conditioning_dim
            else "none, since conditioning_dim is 0"
        )
        raise ValueError(f"condition is {shape}; allowed is {wanted}")
    # elsewhere looking would make the host wait
    if inputs.pos.device.type == "cpu" and not bool(inputs.pos.isfinite().all()):
        raise ValueError("pos has entries that are not finite; allowed are numbers only")


def num_graphs(inputs: GraphInputs) -> int:
    """Return the number of graphs.

    Args:
        inputs: The tensors.
    """
    if inputs.batch is None:
        return 1
    return int(inputs.batch[-1]) + 1 if len(inputs.batch) else 0


def graph_of_points(inputs: GraphInputs) -> Tensor:
    """Return the number of its graph for each point.

    Args:
        inputs: The tensors.
    """
    if inputs.batch is None:
        return torch.zeros(len(inputs.pos), dtype=torch.int64, device=inputs.pos.device)
    return inputs.batch
