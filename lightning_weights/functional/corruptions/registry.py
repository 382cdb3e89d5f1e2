"""Which corruptions there are, and the one way to use them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional.corruptions.sample_noise import SampleNoise

SEVERITIES = 5
CHANNELS = (1, 3)
REFERENCE_SIZE = 32  # pixels of the images that the lengths of all tables are for
SLACK = 1e-5  # how far rounding may put a number outside [0, 1]

_Rule = TypeVar("_Rule", bound=Callable[..., Tensor])


class CorruptionRule(NamedTuple):
    """A corruption as it is registered.

    Attributes:
        apply: Called as ``apply(images, noise, *strength)``.
        severities: Strength at the severities 1 to 5.
        signals: Whether it is for signals of shape (N, C, L), too.

    Examples:
        >>> corruption_rule("shot_noise").severities
        ((500.0,), (250.0,), (100.0,), (75.0,), (50.0,))
    """

    apply: Callable[..., Tensor]
    severities: tuple[tuple[float, ...], ...]
    signals: bool


_rules: dict[str, CorruptionRule] = {}


def register_corruption(
    name: str, severities: Sequence[float | Sequence[float]], signals: bool = False
) -> Callable[[_Rule], _Rule]:
    """Make a decorator that registers a corruption; one of the same name is replaced.

    The function is called as ``fn(images, noise, *strength)`` with float images of shape (N, C, H, W) in [0, 1], with C
    1 or 3, and a `SampleNoise`, the only source of random numbers. What it returns is clipped to [0, 1]. Every sample
    has to be changed on its own.

    Args:
        name: Name of the corruption.
        severities: Strength at the severities 1 to 5, a number or several. Lengths are for images of 32 pixels: the
            function multiplies them with `relative_size`.
        signals: Whether the function takes signals of shape (N, C, L), too.

    Returns:
        The decorator, which returns the function as it is.

    Raises:
        ValueError: If there are not five severities of equally many numbers.

    Examples:
        >>> @register_corruption("darkness", severities=(0.1, 0.2, 0.3, 0.4, 0.5), signals=True)
        ... def darkness(images, noise, amount):
        ...     return images - amount
        >>> corrupt(torch.ones(1, 1, 1, 2), "darkness", severity=5)
        tensor([[[[0.5000, 0.5000]]]])
    """
    table = tuple(_strength(row) for row in severities)
    if len(table) != SEVERITIES or len({len(row) for row in table}) != 1 or not table[0]:
        raise ValueError(
            f"severities of {name!r} are {list(severities)!r}; allowed are five strengths of equally many numbers"
        )

    def add(fn: _Rule) -> _Rule:
        _rules[name] = CorruptionRule(fn, table, signals)
        return fn

    return add


def corruption_names(signals: bool = False) -> list[str]:
    """Return the names of all corruptions in alphabetical order.

    Args:
        signals: Whether only those are wanted that are for signals, too.

    Examples:
        >>> corruption_names(signals=True)[:2]
        ['brightness', 'contrast']
    """
    return sorted(name for name, rule in _rules.items() if rule.signals or not signals)


def corruption_rule(name: str) -> CorruptionRule:
    """Return what is registered under a name.

    Args:
        name: Name of a corruption.

    Raises:
        ValueError: If there is none of that name.

    Examples:
        >>> corruption_rule("fog").signals
        False
    """
    check_choice("corruption", name, corruption_names())
    return _rules[name]


def corruption_strength(name: str, severity: int = 5, strength: float | Sequence[float] | None = None) -> list[float]:
    """Return the numbers that a corruption is called with.

    Args:
        name: Name of a corruption.
        severity: Severity from 1 to 5, where ``strength`` is ``None``.
        strength: Number, or numbers, instead of those of a severity: as many as the corruption has.

    Raises:
        ValueError: If the name is unknown, the severity out of range, or there are too many or too few numbers.

    Examples:
        >>> corruption_strength("fog", severity=2)
        [0.5, 3.0]
    """
    rule = corruption_rule(name)
    check_number("severity", severity, low=1, high=SEVERITIES + 1, whole=True)
    if strength is None:
        return list(rule.severities[severity - 1])
    given = _strength(strength)
    if len(given) != len(rule.severities[0]):
        raise ValueError(
            f"strength of {name!r} is {strength!r}; allowed are {len(rule.severities[0])} numbers such as "
            f"{list(rule.severities[-1])}, those of severity {SEVERITIES}"
        )
    return list(given)


def corrupt(
    images: Tensor,
    name: str,
    severity: int = 5,
    *,
    seed: int = 0,
    indices: Iterable[int] | None = None,
    strength: float | Sequence[float] | None = None,
) -> Tensor:
    """Corrupt images; how a sample comes out depends on its content, its index and the seed alone.

    The severities are those of CIFAR-10-C (Hendrycks and Dietterich, 2019, arXiv:1903.12261), which are for images of
    32 pixels. Lengths are multiplied with the size of the image, divided by 32: blurs cover the same share of it. Small
    images may need a larger ``strength`` before anything is to be seen.

    Args:
        images: Images of shape (N, C, H, W) with 1 or 3 channels, or signals of shape (N, C, L), for which
            `corruption_names` lists fewer corruptions; floats in [0, 1].
        name: Name of the corruption; `corruption_names` lists them.
        severity: Severity from 1 to 5.
        seed: Seed of everything that is random.
        indices: Index of every sample. ``None``: 0 to N - 1.
        strength: Numbers instead of those of a severity.

    Returns:
        Images of the same shape and type in [0, 1].

    Raises:
        ValueError: If an argument is out of range, images are bytes or not in [0, 1], or have another shape, or numbers
            that are not finite come out.

    Examples:
        >>> images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> changed = corrupt(images, "gaussian_noise", severity=3, seed=1)
        >>> torch.equal(changed[2:], corrupt(images[2:], "gaussian_noise", severity=3, seed=1, indices=[2, 3]))
        True
    """
    numbers = corruption_strength(name, severity, strength)
    check_number("seed", seed, low=0, high=2**63, whole=True)
    _check_images(images, name)
    order = list(range(len(images))) if indices is None else [int(index) for index in indices]
    if len(order) != len(images):
        raise ValueError(f"there are {len(order)} indices for {len(images)} images; allowed is one for each")
    if not images.numel():
        return images.clone()
    exact = images.clamp(0, 1) if images.dtype == torch.float64 else images.float().clamp(0, 1)
    noise = SampleNoise(seed, order, images.device)
    changed = corruption_rule(name).apply(exact, noise, *numbers)
    if not changed.isfinite().all():
        raise ValueError(
            f"{name!r} makes numbers that are not finite with the strength {numbers}; use another strength"
        )
    return changed.clamp(0, 1).to(images.dtype)


def relative_size(images: Tensor) -> float:
    """Return the shorter side of images, or the length of signals, divided by 32.

    Args:
        images: Images of shape (N, C, H, W) or signals of shape (N, C, L).

    Examples:
        >>> relative_size(torch.zeros(1, 3, 16, 24))
        0.5
    """
    return min(images.shape[2:]) / REFERENCE_SIZE


def _strength(value: float | Sequence[float]) -> tuple[float, ...]:
    numbers = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    for number in numbers:
        check_number("strength", number, low=-float("inf"), low_allowed=False)
    return tuple(float(number) for number in numbers)


def _check_images(images: Tensor, name: str) -> None:
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; allowed are floats in [0, 1]: divide bytes by 255 before")
    if images.ndim == 3 and not corruption_rule(name).signals:
        raise ValueError(
            f"{name!r} is for images of shape (N, C, H, W), but the inputs have the shape {tuple(images.shape)}; for "
            f"signals there are {', '.join(corruption_names(signals=True))}"
        )
    if images.ndim not in (3, 4):
        raise ValueError(
            f"images have the shape {tuple(images.shape)}; allowed are (N, C, H, W) and, for signals, (N, C, L)"
        )
    if images.ndim == 4 and images.shape[1] not in CHANNELS:
        raise ValueError(f"images have {images.shape[1]} channels; allowed are 1 and 3")
    if images.numel() and not (images.amin() >= -SLACK and images.amax() <= 1 + SLACK):
        raise ValueError(
            f"images go from {float(images.amin()):g} to {float(images.amax()):g}; allowed is [0, 1]: corrupt them "
            f"before they are normalised, and normalise in the network"
        )
