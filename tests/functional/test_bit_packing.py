"""Values of a few bits in 32-bit words."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.functional.bit_packing import pack_bits, packed_words, unpack_bits


def read_stream(words, bits, count):
    """Read values off the row's bits, lowest first, with numpy."""
    stream = np.unpackbits(words.numpy().view(np.uint8), axis=1, bitorder="little")[:, : bits * count]
    return torch.from_numpy(stream.reshape(len(words), count, bits) @ (1 << np.arange(bits)))


@settings(max_examples=30, deadline=None)
@given(bits=st.integers(1, 8), count=st.integers(1, 70), seed=st.integers(0, 10**6))
def test_values_follow_each_other_in_the_bits_of_a_row(bits, count, seed):
    values = torch.randint(2**bits, (3, count), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    words = pack_bits(values, bits)
    assert (words.shape, words.dtype) == ((3, packed_words(count, bits)), torch.int32)
    assert torch.equal(read_stream(words, bits, count), values.long())
    assert torch.equal(unpack_bits(words, bits, count), values)


def test_three_bits_split_the_values_that_lie_across_words():
    # what GPTQ's first code does by hand: of value 10 two bits in the first word, of value 21 one in the second
    values = torch.zeros(3, 32, dtype=torch.long)
    values[0, 10], values[1, 21], values[2, 31] = 0b110, 0b110, 0b101
    assert (pack_bits(values, 3).long() & 0xFFFFFFFF).tolist() == [[2 << 30, 1, 0], [0, 0, 3], [0, 0, 5 << 29]]


def test_packing_is_dense():
    assert [packed_words(64, bits) * 32 / 64 for bits in range(1, 9)] == list(range(1, 9))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack_bits(torch.tensor([0, 4]), 2), r"values go from 0 to 4; allowed with 2 bits is 0 to 3"),
        (lambda: pack_bits(torch.tensor([-1]), 2), r"values go from -1 to -1"),
        (lambda: pack_bits(torch.tensor([0]), 9), r"bits is 9"),
        (lambda: unpack_bits(torch.zeros(2, 2).int(), 3, 32), r"2 of torch.int32; .* 32 values of 3 bits are 3"),
        (lambda: unpack_bits(torch.zeros(2, 3), 3, 32), r"3 of torch.float32"),
        (lambda: unpack_bits(torch.zeros(2, 3).int(), 0, 32), r"bits is 0"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
