"""Small unsigned integers, packed without gaps into 32-bit words."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.errors import check_number

BLOCK = 32  # so many values of b bits fill b words


def packed_words(count: int, bits: int) -> int:
    """Return how many words a row of ``count`` values of ``bits`` bits takes.

    Examples:
        >>> packed_words(32, bits=3), packed_words(33, bits=3)
        (3, 6)
    """
    return -(-count // BLOCK) * bits


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Pack every row of values into words; 32 values fill ``bits`` words, and a row's last 32 are filled up with zeros.

    A row is one stream of bits: value i takes bits ``bits*i`` to ``bits*(i+1) - 1`` of it, counted from the lowest bit
    of the first word. With 3 bits, values 10 and 21 of 32 lie across two words each. It is the order of GPTQ files.

    Args:
        values: Integers from 0 to ``2**bits - 1``, shape (..., n).
        bits: Bits of a value, 1 to 8.

    Returns:
        Words of int32, shape (..., ``packed_words(n, bits)``).

    Raises:
        ValueError: If ``bits`` is out of range, or a value does not fit.

    Examples:
        >>> pack_bits(torch.tensor([[1, 2, 3, 0, 1]]), bits=4).tolist()
        [[66337, 0, 0, 0]]
        >>> f"{66337:x}"
        '10321'
    """
    check_number("bits", bits, low=1, high=9, whole=True)
    if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < 2**bits:
        raise ValueError(
            f"values go from {int(values.min())} to {int(values.max())}; allowed with {bits} bits is 0 to {2**bits - 1}"
        )
    *rows, count = values.shape
    blocks = -(-count // BLOCK)
    padded = torch.nn.functional.pad(values, (0, blocks * BLOCK - count)).reshape(*rows, blocks, BLOCK)
    words = torch.zeros(*rows, blocks, bits, dtype=torch.int32, device=values.device)
    for i in range(BLOCK):
        value, (word, shift) = padded[..., i].int(), divmod(i * bits, 32)
        words[..., word] |= value << shift
        if shift + bits > 32:
            words[..., word + 1] |= value >> (32 - shift)
    return words.flatten(-2)


def unpack_bits(words: Tensor, bits: int, count: int) -> Tensor:
    """Return the values that ``pack_bits`` has packed.

    Args:
        words: Words of int32, shape (..., ``packed_words(count, bits)``).
        bits: Bits of a value, 1 to 8.
        count: Values per row.

    Returns:
        Values of uint8, shape (..., count).

    Raises:
        ValueError: If ``bits`` is out of range, or the words are not as many as the values need, or of another type.

    Examples:
        >>> unpack_bits(torch.tensor([66337, 0, 0, 0], dtype=torch.int32), bits=4, count=5)
        tensor([1, 2, 3, 0, 1], dtype=torch.uint8)
    """
    check_number("bits", bits, low=1, high=9, whole=True)
    expected = packed_words(count, bits)
    if words.dtype != torch.int32 or words.shape[-1] != expected:
        raise ValueError(
            f"words are {words.shape[-1]} of {words.dtype}; allowed for {count} values of {bits} bits are {expected} "
            f"of torch.int32"
        )
    blocks = words.unflatten(-1, (-1, bits))
    values = torch.empty(*blocks.shape[:-1], BLOCK, dtype=torch.uint8, device=words.device)
    for i in range(BLOCK):
        word, shift = divmod(i * bits, 32)
        value = blocks[..., word] >> shift
        if shift + bits > 32:
            value &= (1 << (32 - shift)) - 1  # away with copies of the sign, where the next word's bits go
            value |= blocks[..., word + 1] << (32 - shift)
        values[..., i] = value & (2**bits - 1)
    return values.flatten(-2)[..., :count]
