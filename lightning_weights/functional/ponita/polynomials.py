"""Monomials of invariants up to a degree, which the kernel's network starts from."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_weights.errors import check_number


def num_polynomial_features(num_attributes: int, degree: int) -> int:
    """Count what [`polynomial_features`][] returns.

    Args:
        num_attributes: Number q of attributes.
        degree: Largest degree d of a monomial.

    Returns:
        q + q² + ... + q^d.

    Raises:
        ValueError: If one of them is below 1.

    Examples:
        >>> num_polynomial_features(2, 3), num_polynomial_features(1, 3)
        (14, 3)
    """
    check_number("num_attributes", num_attributes, low=1, whole=True)
    check_number("degree", degree, low=1, whole=True)
    return sum(num_attributes**power for power in range(1, degree + 1))


def polynomial_features(attributes: Tensor, degree: int) -> Tensor:
    r"""Concatenate all products of up to d attributes, as they come.

    $$(a,\; a \otimes a,\; a \otimes a \otimes a,\; \dots)$$

    There is no constant, and a product occurs once for each order of its factors.

    Args:
        attributes: a of shape (..., q).
        degree: d, at least 1.

    Returns:
        Features of shape (..., q + q² + ... + q^d).

    Raises:
        ValueError: If the degree is below 1.

    Source: the released code of Bekkers et al. 2024, arXiv:2310.02970.

    Examples:
        >>> polynomial_features(torch.tensor([2.0, 3.0]), degree=2)
        tensor([2., 3., 4., 6., 6., 9.])
    """
    check_number("degree", degree, low=1, whole=True)
    powers = [attributes]
    for _ in range(degree - 1):
        powers.append((powers[-1][..., :, None] * attributes[..., None, :]).flatten(-2))
    return torch.cat(powers, dim=-1)


class Monomials(NamedTuple):
    """The different ones among [`polynomial_features`][], of which each is the product of two that come before.

    Attributes:
        factors: For each but the attributes themselves: an earlier one, and an attribute.
        places: For each polynomial feature, which of the different ones it is.
    """

    factors: tuple[tuple[int, int], ...]
    places: tuple[int, ...]


@cache
def monomials(num_attributes: int, degree: int) -> Monomials:
    """List the different products of up to d attributes.

    Args:
        num_attributes: Number q of attributes.
        degree: d, at least 1.

    Returns:
        How they are made, and where they stand.

    Examples:
        >>> monomials(2, 2)
        Monomials(factors=((0, 0), (0, 1), (1, 1)), places=(0, 1, 2, 3, 3, 4))
    """
    powers = range(1, degree + 1)
    features = [tuple(sorted(key)) for power in powers for key in product(range(num_attributes), repeat=power)]
    different = {key: place for place, key in enumerate(dict.fromkeys(features))}
    factors = tuple((different[key[:-1]], key[-1]) for key in different if len(key) > 1)
    return Monomials(factors, tuple(different[key] for key in features))
