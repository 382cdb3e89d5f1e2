"""Modules and their names without what other libraries wrap around them."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")  # of torch.compile and activation checkpointing


def plain(module: nn.Module) -> nn.Module:
    """Return the module itself where compilation, activation checkpointing or DDP has wrapped it."""
    wrappers = (*WRAPPERS, "module") if isinstance(module, DistributedDataParallel) else WRAPPERS
    inner = next((part for name, part in module.named_children() if name in wrappers), None)
    return module if inner is None else plain(inner)


def inner_name(name: str) -> str:
    """Return a name as it is without what compilation and activation checkpointing put into it."""
    return ".".join(step for step in name.split(".") if step not in WRAPPERS)
