"""Which rule carries intervals through which operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from torch import nn

from lightning_weights.functional.intervals.interval import Interval

Rule = Callable[..., Interval]
Operation = type[nn.Module] | Callable[..., Any] | str
_Rule = TypeVar("_Rule", bound=Callable[..., Any])


class UnboundableError(ValueError):
    """An operation that has a rule is used in a way that the rule cannot bound."""


_rules: dict[Any, Rule] = {}


@overload
def register_interval_rule(op: Operation) -> Callable[[_Rule], _Rule]: ...


@overload
def register_interval_rule(op: Operation, fn: _Rule) -> _Rule: ...


def register_interval_rule(op: Operation, fn: _Rule | None = None) -> Any:
    """Teach interval propagation an operation; a rule that exists already is replaced.

    The rule is called as ``fn(apply, *args, **kwargs)`` with the arguments of the call in the network, where an
    [`Interval`][] stands for every tensor that depends on the input, and returns an ``Interval``. ``apply`` computes
    the operation itself on tensors: the module, the function, or the method as a function, out of place. Two rules are
    ready for use: ``intervals.monotone`` for what grows with every input, and ``intervals.positive_linear`` for what is
    linear with weights ≥ 0.

    Args:
        op: Module class (subclasses that keep its ``forward`` included), function, or name of a tensor method.
        fn: The rule. ``None``: used as a decorator.

    Returns:
        The rule, or the decorator.

    Raises:
        ValueError: If ``op`` is none of the three.

    Examples:
        >>> import torch
        >>> from lightning_weights.functional.intervals import interval_forward, monotone
        >>> _ = register_interval_rule(torch.arctan, monotone)
        >>> @register_interval_rule(nn.Tanhshrink)
        ... def tanhshrink(apply, x):
        ...     return Interval.between(apply(x.clean), apply(x.lower), apply(x.upper))
        >>> one = torch.ones(1, 1)
        >>> interval_forward(nn.Sequential(nn.Tanhshrink()), one, one - 1, one + 1).lower.item()
        0.0
    """
    if not (isinstance(op, str) or (callable(op) and not isinstance(op, nn.Module))):
        raise ValueError(
            f"op is {op!r}; allowed is a class of modules (not an instance), a function, or the name of a tensor method"
        )

    def add(rule: _Rule) -> _Rule:
        _rules[op] = rule
        return rule

    return add if fn is None else add(fn)


def find_rule(op: Any) -> Rule | None:
    """Return the rule of a module, function or method name, if there is one."""
    if isinstance(op, nn.Module):
        kept = (cls for cls in type(op).__mro__ if getattr(cls, "forward", None) is type(op).forward)
        return next((_rules[cls] for cls in kept if cls in _rules), None)
    return _rules.get(op)
