"""Giving some parameters of an optimizer that exists a group of their own."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

RATES = ("lr", "initial_lr", "max_lr", "min_lr")  # in a group; schedulers add the latter three
RATES_OF_SCHEDULERS = ("base_lrs", "max_lrs", "min_lrs", "_last_lr")  # a number per group
OTHERS_OF_SCHEDULERS = ("lr_lambdas", "base_momentums", "max_momentums")


def move_to_own_group(
    optimizer: Optimizer,
    params: Iterable[Tensor],
    schedulers: Iterable[Any] = (),
    lr_scale: float = 1.0,
    **changes: Any,
) -> list[dict[str, Any]]:
    """Move parameters into new groups, one per group in which some of them are, with its options but for the changes.

    To be called before the optimizer has state, and in a resumed run before it is restored.

    Args:
        optimizer: An optimizer.
        params: Parameters; those that it does not hold are left out.
        schedulers: Learning-rate schedulers; those of this optimizer learn of the groups.
        lr_scale: Factor of the learning rate of the new groups, whatever a schedule makes of it.
        changes: Options that differ in the new groups.

    Returns:
        The new groups.
    """
    wanted, made = {id(param) for param in params}, []
    for index, group in enumerate(list(optimizer.param_groups)):
        moving = [id(param) in wanted for param in group["params"]]
        if not any(moving):
            continue
        new: dict[str, Any] = {name: value for name, value in group.items() if name not in ("params", "param_names")}
        new |= {name: new[name] * lr_scale for name in RATES if name in new} | changes
        for name in ("params", "param_names"):
            if name in group:
                new[name] = [part for part, moves in zip(group[name], moving, strict=True) if moves]
                group[name] = [part for part, moves in zip(group[name], moving, strict=True) if not moves]
        whole = not group["params"]  # then it is the group itself that changes
        if whole:
            group |= new
        else:
            optimizer.add_param_group(new)
        made.append(group if whole else optimizer.param_groups[-1])
        for scheduler in _innermost(schedulers):
            if scheduler.optimizer is optimizer:
                _tell(scheduler, index, lr_scale, whole)
    return made


def _innermost(schedulers: Iterable[Any]) -> Iterator[Any]:
    for scheduler in schedulers:
        yield scheduler
        yield from _innermost(getattr(scheduler, "_schedulers", ()))


def _tell(scheduler: Any, index: int, lr_scale: float, whole: bool) -> None:
    for name in (*RATES_OF_SCHEDULERS, *OTHERS_OF_SCHEDULERS):
        values = getattr(scheduler, name, None)
        if isinstance(values, list) and index < len(values):
            value = values[index] * lr_scale if name in RATES_OF_SCHEDULERS else values[index]
            values[index:] = [value, *values[index + 1 :]] if whole else [*values[index:], value]
