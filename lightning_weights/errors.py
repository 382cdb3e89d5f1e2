"""Errors, warnings and argument checks."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence


class LightningWeightsError(RuntimeError):
    """Base class of the package's own errors."""


class KernelUnavailableError(LightningWeightsError):
    """A kernel path was asked for explicitly and cannot be taken here."""


class ShardedParameterError(LightningWeightsError):
    """A rule that needs whole tensors was given sharded ones (FSDP2 ``DTensor`` parameters)."""


class WorkerLostError(LightningWeightsError):
    """A process of a distributed run has ended or can't be reached, so that this one can't go on."""


class MissingDependencyError(LightningWeightsError, ImportError):
    """An optional dependency is not installed.

    Args:
        package: Name of the missing distribution, as ``pip`` knows it.
        extra: Extra of lightning-weights that brings it.
        purpose: What needs it, as the start of the message.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Install it with: pip install {package} (extra {extra!r} of lightning-weights)"
        )


class LightningWeightsWarning(UserWarning):
    """Category of every warning that the package emits, so that one filter reaches them all."""


def check_number(
    name: str, value: object, *, low: float, high: float = math.inf, low_allowed: bool = True, whole: bool = False
) -> None:
    """Check a numeric argument.

    Args:
        name: Argument name, for the message.
        value: What was given; numpy's scalars are numbers, truth values and tensors are not.
        low: Lower end of the allowed range.
        high: Upper end of the allowed range, itself not allowed.
        low_allowed: Whether ``low`` itself is allowed.
        whole: Whether the value must be an integer.

    Raises:
        ValueError: If the value is not a finite number of the range, or not an integer where one is needed.

    Examples:
        >>> check_number("lr", -1.0, low=0.0)
        Traceback (most recent call last):
        ValueError: lr is -1.0; allowed is a finite number in [0.0, inf)
    """
    kind = numbers.Integral if whole else numbers.Real
    in_range = (
        isinstance(value, kind)
        and not isinstance(value, bool)
        and low <= value < high  # type: ignore[operator]  # false for NaN, too
        and (low_allowed or value != low)
    )
    if not in_range:
        raise ValueError(
            f"{name} is {value!r}; allowed is a {'whole' if whole else 'finite'} number in "
            f"{'[' if low_allowed else '('}{low}, {high})"
        )


def check_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """Check that an argument is one of a few values.

    Args:
        name: Argument name, for the message.
        value: What was given.
        allowed: The values to choose from.

    Raises:
        ValueError: If the value is none of them.
    """
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(map(repr, allowed))}")


def name_list(name: str, value: object, or_else: str = "") -> list[str]:
    """Check that an argument is a list of names, and return it as a plain one.

    Args:
        name: Argument name, for the message.
        value: What was given; any sequence of strings but a string.
        or_else: What the caller allows besides, as the end of the sentence.

    Raises:
        ValueError: If it is something else.

    Examples:
        >>> name_list("exclude", ("head", "body.*"))
        ['head', 'body.*']
        >>> name_list("exclude", "head", " or None")
        Traceback (most recent call last):
        ValueError: exclude is 'head'; allowed is a list of names such as ['head'] or None
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(entry, str) for entry in value):
        example = f" such as [{value!r}]" if isinstance(value, str) and value else ""
        raise ValueError(f"{name} is {value!r}; allowed is a list of names{example}{or_else}")
    return list(value)
