"""The kernels of companding in Triton's interpreter, against an oracle in numpy."""

import numpy as np
import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.compand import LIMITS, compand, kernel
from tests.kernels.buffers import guarded, strided, ulps
from tests.kernels.compand_cases import CASES, FUNCTIONS, inputs, oracle

EACH = pytest.mark.parametrize("function", FUNCTIONS)


@pytest.fixture(autouse=True)
def _triton():
    with use_kernels("triton"):
        yield


def run(latent, a, b, upstream, function):
    leaves = [tensor.detach().requires_grad_() for tensor in (latent, a, b)]
    weight = compand(*leaves, function)
    return weight.detach(), *torch.autograd.grad(weight, leaves, upstream)


@EACH
@pytest.mark.parametrize(("shape", "scales"), CASES)
def test_numbers(shape, scales, function):
    data = inputs(shape, scales)
    terms = 1.0 + float(data[3].abs().sum())
    for got, want, size in zip(run(*data, function), oracle(*data, function), (1.0, 1.0, terms, terms), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=3e-7 * size)


def test_the_polynomials_are_as_close_as_single_precision():
    latent = torch.linspace(-30, 30, 20001)
    for function in ("arctan", "tanh"):
        found = compand(latent, torch.ones(1), torch.ones(1), function).double()
        wanted = getattr(torch, {"arctan": "atan"}.get(function, function))(latent.double())
        assert ((found - wanted).abs() <= 3e-7 * wanted.abs()).all()
        assert (found.abs() <= LIMITS[function] * (1 + 1e-7)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "scales"), [((3, 7), 3), ((2, 576), 1)])
def test_narrow_dtypes(dtype, shape, scales):
    data = inputs(shape, scales, dtype)
    found, wanted = run(*data, "arctan"), oracle(*data, "arctan")
    for got, want in zip(found[:2], wanted[:2], strict=True):
        want = torch.from_numpy(want).float()
        assert got.dtype == dtype
        # the interpreter truncates where hardware rounds to nearest: at most one step of the narrow dtype
        assert ((got.float() - want).abs() <= ulps(want.abs(), dtype) + 1e-7).all()
    np.testing.assert_allclose(found[2], wanted[2], rtol=1e-5, atol=1e-4)
    assert found[3].dtype == torch.float32


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "not aligned"])
@pytest.mark.parametrize(("shape", "scales"), [((3, 7), 3), ((5, 48), 5), ((2, 1025), 2)])
def test_nothing_outside_is_read_or_written(shape, scales, shift):
    data = inputs(shape, scales)
    (latent, a, b, upstream), clean = guarded(data, shift)
    wanted = oracle(*data, "arctan")
    np.testing.assert_allclose(kernel.launch_weights(latent, a, b, "arctan"), wanted[0], rtol=2e-6, atol=1e-7)
    found = kernel.launch_gradients(latent, a, b, upstream, "arctan", True)
    for got, want in zip(found, wanted[1:], strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-4)
    slope, *nothing = kernel.launch_gradients(latent, a, b, upstream, "arctan", False)
    assert torch.equal(slope, found[0])
    assert all(not bool(tensor.any()) for tensor in nothing)
    assert clean()


@pytest.mark.parametrize("layout", [strided, lambda v: v.t().contiguous().t(), lambda v: v.view(4, 10, 5, 5)])
def test_any_layout(layout):
    latent, a, b, upstream = inputs((4, 250), 4)
    latent, upstream = layout(latent), layout(upstream)
    for got, want in zip(run(latent, a, b, upstream, "tanh"), oracle(latent, a, b, upstream, "tanh"), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=3e-5)


@EACH
def test_huge_latents_and_nan(function):
    latent = torch.tensor([1e30, -3e38, torch.nan, 0.0])
    weight, slope, *_ = run(latent, torch.tensor([2.0]), torch.tensor([0.01]), torch.ones(4), function)
    limit = 2 * LIMITS[function]
    torch.testing.assert_close(weight, torch.tensor([limit, -limit, torch.nan, 0.0]), equal_nan=True)
    torch.testing.assert_close(slope, torch.tensor([0.0, 0.0, torch.nan, 200.0]), equal_nan=True)
    _, _, grad_a, grad_b = run(latent[:2], torch.tensor([2.0]), torch.tensor([0.01]), torch.ones(2), function)
    assert bool((grad_a.isfinite() & grad_b.isfinite()).all())


def test_dtypes_without_a_kernel_are_refused():
    latent, a, b, _ = inputs((3, 4), 3, torch.float64)
    with pytest.raises(KernelUnavailableError, match=r"not written for torch.float64"):
        compand(latent, a, b)


def test_opcheck():
    data = inputs((3, 4), 3)
    ops = torch.ops.lightning_weights
    forward = torch.library.opcheck(ops.compand.default, (*data[:3], "arctan"))
    backward = torch.library.opcheck(ops.compand_backward.default, (*data, "arctan", True))
    assert set(forward.values()) == set(backward.values()) == {"SUCCESS"}
