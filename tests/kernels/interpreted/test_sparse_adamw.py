"""The sparse AdamW kernel in Triton's interpreter, against its specification."""

import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.sparse_adamw import kernel, sparse_adamw, sparse_adamw_reference
from lightning_weights.kernels.sparse_adamw.reference import mixed
from tests.kernels.buffers import guarded, ulps
from tests.kernels.sparse_adamw_cases import RULE, chosen_mask, gathered, lists, sizes, take

FORMS = pytest.mark.parametrize("form", [lambda data: data, gathered], ids=["dense", "gathered"])

ROUNDING = {"rtol": 1e-6, "atol": 3e-7}  # PyTorch's own fp32 root on CPUs can be off by one bit


@pytest.fixture(autouse=True)
def _triton():
    with use_kernels("triton"):
        yield


def references(data, seed=None):
    rows = zip(*data, sizes(data), strict=True)
    return [
        sparse_adamw_reference(
            *tensors, step_size=size, **RULE, rounding_seed=None if seed is None else mixed(seed + position)
        )
        for position, (*tensors, size) in enumerate(rows)
    ]


@FORMS
def test_numbers(form):
    data = form(lists())
    results = take(sparse_adamw, data)
    for *got, want, before, indices in zip(*results, references(data), data[0], data[1], strict=True):
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours, theirs, **ROUNDING)
        outside = ~chosen_mask(before, indices)
        assert torch.equal(got[0][outside], before[outside])


@FORMS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes(dtype, form):
    data = form(lists((7, 1025, 2100), dtype))
    params, firsts, _ = take(sparse_adamw, data)
    for got, first, (want, want_first, _) in zip(params, firsts, references(data), strict=True):
        # The interpreter truncates where hardware and PyTorch round to nearest: at most one step of the narrow dtype.
        assert ((got.float() - want.float()).abs() <= ulps(want.abs(), dtype)).all()
        torch.testing.assert_close(first, want_first, **ROUNDING)


def test_stochastic_rounding_is_the_references():
    data = lists((7, 1025, 2100), torch.bfloat16)
    params, _, _ = take(sparse_adamw, data, rounding_seed=12345)
    for got, (want, _, _) in zip(params, references(data, 12345), strict=True):
        # bits of the noise are equal; a last bit of the fp32 result decides in one of ten thousand entries
        assert (got != want).float().mean() < 1e-3
        assert ((got.float() - want.float()).abs() <= ulps(want.abs(), torch.bfloat16)).all()
    assert not torch.equal(params[2], take(sparse_adamw, data)[0][2])


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "not aligned"])
@FORMS
def test_nothing_outside_is_touched(form, shift):
    data = form(lists())
    cuts = [guarded(tensors, shift) if i != 1 else (tensors, lambda: True) for i, tensors in enumerate(data)]
    tensors = [cut[0] for cut in cuts]
    sparse_adamw(*tensors, sizes(data), **RULE)
    assert all(clean() for _, clean in cuts)
    assert all(torch.equal(got, want) for got, want in zip(tensors[2], data[2], strict=True)), "a gradient has changed"
    for got, (want, _, _) in zip(tensors[0], references(data), strict=True):
        torch.testing.assert_close(got, want, **ROUNDING)


def test_any_layout():
    params, indices, grads, firsts, seconds = lists((300,))
    data = [[params[0].t()], indices, [grads[0].t()], firsts, seconds]
    (param,), (first,), _ = take(sparse_adamw, data)
    want, want_first, _ = references(data)[0]
    torch.testing.assert_close(param, want, **ROUNDING)
    torch.testing.assert_close(first, want_first, **ROUNDING)


@pytest.mark.interpreter
def test_addresses_are_64_bit():
    # The first weight is said to be 2**33 elements before the buffer, and nothing but its table row leads back to it.
    (param,), (idx,), (grad,), (first,), (second,) = lists((1024,))
    want = sparse_adamw_reference(param, idx, grad, first, second, step_size=0.3, **RULE)[0]
    beyond = 1 << 33
    streamed = [idx, first, second]
    shifted = {id(tensor): tensor.data_ptr() - 4 * beyond for tensor in streamed}
    row = [shifted.get(id(tensor), tensor.data_ptr()) for tensor in (param, idx, grad, first, second)]
    kernel.sparse_adamw_fwd_kernel[(1,)](
        torch.tensor([*row, 0]),
        torch.tensor([[0, beyond, 1024]]),
        0.3,
        RULE["beta1"],
        1 - RULE["beta1"],
        RULE["beta2"],
        1 - RULE["beta2"],
        RULE["eps"],
        RULE["decay"],
        0,
        PARAM=kernel.TRITON_DTYPES[torch.float32],
        GRAD=kernel.TRITON_DTYPES[torch.float32],
        GATHERED=False,
        STOCHASTIC=False,
        EVEN=True,
        ALIGNED=True,
        BLOCK=1024,
    )
    torch.testing.assert_close(param, want, **ROUNDING)


def test_dtypes_without_a_kernel_are_refused():
    data = lists((4,), torch.float64, torch.float64)
    with pytest.raises(KernelUnavailableError, match=r"not written for torch.float64"):
        sparse_adamw(*data, sizes(data), **RULE)


def test_opcheck():
    data = lists((10, 3))
    arguments = (*data, sizes(data), 0.9, 0.95, 1e-6, 1.0, None)
    results = torch.library.opcheck(torch.ops.lightning_weights.sparse_adamw.default, arguments)
    assert set(results.values()) == {"SUCCESS"}
