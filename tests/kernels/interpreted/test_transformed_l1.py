"""The kernels of the transformed group energy in Triton's interpreter, against an oracle in numpy."""

import numpy as np
import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.transformed_l1 import kernel, transformed_l1
from tests.kernels.buffers import guarded, strided, ulps
from tests.kernels.transformed_l1_cases import OP_RULE, RULE, SHAPES, inputs, oracle


@pytest.fixture(autouse=True)
def _triton():
    with use_kernels("triton"):
        yield


def run(weight, keep, upstream, **rule):
    weight, keep = weight.detach().requires_grad_(), keep.detach().requires_grad_()
    energies = transformed_l1(weight, keep, **rule)
    return energies.detach(), *torch.autograd.grad(energies, (weight, keep), upstream)


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers(shape, released):
    data = inputs(shape)
    for got, want in zip(run(*data, **RULE, released=released), oracle(*data, **RULE, released=released), strict=True):
        np.testing.assert_allclose(got, want, rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 7), (2, 576)])
def test_narrow_dtypes(dtype, shape):
    data = inputs(shape, dtype)
    energies, slope, slope_keep = run(*data, **RULE)
    want, want_slope, want_slope_keep = map(torch.from_numpy, oracle(*data, **RULE))
    torch.testing.assert_close(energies, want.float(), rtol=3e-6, atol=1e-7)
    torch.testing.assert_close(slope_keep, want_slope_keep.float(), rtol=3e-6, atol=1e-7)
    # the interpreter truncates where hardware rounds to nearest: at most one step of the narrow dtype
    assert ((slope.float() - want_slope.float()).abs() <= ulps(want_slope.float().abs(), dtype)).all()
    assert slope.dtype == dtype


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "not aligned"])
@pytest.mark.parametrize("shape", [(3, 7), (5, 48), (2, 1025)])
def test_nothing_outside_is_read_or_written(shape, shift):
    data = inputs(shape)
    (weight, keep, upstream), clean = guarded(data, shift)
    squares = (weight.double() ** 2).sum(1).float()
    energies, measured = kernel.launch_energies(weight, keep, *OP_RULE)
    slope, slope_keep = kernel.launch_gradients(weight, keep, squares, upstream, *OP_RULE)
    want, want_slope, want_slope_keep = oracle(*data, **RULE)
    np.testing.assert_allclose(energies, want, rtol=3e-6)
    np.testing.assert_allclose(measured, squares, rtol=3e-6)
    np.testing.assert_allclose(slope, want_slope, rtol=3e-6, atol=1e-7)
    np.testing.assert_allclose(slope_keep, want_slope_keep, rtol=3e-6, atol=1e-7)
    assert clean()


@pytest.mark.parametrize("layout", [strided, lambda w: w.t().contiguous().t(), lambda w: w.view(4, 10, 5, 5)])
def test_any_layout(layout):
    weight, keep, upstream = inputs((4, 250))
    weight = layout(weight)
    if weight.dim() == 4:
        weight = weight.to(memory_format=torch.channels_last)
    energies, slope, _ = run(weight, keep, upstream, **RULE)
    want, want_slope, _ = oracle(weight.flatten(1), keep, upstream, **RULE)
    np.testing.assert_allclose(energies, want, rtol=3e-6)
    np.testing.assert_allclose(slope.flatten(1), want_slope, rtol=3e-6, atol=1e-7)


def test_nan_stays_in_its_filter():
    weight, keep, upstream = inputs((3, 20))
    weight[1, 7] = torch.nan
    energies, slope, _ = run(weight, keep, upstream, **RULE)
    assert energies.isnan().tolist() == [False, True, False]
    assert slope.isnan().any(dim=1).tolist() == [False, True, False]


def test_released_sign_ends_at_its_pole():
    with pytest.raises(ValueError, match="has its pole"):
        transformed_l1(torch.ones(2, 4), torch.ones(2), precision=1.0, l0=0.0, a=1.5, released=True)


def test_dtypes_without_a_kernel_are_refused():
    weight, keep, _ = inputs((3, 4), torch.float64)
    with pytest.raises(KernelUnavailableError, match=r"not written for torch.float64"):
        transformed_l1(weight, keep, **RULE)


def test_opcheck():
    weight, keep, upstream = inputs((3, 4))
    ops = torch.ops.lightning_weights
    forward = torch.library.opcheck(ops.transformed_l1.default, (weight, keep, *OP_RULE))
    backward = torch.library.opcheck(ops.transformed_l1_backward.default, (weight, keep, keep, upstream, *OP_RULE))
    assert set(forward.values()) == set(backward.values()) == {"SUCCESS"}
