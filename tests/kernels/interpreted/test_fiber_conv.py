"""The kernels of the convolution over positions and orientations in Triton's interpreter, against the oracle."""

import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels._op import exact_products
from lightning_weights.kernels.fiber_conv import fiber_conv, fiber_conv_reference, launch, sort_edges
from lightning_weights.kernels.fiber_conv.cost import pick_config
from tests.kernels.buffers import guarded, strided
from tests.kernels.fiber_conv_cases import CASES, check, inputs

NEAR = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}


@pytest.fixture(autouse=True)
def _triton():
    with use_kernels("triton"):
        yield


@pytest.mark.parametrize("case", CASES, ids=str)
def test_result_and_gradients_are_the_oracles(case):
    check(fiber_conv, case, torch.float32, NEAR[torch.float32])


def test_without_orientations():
    check(fiber_conv, CASES[1], torch.float32, NEAR[torch.float32], fiber=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_dtypes(dtype):
    check(fiber_conv, CASES[0], dtype, NEAR[dtype])


def test_several_tiles_of_everything():
    check(fiber_conv, (2, 40, 2, 70, 68), torch.float32, NEAR[torch.float32])


def test_gradients_of_gradients_are_those_of_the_cpu():
    operands, edges, _ = inputs((3, 5, 2, 3, 4))

    def slopes():
        value = fiber_conv(*operands, edges=edges).square().sum()
        gradients = torch.autograd.grad(value, operands, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in gradients), operands)

    got = slopes()
    with use_kernels("eager"):
        want = slopes()
    for ours, exact in zip(got, want, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))


def test_half_a_basis_stands_for_the_reverse_edges():
    edges = sort_edges(torch.tensor([[0, 1, 1, 2, 0], [1, 0, 2, 1, 0]]), 3)
    shapes = ((3, 4, 16), (5, 2, 16), (16, 16), (4, 4, 16), (16,))
    operands = [torch.randn(shape, requires_grad=True) for shape in shapes]
    found = []
    for function in (fiber_conv, fiber_conv_reference):
        value = function(*operands, edges=edges)
        found.append([value, *torch.autograd.grad(value.square().sum(), operands)])
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))


def test_any_layout():
    operands, edges, _ = inputs(CASES[1])
    plain = [tensor.detach() for tensor in operands]
    want = fiber_conv(*plain, edges=edges)
    torch.testing.assert_close(fiber_conv(*map(strided, plain), edges=edges), want)


@pytest.mark.parametrize("case", [CASES[0], CASES[1]], ids=str)
def test_nothing_outside_is_read_or_touched(case, monkeypatch):
    operands, edges, upstream = inputs(case)
    (*cut, grad), clean = guarded([*(tensor.detach() for tensor in operands), upstream])
    leaves = [tensor.requires_grad_() for tensor in cut]
    want = torch.autograd.grad(fiber_conv(*operands, edges=edges), operands, upstream)
    outside, original = [], torch.empty_like

    def empty_like(tensor, **options):
        tensors, untouched = guarded([torch.zeros_like(tensor)])
        outside.append(untouched)
        return tensors[0]

    monkeypatch.setattr(launch.torch, "empty_like", empty_like)
    got = torch.autograd.grad(fiber_conv(*leaves, edges=edges), leaves, grad)
    monkeypatch.setattr(launch.torch, "empty_like", original)
    torch.testing.assert_close(got, want)
    assert clean()
    assert len(outside) >= 4
    assert all(untouched() for untouched in outside)


def test_precision_follows_pytorch(monkeypatch):
    assert exact_products(torch.float32, torch.float32)
    assert not exact_products(torch.float32, torch.float16)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert not exact_products(torch.float32)
    assert launch._options(True, True)["PRECISION"] == "ieee"
    assert pick_config(8, 64, 64, exact=True).channels < pick_config(8, 64, 64).channels


def test_what_has_no_kernel_is_refused():
    operands, edges, _ = inputs(CASES[0], torch.float64)
    with pytest.raises(KernelUnavailableError, match=r"not written for torch.float64"):
        fiber_conv(*operands, edges=edges)
