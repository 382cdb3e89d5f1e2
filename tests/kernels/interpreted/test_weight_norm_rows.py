"""The kernel of the row norms in Triton's interpreter, against an oracle in numpy."""

import numpy as np
import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.weight_norm_rows import SMALLEST_NORM, kernel, weight_norm_rows
from tests.kernels.buffers import guarded, strided
from tests.kernels.weight_norm_rows_cases import SCALE, SHAPES, inputs, oracle


@pytest.fixture(autouse=True)
def _triton():
    with use_kernels("triton"):
        yield


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, (64, 192, 16), (16, 64, 64)])
def test_numbers(shape, known):
    *data, upstream = inputs(shape)
    data[1].requires_grad_()
    norms = weight_norm_rows(*data, scale=SCALE, weight_norm_sq=data[0].square().sum(1) if known else None)
    norms.backward(upstream)
    want, _, want_slope, _ = oracle(*data, upstream)
    np.testing.assert_allclose(norms.detach(), want, rtol=1e-5)
    np.testing.assert_allclose(data[1].grad, want_slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights(dtype):
    *data, upstream = inputs((5, 48, 4), dtype)
    np.testing.assert_allclose(weight_norm_rows(*data, scale=SCALE), oracle(*data, upstream)[0], rtol=1e-5)


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "not aligned"])
@pytest.mark.parametrize("shape", [(3, 7, 2), (32, 64, 16)])
def test_nothing_outside_is_read_or_written(shape, shift):
    *data, upstream = inputs(shape)
    tensors, clean = guarded(data, shift)
    norms, product = kernel.launch_norms(*tensors, None, SCALE)
    np.testing.assert_allclose(norms, oracle(*data, upstream)[0], rtol=1e-5)
    np.testing.assert_allclose(product, data[0] @ data[2].T, rtol=1e-4, atol=1e-4)
    assert clean()


def test_any_layout():
    *data, upstream = inputs((6, 10, 3))
    np.testing.assert_allclose(
        weight_norm_rows(*map(strided, data), scale=SCALE), oracle(*data, upstream)[0], rtol=1e-5
    )


def test_rows_of_zeros_and_of_nan():
    *data, _ = inputs((3, 5, 2))
    data[0][1], data[1][1], data[0][2, 3] = 0.0, 0.0, torch.nan
    norms = weight_norm_rows(*data, scale=SCALE)
    assert norms[1] == torch.tensor(SMALLEST_NORM)
    assert norms.isnan().tolist() == [False, False, True]


def test_no_rows():
    assert weight_norm_rows(torch.zeros(0, 4), torch.zeros(0, 2), torch.zeros(2, 4), scale=SCALE).shape == (0,)


def test_dtypes_without_a_kernel_are_refused():
    *data, _ = inputs((3, 4, 2), torch.float64)
    with pytest.raises(KernelUnavailableError, match=r"not written for torch.float64"):
        weight_norm_rows(*data, scale=SCALE)
