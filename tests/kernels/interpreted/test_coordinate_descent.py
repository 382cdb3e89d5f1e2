"""The kernel of coordinate descent in Triton's interpreter, against its specification."""

import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.coordinate_descent import coordinate_descent, coordinate_descent_reference
from lightning_weights.kernels.coordinate_descent.cost import LONGEST
from tests.kernels.buffers import guarded, strided
from tests.kernels.coordinate_descent_cases import data, penalties, sums


@pytest.fixture(autouse=True)
def _triton():
    with use_kernels("triton"):
        yield


def inputs(alphas=(0.8, 0.2), ratios=(0.5,), dtype=torch.float64):
    gram, moments, power = sums(data(size=8, seed=0), data(size=8, seed=1))
    l1, l2 = penalties(alphas, ratios)
    starts = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64).expand(len(l1), 8).contiguous()
    own = torch.ones(len(l1), dtype=torch.int64)
    floats = [tensor.to(dtype) for tensor in (gram, moments, l1, l2, power, starts)]
    return [*floats[:2], own, *floats[2:]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_goes_and_stops_as_specified(dtype):
    tensors = inputs(dtype=dtype)
    starts = tensors.pop()
    for given, most in ((starts, 3), (None, 4)):
        want = coordinate_descent_reference(*tensors, given, 1e-2, most)
        found = coordinate_descent(*tensors, starts=given, tolerance=1e-2, max_sweeps=most)
        assert torch.equal(found.sweeps, want[1])
        assert found.weights.dtype == found.gap.dtype == dtype
        exact = {"atol": 1e-12, "rtol": 1e-12} if dtype == torch.float64 else {"atol": 2e-5, "rtol": 2e-5}
        torch.testing.assert_close(found.weights, want[0], **exact)
        torch.testing.assert_close(found.gap, want[2], **exact)


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "not aligned"])
def test_nothing_outside_is_read(shift):
    tensors = inputs(alphas=(0.3,))
    own = tensors.pop(2)
    copies, clean = guarded(tensors, shift)
    want = coordinate_descent_reference(*tensors[:2], own, *tensors[2:], 1e-4, 2)
    for values in (copies, [strided(tensor) for tensor in tensors]):
        *rest, starts = [*values[:2], own, *values[2:]]
        found = coordinate_descent(*rest, starts=starts, max_sweeps=2)
        torch.testing.assert_close(found.weights, want[0])
    assert clean()


def test_opcheck_and_refusal():
    *tensors, starts = inputs(alphas=(0.5,))
    operator = torch.ops.lightning_weights.coordinate_descent.default
    assert set(torch.library.opcheck(operator, (*tensors, starts, 1e-4, 1)).values()) == {"SUCCESS"}
    with pytest.raises(KernelUnavailableError, match=r"not written for torch.bfloat16"):
        coordinate_descent(tensors[0].bfloat16(), *tensors[1:])
    size = LONGEST + 1
    with pytest.raises(KernelUnavailableError, match=f"holds up to {LONGEST}"):
        coordinate_descent(torch.zeros(1, size, size), torch.zeros(1, size), *tensors[2:5], torch.zeros(1))
