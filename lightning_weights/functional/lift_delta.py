"""What sparse fine-tuning has changed, as a small file: where, and by how much."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_weights.errors import ShardedParameterError
from lightning_weights.functional._safetensors import safetensors
from lightning_weights.functional.fingerprint import plain_name
from lightning_weights.functional.whole_files import replacing_file

FORMAT = "lightning_weights.lift_delta.1"
PURPOSE = "A file of what fine-tuning has changed"


class SparseChange(NamedTuple):
    """Entries of a matrix, before and after training.

    Attributes:
        indices: Places of the entries in the flattened matrix, of shape (k,).
        before: Values before, of shape (k,).
        after: Values after, of shape (k,).
        shape: Shape of the matrix.

    Examples:
        >>> SparseChange(torch.tensor([1, 5]), torch.ones(2), torch.zeros(2), torch.Size([2, 3])).shape
        torch.Size([2, 3])
    """

    indices: Tensor
    before: Tensor
    after: Tensor
    shape: torch.Size


def save_delta(path: str | Path, changes: Mapping[str, SparseChange]) -> None:
    r"""Write ``indices`` and ``delta`` of every matrix to a safetensors file.

    $$\delta = W[I] - W_0[I]$$

    Deltas of a matrix are fp32 if adding them gives the trained values in every bit, and fp64 otherwise. The file also
    holds a hash of the entries before and of those after. An existing file is replaced when the new one is complete.

    Args:
        path: File to write; missing folders are made.
        changes: Changes by the name of the parameter.

    Raises:
        MissingDependencyError: If safetensors is not installed.
        ValueError: If there is no change to write.

    Examples:
        >>> import tempfile
        >>> change = SparseChange(torch.tensor([1, 5]), torch.ones(2), torch.zeros(2), torch.Size([2, 3]))
        >>> path = tempfile.mkdtemp() + "/delta.safetensors"
        >>> save_delta(path, {"weight": change})
        >>> layer = nn.Linear(3, 2)
        >>> _ = nn.init.ones_(layer.weight)
        >>> load_delta(layer, path)
        ['weight']
        >>> layer.weight.data
        tensor([[1., 0., 1.],
                [1., 1., 0.]])
    """
    if not changes:
        raise ValueError("changes is empty: no matrix was trained, so there is nothing to write")
    tensors: dict[str, Tensor] = {}
    about: dict[str, str] = {"format": FORMAT}
    for name, change in changes.items():
        delta, after = _difference(change.before.cpu(), change.after.cpu())
        indices = change.indices.to("cpu", torch.int64)
        small = indices.to(torch.int32) if change.shape.numel() < 2**31 else indices
        tensors[f"{name}.indices"] = small.contiguous()
        tensors[f"{name}.delta"] = delta.contiguous()
        about[name] = json.dumps(
            {
                "shape": list(change.shape),
                "dtype": str(change.before.dtype).removeprefix("torch."),
                "before": _hash(change.before),
                "after": _hash(after),
            }
        )
    with replacing_file(path) as part:
        safetensors("hf", PURPOSE).save_file(tensors, part, metadata=about)


@torch.no_grad()
def load_delta(module: nn.Module, path: str | Path, prefix: str = "") -> list[str]:
    """Add the deltas of a file to the weights that the training began with.

    Everything is checked first: if anything does not fit, no weight is changed.

    Args:
        module: Model with the weights from before the training.
        path: File of ``save_delta``.
        prefix: What to leave out at the beginning of the names in the file, such as ``model.`` if the training saw the
            model as an attribute of a LightningModule.

    Returns:
        The names of the changed parameters.

    Raises:
        MissingDependencyError: If safetensors is not installed.
        ShardedParameterError: If a weight is sharded.
        ValueError: If the file is no delta, or the model lacks a parameter of it, has another shape or dtype, or other
            values than the training began with.

    Examples:
        See ``save_delta``.

        >>> load_delta(nn.Linear(3, 2), "delta.safetensors")
        Traceback (most recent call last):
        FileNotFoundError: No such file or directory: delta.safetensors
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"No such file or directory: {path}")
    params = {plain_name(name): param for name, param in module.named_parameters(remove_duplicate=False)}
    changed: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    with safetensors("hf", PURPOSE).safe_open(path, framework="pt") as file:
        about = dict(file.metadata() or {})
        if about.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is no delta: its metadata lack format={FORMAT!r}; write it with save_delta")
        for name, text in about.items():
            inner = name.removeprefix(prefix)
            if inner not in params:
                raise ValueError(
                    f"{path} changes {name}, and prefix is {prefix!r}, but the model has no parameter {inner!r}; it "
                    f"has {', '.join(list(params)[:3])}, ..."
                )
            indices = file.get_tensor(f"{name}.indices").long()
            values = _sum(inner, params[inner], indices, file.get_tensor(f"{name}.delta"), json.loads(text))
            changed[inner] = params[inner], indices, values
    for param, indices, values in changed.values():
        flat = param.data.reshape(-1)
        flat[indices.to(param.device)] = values.to(param.device)
        param.copy_(flat.reshape(param.shape))
    return [name for name in params if name in changed]


def _sum(name: str, param: Tensor, indices: Tensor, delta: Tensor, about: Mapping[str, Any]) -> Tensor:
    """Return the trained values of a parameter's entries, after all checks."""
    if hasattr(param, "placements"):
        raise ShardedParameterError(f"{name} is sharded (FSDP2); apply the delta before the model is")
    found = {"shape": list(param.shape), "dtype": str(param.dtype).removeprefix("torch.")}
    for what, value in found.items():
        if value != about[what]:
            raise ValueError(f"{what} of {name} is {value}, but the training had {about[what]}; load the model with it")
    before = param.detach().reshape(-1)[indices.to(param.device)].cpu()
    if _hash(before) != about["before"]:
        applied = _hash(before) == about["after"]
        way_out = "the delta is applied already" if applied else "load the weights that the training began with"
        raise ValueError(f"the values of {name} are not those from before the training: {way_out}")
    after = (before.to(delta.dtype) + delta).to(param.dtype)
    if _hash(after) != about["after"]:
        raise ValueError(f"the sum for {name} is not what the training ended with: the file is damaged")
    return after


def _difference(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Return the narrowest exact difference and what adding it gives; fp64 weights may be off by a rounding."""
    for wide in (torch.float32, torch.float64):
        delta = after.to(wide) - before.to(wide)
        total = (before.to(wide) + delta).to(before.dtype)
        if torch.equal(total, after):
            break
    return delta, total


def _hash(values: Tensor) -> str:
    return hashlib.sha256(values.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
