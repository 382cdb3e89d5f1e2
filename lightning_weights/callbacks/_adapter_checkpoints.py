"""Checkpoints that hold an adapter and leave the frozen network out."""

from collections.abc import Callable, Container
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_weights.functional.fingerprint import plain_name


def frozen_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that are not trained, by name; a shared one under each of its names."""
    named = module.named_parameters(remove_duplicate=False)
    return {name: param for name, param in named if not param.requires_grad}


def drop_frozen(module: nn.Module, state_dict: dict[str, Any], names: Container[str]) -> None:
    """Remove the frozen parameters of a module from its state dict; the keys may be renamed ones.

    Buffers stay: running statistics move while a frozen network is trained.

    Args:
        module: The module.
        state_dict: Its state dict, which is changed.
        names: Those that were frozen before training, in plain: what was trained stays, even if it is frozen by now.
    """
    frozen = {name: param for name, param in frozen_parameters(module).items() if plain_name(name) in names}
    places = {_place(param) for param in frozen.values()} - {None}
    for key in [key for key, value in state_dict.items() if key in frozen or _place(value) in places]:
        del state_dict[key]


def _place(value: Any) -> tuple[int, int, torch.Size] | None:
    if not isinstance(value, Tensor) or not value.numel() or value.is_meta or hasattr(value, "full_tensor"):
        return None
    return value.untyped_storage().data_ptr(), value.storage_offset(), value.shape


def keep_frozen_when_loading(pl_module: LightningModule, applies: Callable[[], bool]) -> RemovableHandle:
    """Let the module keep its own frozen parameters where a state dict that is loaded into it has none.

    Everything else that is missing stays an error of strict loading.

    Args:
        pl_module: The module.
        applies: Tells when a state dict is about to be loaded whether it is one without frozen parameters.

    Returns:
        The handle that takes the hook off.
    """

    def hook(module: nn.Module, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        if applies():
            for name, param in frozen_parameters(module).items():
                state_dict.setdefault(f"{prefix}{name}", param.detach())

    return pl_module.register_load_state_dict_pre_hook(hook)


def check_when_loading(pl_module: LightningModule, check: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
    """Call ``check(checkpoint)`` before a Trainer loads weights from a checkpoint, in a fit, a test or a prediction.

    Callbacks have a hook of that name, too, but it comes after the weights.

    Args:
        pl_module: The module, whose ``on_load_checkpoint`` is wrapped.
        check: Raises if the checkpoint does not fit.

    Returns:
        A function that unwraps the module's hook.
    """
    previous = vars(pl_module).get("on_load_checkpoint")
    pl_module.on_load_checkpoint = partial(_check_then_load, check, pl_module.on_load_checkpoint)

    def unwrap() -> None:
        vars(pl_module).pop("on_load_checkpoint", None)
        if previous is not None:
            pl_module.on_load_checkpoint = previous

    return unwrap


def _check_then_load(check: Callable[[Any], None], load: Callable[[Any], None], checkpoint: dict[str, Any]) -> None:
    check(checkpoint)
    load(checkpoint)


def check_base(saved: dict[str, Any], here: str) -> None:
    """Check that an adapter belongs to the network that it is loaded into.

    Args:
        saved: What the callback saved in the checkpoint, with the fingerprint as ``base``.
        here: Fingerprint of the frozen parameters that are here. An empty one says nothing.

    Raises:
        ValueError: If it belongs to another.
    """
    if saved["base"] and here and saved["base"] != here:
        raise ValueError(
            f"the checkpoint's adapter belongs to another network: the frozen weights have the fingerprint {here}, "
            f"those it was trained on {saved['base']}; build the module with the same weights"
        )
