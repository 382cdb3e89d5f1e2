"""The trained models of a stack, read one at a time."""

import copy
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

INSTANTIATOR = "_instantiator"  # where LightningCLI says how a module was made


def checkpoints_of(member: str) -> list[Path]:
    """Return the files of a member: its own, or, in the folder of a cross-fit, that of all rows or those of the folds.

    Args:
        member: File or folder.

    Raises:
        ValueError: If there is none.
    """
    path = Path(member)
    if path.is_file():
        return [path]
    refit = path / "refit.ckpt"
    found = [refit] if refit.is_file() else sorted(path.glob("fold_*.ckpt"), key=lambda file: (len(file.name), file))
    if not found:
        raise ValueError(
            f"member {member!r} is neither a checkpoint nor a folder with refit.ckpt or fold_0.ckpt, fold_1.ckpt, ...; "
            f"give the checkpoint, or the folder of runners.KFoldRunner"
        )
    return found


def load_member(path: Path, template: nn.Module | None) -> nn.Module:
    """Return a trained model in evaluation mode, without gradients, on the CPU.

    Args:
        path: Checkpoint of Lightning, or a state dict.
        template: A module of its kind, which is copied. ``None``: the checkpoint says how it was made.

    Raises:
        ValueError: If the checkpoint does not say it, or belongs to another kind of module.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if template is None:
        try:
            if INSTANTIATOR not in checkpoint.get("hyper_parameters", {}):
                raise ValueError("the command line did not write it")
            model = LightningModule.load_from_checkpoint(path, map_location="cpu", weights_only=True)
        except (ValueError, TypeError, ArgumentError) as error:
            raise ValueError(
                f"{path} does not say how its module is made, which only checkpoints of the command line do, and only "
                f"if the module keeps all its arguments; give a module of its kind as template, such as "
                f"Regressor(MLP(10, (16,), 1)): {error}"
            ) from error
    else:
        model = copy.deepcopy(template)
        if isinstance(model, LightningModule) and "state_dict" in checkpoint:
            model.on_load_checkpoint(checkpoint)
        try:
            model.load_state_dict(checkpoint.get("state_dict", checkpoint))
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit into the template, a {type(model).__name__}: {error}") from error
    return model.eval().requires_grad_(False)


def listed(members: Any, names: Sequence[str]) -> list[str]:
    """Return the place of every column's model, in the order of the stack.

    Args:
        members: Places in that order, or by the columns' names.
        names: Names of the stack's columns.

    Raises:
        ValueError: If there are others, or another number of them.
    """
    if isinstance(members, Mapping):
        if odd := members.keys() ^ set(names):
            raise ValueError(f"members and the columns of the stack differ in {', '.join(sorted(map(str, odd)))}")
        return [str(members[name]) for name in names]
    if isinstance(members, str) or not isinstance(members, Sequence) or len(members) != len(names):
        raise ValueError(
            f"members is {members!r}; allowed are {len(names)} places, as the stack was fitted on the columns "
            f"{', '.join(names)}, or a dict from these names to places"
        )
    return [str(member) for member in members]
