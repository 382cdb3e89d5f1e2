"""Put parts into a network before its optimizers exist, wherever the network is built."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.hooks import RemovableHandle

from lightning_weights.errors import ShardedParameterError

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def inject_when_built(pl_module: LightningModule, inject: Callable[[LightningModule], None]) -> None:
    """Call ``inject(pl_module)`` once, right after the module's ``configure_model`` ran in this ``fit`` or ``test``.

    To be called from ``Callback.setup``. A network may be made in ``__init__``, in the module's ``setup`` or in its
    ``configure_model``; all of them are over then, and neither checkpoints nor optimizers have been touched. Several
    callbacks inject in their order.

    Args:
        pl_module: The module; its ``configure_model`` is wrapped until it is called.
        inject: Puts the parts in; it has to see for itself what an earlier ``fit`` left there.
    """
    previous = vars(pl_module).get("configure_model")
    pl_module.configure_model = partial(_configure_then_inject, pl_module, previous, inject)


def inject_when_loading(
    pl_module: LightningModule, inject: Callable[[LightningModule], None], key_pattern: str
) -> RemovableHandle:
    """Call ``inject(pl_module)`` before weights are loaded that have an injected parameter; otherwise never.

    For ``validate``, ``test`` and ``predict``: they measure the network as it is, unless they load another.

    Args:
        pl_module: The module.
        inject: As of ``inject_when_built``.
        key_pattern: What the key of an injected parameter looks like, with ``*``.

    Returns:
        The handle that takes the hook off.
    """

    def hook(module: LightningModule, state_dict: Mapping[str, Any], *arguments: Any) -> None:
        if any(fnmatchcase(key, key_pattern) for key in state_dict):
            inject(module)

    return pl_module.register_load_state_dict_pre_hook(hook)


def release(pl_module: LightningModule) -> None:
    """Unwrap a ``configure_model`` that was never called since something failed before."""
    hook = vars(pl_module).get("configure_model")
    while isinstance(hook, partial) and hook.func is _configure_then_inject:
        hook = _unwrap(pl_module, hook.args[1])


def _unwrap(pl_module: LightningModule, previous: Any) -> Any:
    if previous is None:
        del vars(pl_module)["configure_model"]
    else:
        pl_module.configure_model = previous
    return previous


def _configure_then_inject(
    pl_module: LightningModule, previous: Any, inject: Callable[[LightningModule], None]
) -> None:
    _unwrap(pl_module, previous)
    pl_module.configure_model()
    inject(pl_module)


def weight_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Return the linear and convolution layers of a module by name, in their order, shared ones once."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LAYERS)}


def named_layers(module: nn.Module, patterns: Sequence[str], argument: str) -> dict[str, nn.Module]:
    """Return the layers that some pattern names.

    Args:
        module: Where to look.
        patterns: Names as in ``named_modules()``, which may hold ``*`` and ``?``.
        argument: Which argument the patterns come from, for the message.

    Raises:
        ValueError: If a pattern names no layer.
    """
    layers = weight_layers(module)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise ValueError(
                f"{argument} has {pattern!r}, which names no Linear or Conv layer; there are "
                f"{', '.join(layers) or 'none'}"
            )
    return {name: layer for name, layer in layers.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}


def check_weights(module: nn.Module, layers: Mapping[str, nn.Module], purpose: str) -> None:
    """Check that the weights of layers are whole, have values and belong to one layer each.

    Args:
        module: What the layers are part of.
        layers: Layers by name.
        purpose: What is about to be done with them: what comes after "cannot".

    Raises:
        ShardedParameterError: If a weight is sharded.
        ValueError: If a weight has no values yet, or two layers share it.
    """
    owners: dict[int, list[str]] = {}
    for name, part in module.named_modules():
        for param in part.parameters(recurse=False):
            owners.setdefault(id(param), []).append(name.partition(".parametrizations.")[0])
    for name, layer in layers.items():
        for weight in raw_weights(layer):
            if isinstance(weight, DTensor):
                raise ShardedParameterError(
                    f"cannot {purpose} {name}: its weight is sharded (FSDP2), and a whole one is needed; use DDP, or "
                    f"one device"
                )
            if is_lazy(weight) or weight.is_meta:
                raise ValueError(
                    f"cannot {purpose} {name}: its weight has no values yet; before fit, run a batch through lazy "
                    f"layers and move the module from the meta device"
                )
            if len(owners[id(weight)]) > 1:
                raise ValueError(
                    f"cannot {purpose} {name}: its weight is shared by {' and '.join(owners[id(weight)])}; untie them "
                    f"or leave them out"
                )


def raw_weights(layer: nn.Module) -> list[Tensor]:
    """Return the tensors that a layer's weight is made of: the weight itself unless it is parametrized."""
    if is_parametrized(layer, "weight"):
        return list(layer.parametrizations["weight"].parameters(recurse=False))
    return [layer.weight]


def check_trained(trainer: Trainer, parameters: Mapping[str, Tensor], who: str) -> None:
    """Check that the optimizers hold injected parameters.

    Args:
        trainer: A trainer with its optimizers.
        parameters: What has to be trained, by name.
        who: Name of the callback, for the message.

    Raises:
        ValueError: If a parameter is in no optimizer.
    """
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    known = {id(param) for group in groups for param in group["params"]}
    missing = [name for name, param in parameters.items() if id(param) not in known]
    if missing:
        raise ValueError(
            f"{who} put parameters into the network that no optimizer has: {', '.join(missing)}. Make the optimizer in "
            f"configure_optimizers, from self.parameters(). LightningCLI makes the one of a config's top level before: "
            f"give it to the model instead, as model.init_args.optimizer"
        )
