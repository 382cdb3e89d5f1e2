"""The projection and the levels of signatures against their definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.functional.rws import (
    LevelCodes,
    bits_of,
    composition_scales,
    dequantize_levels,
    project_out,
    quantize_levels,
    signature_bytes,
)
from lightning_weights.kernels.apply_signature import dequantize_codes

seeds = st.integers(0, 2**16)
few = settings(max_examples=25, deadline=None)


def pair(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 5, 7, generator=generator), scale * torch.randn(3, 5, 7, generator=generator)


@few
@given(seeds, st.sampled_from([1e-4, 1.0, 1e3]), st.sampled_from([0.0, 0.9, 1 - 1e-6]))
def test_the_rest_is_orthogonal_however_small(seed, scale, shared):
    p, a = pair(seed, scale)
    p = (1 - shared) * p + shared / scale * a
    rest = project_out(p, a)
    assert rest.shape == p.shape
    assert abs((rest.double() * a.double()).sum()) <= 1e-5 * rest.double().norm() * a.double().norm()
    exact = p.double() - (p.double() * a.double()).sum() / a.double().square().sum() * a.double()
    torch.testing.assert_close(rest.double(), exact, rtol=1e-5, atol=1e-6)


@few
@given(seeds)
def test_projecting_is_linear_idempotent_and_blind_to_the_length_of_a(seed):
    (p, a), (other, _) = pair(seed), pair(seed + 1)
    rest = project_out(p, a)
    torch.testing.assert_close(project_out(rest, a), rest, rtol=0, atol=1e-6)
    torch.testing.assert_close(project_out(p + other, a), rest + project_out(other, a), rtol=0, atol=2e-6)
    torch.testing.assert_close(project_out(p, -37.0 * a), rest, rtol=0, atol=1e-6)


def test_special_directions():
    p, a = pair(0)
    assert torch.equal(project_out(p, torch.zeros_like(p)), p)
    assert torch.equal(project_out(a, a), torch.zeros_like(a))
    assert torch.equal(project_out(2 * a, a), torch.zeros_like(a))
    assert project_out(0.3 * a, a).norm() <= 1e-6 * a.norm()
    assert project_out(p.bfloat16(), a.bfloat16()).dtype == torch.float32
    assert project_out(p.double(), a.double()).dtype == torch.float64
    with pytest.raises(ValueError, match=r"p has the shape \(3, 5, 7\) and a \(105,\)"):
        project_out(p, a.flatten())


@few
@given(seeds, st.sampled_from([3, 4, 10, 16, 255, 256]), st.sampled_from([0.0, 1.0, 1e4]))
def test_levels(seed, levels, shift):
    value = pair(seed)[0] + shift
    found = quantize_levels(value, levels)
    back = dequantize_levels(found, levels)
    assert back.min() == value.min()
    assert back.max() == value.max()
    width = float(value.max() - value.min())
    ulp = torch.finfo(torch.float32).eps * float(value.abs().max())
    assert float((back - value).abs().max()) <= width / (2 * (levels - 1)) + ulp
    assert back.unique().numel() <= levels
    assert int(found.codes.max()) == levels - 1
    again = dequantize_levels(quantize_levels(back, levels), levels)
    assert torch.equal(again, back)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=9), st.sampled_from([3, 16, 256]))
@few
def test_any_values_keep_their_ends_and_rounding_twice_is_rounding_once(values, levels):
    value = torch.tensor(values, dtype=torch.float32)
    back = dequantize_levels(quantize_levels(value, levels), levels)
    assert (back.min(), back.max()) == (value.min(), value.max())
    assert torch.equal(dequantize_levels(quantize_levels(back, levels), levels), back)


def test_halves_go_to_even_numbers():
    found = quantize_levels(torch.tensor([0.0, 0.5, 1.5, 2.5, 3.0]), levels=4)
    assert found.codes.tolist() == [0, 0, 2, 2, 3]


@pytest.mark.parametrize("value", [0.0, -2.5])
def test_constant_tensors(value):
    found = quantize_levels(torch.full((2, 3), value), levels=16)
    assert found.codes.unique().tolist() == [0]
    assert torch.equal(dequantize_levels(found, 16), torch.full((2, 3), value))


def test_the_operator_has_the_same_values():
    low, high = torch.tensor(-0.1234567), torch.tensor(1.7654321)
    codes = torch.arange(16, dtype=torch.uint8)
    packed = codes[::2] | codes[1::2] << 4
    expected = dequantize_codes(packed, low, high, bits=4, count=16)
    assert torch.equal(dequantize_levels(LevelCodes(codes, low, high), 16), expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(bad):
    with pytest.raises(ValueError, match="allowed are finite ones"):
        quantize_levels(torch.tensor([1.0, bad, 2.0]), levels=4)


def test_bad_arguments():
    with pytest.raises(ValueError, match="levels is 2"):
        quantize_levels(torch.ones(3), levels=2)
    with pytest.raises(ValueError, match="levels is 257"):
        quantize_levels(torch.ones(3), levels=257)
    with pytest.raises(ValueError, match=r"3 of torch\.int64"):
        quantize_levels(torch.ones(3, dtype=torch.long), levels=4)
    with pytest.raises(ValueError, match="finite range"):
        quantize_levels(torch.tensor([-3e38, 3e38]), levels=4)
    for levels in (2, 3, 10, 512):
        with pytest.raises(ValueError, match=f"levels is {levels}; allowed for packing are 4, 8"):
            bits_of(levels)
    with pytest.raises(ValueError, match="weighting is 'mean'"):
        composition_scales([1.0], "mean")


def test_sizes_and_scales():
    assert [bits_of(levels) for levels in (4, 8, 16, 256)] == [2, 3, 4, 8]
    assert signature_bytes([9, 1], levels=8) == 4 + 8 + 1 + 8
    assert signature_bytes([9, 1], levels=None) == 40
    assert composition_scales([0.5, 2.0]) == [0.5, 2.0]
    assert composition_scales([0.5, 2.0], "published") == [0.0625, 1.0]
