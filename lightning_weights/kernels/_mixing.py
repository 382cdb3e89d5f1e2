"""Random bits as a function of numbers: the same on every device, with nothing to save but the numbers."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

Bits = TypeVar("Bits", int, Tensor)

WORD = 0xFFFFFFFF
GOLDEN_RATIO = 0x9E3779B9  # of 2**32: spreads consecutive numbers over all words


def mixed(word: Bits) -> Bits:
    """Return 32 bits that depend on all bits of a number.

    Two rounds of shifts and products with the constants of Chris Wellons' search for low bias.

    Args:
        word: A number, or an int64 tensor of them; of each the lowest 32 bits count.

    Examples:
        >>> mixed(1), mixed(2)
        (1753845952, 3507691905)
    """
    word = word & WORD
    word = ((word ^ (word >> 16)) * 0x7FEB352D) & WORD
    word = ((word ^ (word >> 15)) * 0x846CA68B) & WORD
    return word ^ (word >> 16)
