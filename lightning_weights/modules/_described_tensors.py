"""Tensors with names and a description in one safetensors file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_weights.errors import ShardedParameterError
from lightning_weights.functional._safetensors import safetensors
from lightning_weights.functional.fingerprint import plain_name
from lightning_weights.functional.whole_files import replacing_file

KEY, FORMAT, EXTRA = "lightning_weights", 1, "safetensors"


def storage_of(tensor: Tensor) -> tuple[Any, ...]:
    """Return what two names of one tied tensor have in common; tensors without values are tied to nothing else."""
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return (local.data_ptr() or id(tensor), tensor.dtype, tensor.shape, local.stride())


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], kind: str, about: Mapping[str, Any]) -> None:
    """Write one file, whole or not at all.

    Args:
        path: The file; its folder is made if it is not there.
        tensors: Tensors by name, without ``_orig_mod.`` in the file; tied ones are stored once.
        kind: What the file is, for whoever reads it.
        about: Its description: numbers, strings, lists and dicts.

    Raises:
        ValueError: If something is no tensor, or the description can't be written as JSON.
        ShardedParameterError: If a tensor is sharded.
        MissingDependencyError: If the package safetensors is not installed.
    """
    package = safetensors(EXTRA, f"Writing {kind}")
    first: dict[Any, str] = {}
    stored, tied = {}, {}
    for name, tensor in ((plain_name(name), tensor) for name, tensor in tensors.items()):
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} is a {type(tensor).__name__}; allowed are tensors: leave the others out")
        if hasattr(tensor, "full_tensor"):
            raise ShardedParameterError(
                f"{name} is sharded, and a file holds whole tensors: gather the state dict first"
            )
        kept = first.setdefault(storage_of(tensor), name)
        if kept == name:
            whole = tensor.detach().cpu().contiguous()
            stored[name] = whole.clone() if whole.untyped_storage().nbytes() > whole.nbytes else whole
        else:
            tied[name] = kept
    try:
        text = json.dumps({"format": FORMAT, "kind": kind, "tied": tied, "about": dict(about)}, sort_keys=True)
    except TypeError as error:
        raise ValueError(
            f"about is {about!r}; allowed are numbers, strings, lists and dicts of them: {error}"
        ) from error
    with replacing_file(path) as part:
        package.save_file(stored, part, {KEY: text})


def read_tensors(path: str | Path, kind: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file that ``write_tensors`` has written, tied tensors tied again.

    Args:
        path: The file.
        kind: What it has to be. ``None``: any safetensors file, also one without a description.

    Returns:
        Tensors and description.

    Raises:
        ValueError: If there is no such file or it is something else.
        MissingDependencyError: If the package safetensors is not installed.
    """
    package = safetensors(EXTRA, f"Reading {kind or 'weights'}")
    from safetensors import SafetensorError

    if not Path(path).is_file():
        raise ValueError(f"{path} is not there; give a file of {kind or 'weights'} (safetensors)")
    try:
        with package.safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {}).get(KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except SafetensorError as error:
        raise ValueError(f"{path} can't be read as {kind or 'weights'}: {error}") from error
    if kind is not None and (described.get("format"), described.get("kind")) != (FORMAT, kind):
        raise ValueError(f"{path} is not {kind} of format {FORMAT}, but {described.get('kind', 'other tensors')!r}")
    tied = described.get("tied", {})
    if missing := sorted(set(tied.values()) - tensors.keys()):
        raise ValueError(f"{path} is not whole: it lacks {missing}")
    return tensors | {name: tensors[kept] for name, kept in tied.items()}, described.get("about", {})
