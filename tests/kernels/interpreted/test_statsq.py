"""The kernel of the statistics-based quantizer in Triton's interpreter, against an oracle in numpy."""

import numpy as np
import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.statsq import kernel, statsq, statsq_observe
from tests.kernels.buffers import guarded, strided
from tests.kernels.statsq_cases import MOMENTUM, RANGE, SHAPES, THRESHOLD, advanced, inputs, oracle, tracker

RULE = {"momentum": MOMENTUM, "threshold": THRESHOLD}
ULP = {"rtol": 1e-6, "atol": 0.0}


@pytest.fixture(autouse=True)
def _triton():
    with use_kernels("triton"):
        yield


def spread(shape, dtype=torch.float32):
    """Weights far enough from every threshold that the last bit of a scale does not matter, and a row of zeros."""
    for _ in range(100):
        weight = inputs(shape, dtype)
        near = np.minimum(oracle(weight, 4)[3], oracle(weight, 2)[3]) < 1e-5
        if not near[weight.ne(0).any(1).numpy()].any():
            break
    return weight


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("shape", [*SHAPES, (2, 4096), (2, 4112), (2, 5001)])
def test_numbers(shape, bits):
    weight, state = spread(shape), tracker(shape, bits)
    codes, step, values, distance = oracle(weight, bits)
    *want, counts = advanced(codes, state)
    seen = statsq_observe(weight, bits, values=True, boundary_range=RANGE, tracker=state, **RULE)
    for result in (seen.values, statsq(weight, bits)):
        torch.testing.assert_close(result, values, **ULP)
    np.testing.assert_array_equal(seen.codes, codes)
    np.testing.assert_allclose(seen.step, step, rtol=1e-6)
    differ = seen.movable.numpy() != (distance <= RANGE)
    assert np.all(np.abs(distance[differ] - RANGE) < 1e-5)
    for tensor, expected in zip(state, want, strict=True):
        np.testing.assert_allclose(tensor.flatten(), expected, atol=1e-6)
    assert seen.counts.tolist() == [*counts, int(seen.movable.sum())]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_and_averages(dtype):
    weight, state = spread((5, 48), dtype), tracker((5, 48), 2, dtype)
    codes, _, values, _ = oracle(weight, 2)
    want = advanced(codes, state)[2]
    torch.testing.assert_close(statsq(weight, 2), values, rtol=1e-2, atol=0.0)
    np.testing.assert_array_equal(statsq_observe(weight, 2, tracker=state, **RULE).codes, codes)
    np.testing.assert_allclose(state[2].float().flatten(), want, atol=4e-3)


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "not aligned"])
@pytest.mark.parametrize("shape", [(4, 7), (4, 512)])
def test_nothing_outside_is_read_or_written(shape, shift):
    weight = spread(shape)
    (weight, values), clean = guarded([weight, torch.zeros(shape)], shift)
    kernel.launch_quantize(weight, 2, values)
    torch.testing.assert_close(values, oracle(weight, 2)[2], **ULP)
    assert clean()


def test_any_layout_also_of_the_tracker():
    weight, state = spread((6, 10)), tracker((6, 10), 2)
    moved = [strided(tensor.float()).nan_to_num(0).to(tensor.dtype) for tensor in state]
    moved = [torch.stack([tensor, tensor], dim=-1)[..., 0] for tensor in moved]
    want = statsq_observe(weight, 2, tracker=state, **RULE)
    seen = statsq_observe(strided(weight), 2, tracker=moved, **RULE)
    assert torch.equal(seen.counts, want.counts)
    assert all(torch.equal(*pair) for pair in zip(moved, state, strict=True))
    assert torch.equal(statsq(weight.t().contiguous().t(), 2), statsq(weight, 2))


def test_rows_of_zeros_and_of_nan():
    weight = torch.tensor([[0.0, 0.0, 0.0], [1.0, torch.nan, 0.5], [0.0, 1.0, -1.0]])
    values = statsq(weight, 2)
    assert values[0].eq(0).all()
    assert values[1].isnan().all()
    assert values[2, 0] > 0
    assert statsq_observe(weight[:1], 2, boundary_range=0.0).movable.all()


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_no_weights(shape):
    assert statsq(torch.zeros(shape), 2).shape == shape
    assert statsq_observe(torch.zeros(shape), 2).counts.tolist() == [0, 0, 0, 0]


def test_dtypes_without_a_kernel_are_refused():
    with pytest.raises(KernelUnavailableError, match=r"not written for torch.float64"):
        statsq(torch.randn(3, 4, dtype=torch.float64), 2)
