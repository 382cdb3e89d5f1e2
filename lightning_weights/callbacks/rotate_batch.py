"""Random rotations of training batches."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_weights.callbacks._lean_callback import LeanCallback
from lightning_weights.errors import name_list
from lightning_weights.functional.ponita import random_rotations
from lightning_weights.functional.rotated import rotated


class RotateBatch(LeanCallback):
    """Turn positions, vectors and vectorial targets of every training batch by a random rotation.

    A network on a grid of orientations is equivariant up to the grid, and rotations average over what is left; `Ponita`
    can turn its grid instead (``random_grid``). Batches are mappings, lists or objects with attributes, such as
    torch_geometric's, and get new tensors; the tensors they were made from stay as they are, but a batch object that a
    loader serves again is turned again. Random numbers come from PyTorch's global generator.

    Args:
        fields: Names in the batch whose last dimension is space, (..., n), or places in a list, such as "0"; the first
            one must be there, others that are not are left out.
        per_graph: Whether every graph has its own rotation, by the batch's ``batch``; otherwise all share one.

    Raises:
        ValueError: If ``fields`` is no list of names; in training, if a batch can't be changed or has no first field.

    Source: Bekkers et al. 2024, arXiv:2310.02970.

    Examples:
        >>> RotateBatch(fields=["pos", "vec", "y"]).fields
        ['pos', 'vec', 'y']

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.RotateBatch
              init_args: {fields: [pos, forces]}
        ```
    """

    def __init__(self, fields: Sequence[str] = ("pos", "vec", "forces"), per_graph: bool = False) -> None:
        self.fields = name_list("fields", fields)
        if not self.fields:
            raise ValueError("fields is []; allowed is a list with at least one name, such as ['pos']")
        self.per_graph = per_graph
        self.batches = 0
        self._reset()

    def state_dict(self) -> dict[str, Any]:
        """Return how many batches it has rotated."""
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.batches = state_dict["batches"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to count anew."""
        if stage == "fit":
            self.batches = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Rotate the batch."""
        fields = {name: field for name in self.fields if isinstance(field := _read(batch, name), Tensor)}
        if isinstance(batch, tuple) or self.fields[0] not in fields:
            raise ValueError(
                f"the batch is a {type(batch).__name__} without a tensor {self.fields[0]!r} that could be replaced; "
                f"allowed is a dictionary, a list or an object with attributes: rotate others in the dataset"
            )
        rotations = self._rotations(_read(batch, "batch"), fields)
        for name, field in fields.items():
            turned = rotated(field, rotations.view(len(rotations), *(1 for _ in field.shape[2:]), *rotations.shape[1:]))
            if isinstance(batch, MutableMapping):
                batch[name] = turned
            elif isinstance(batch, list):
                batch[int(name)] = turned
            else:
                setattr(batch, name, turned)
        self.batches += 1

    def _rotations(self, graphs: Any, fields: dict[str, Tensor]) -> Tensor:
        """Return one rotation, or one for each point."""
        dim = fields[self.fields[0]].shape[-1]
        for name, field in fields.items():
            if field.dim() < 2 or field.shape[-1] != dim or dim < 2 or not field.is_floating_point():
                raise ValueError(
                    f"{name} has shape {tuple(field.shape)} and {field.dtype}; allowed are vectors (N, ..., n) of two "
                    f"or more numbers, as long as those of {self.fields[0]!r}"
                )
        if not self.per_graph:
            return random_rotations(1, dim)
        if not isinstance(graphs, Tensor):
            raise ValueError(
                "per_graph needs the number of its graph for each point, but the batch has no tensor 'batch'"
            )
        for name, field in fields.items():
            if len(field) != len(graphs):
                raise ValueError(
                    f"{name} has {len(field)} rows and batch {len(graphs)}; per_graph allows fields with a row for "
                    f"each point: leave {name!r} out, or use per_graph=False"
                )
        graphs = graphs.cpu()
        return random_rotations(int(graphs.max()) + 1 if len(graphs) else 0, dim)[graphs]


def _read(batch: Any, name: str) -> Any:
    if isinstance(batch, Mapping):
        return batch.get(name)
    if isinstance(batch, (list, tuple)):
        return batch[int(name)] if name.isdigit() and int(name) < len(batch) else None
    return getattr(batch, name, None)
