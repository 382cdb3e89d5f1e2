"""The kernels of the block-affine weight in Triton's interpreter, against the oracle."""

import numpy as np
import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.block_affine import block_affine, block_affine_linear, kernel
from tests.kernels.block_affine_cases import CASES, inputs, oracle
from tests.kernels.buffers import guarded, strided

NEAR = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}


@pytest.fixture(autouse=True)
def _triton():
    with use_kernels("triton"):
        yield


def results(weight, block, tokens, upstream):
    tokens, block = tokens.requires_grad_(), block.requires_grad_()
    outputs = block_affine_linear(tokens, weight, block)
    return block_affine(weight, block), outputs, *torch.autograd.grad(outputs, (block, tokens), upstream)


def check(data, got, dtype):
    for ours, exact in zip(got, oracle(*data), strict=True):
        tolerance = NEAR[dtype] * np.abs(exact).max()
        np.testing.assert_allclose(ours.detach().double().numpy(), exact, rtol=NEAR[dtype], atol=tolerance)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [*((case, torch.float32) for case in CASES[:4]), (CASES[6], torch.float16), (CASES[0], torch.bfloat16)],
    ids=str,
)
def test_weight_outputs_and_gradients(case, dtype):
    data = inputs(case, dtype)
    check(data, results(*data), dtype)


@pytest.mark.parametrize("case", [CASES[0], (12, 8, (2, 1), 4)], ids=str)
def test_pieces_of_the_gradient_add_up(case, monkeypatch):
    data = inputs(case)
    whole = results(*data)[2]
    monkeypatch.setattr(kernel, "PIECE", 2 * case[3] * case[1])
    torch.testing.assert_close(results(*data)[2], whole, rtol=1e-5, atol=1e-5)
    weight, block, tokens, upstream = data
    dense = torch.autograd.grad(block_affine(weight, block), block, upstream.t() @ tokens.detach())[0]
    torch.testing.assert_close(dense, whole, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_the_weight():
    weight, block, *_ = inputs(CASES[0])
    (slope,) = torch.autograd.grad(block_affine(weight.requires_grad_(), block).sum(), weight)
    with use_kernels("eager"):
        (want,) = torch.autograd.grad(block_affine(weight, block).sum(), weight)
    torch.testing.assert_close(slope, want)


def test_without_a_block_the_weight_is_the_same_in_every_bit():
    for dtype in (torch.float32, torch.float16):
        weight, block, *_ = inputs(CASES[0], dtype, scale=0.0)
        assert torch.equal(block_affine(weight, block), weight)


@pytest.mark.parametrize("layout", [strided, lambda t: t.mT.contiguous().mT], ids=["every second", "transposed"])
def test_any_layout(layout):
    data = inputs(CASES[0])
    check(data, results(*map(layout, data)), torch.float32)


@pytest.mark.parametrize("case", [CASES[0], (16, 32, (1, 1), 16)], ids=str)
def test_nothing_outside_is_read_or_touched(case, monkeypatch):
    data = inputs(case)
    (weight, block, tokens, upstream), clean = guarded(data)
    outside, original = [], torch.empty_like

    def empty_like(tensor, **options):
        values = tensor.new_zeros(tensor.shape, dtype=options.get("dtype", tensor.dtype))
        tensors, untouched = guarded([values])
        outside.append(untouched)
        return tensors[0]

    monkeypatch.setattr(torch, "empty_like", empty_like)
    got = results(weight, block, tokens, upstream)
    monkeypatch.setattr(torch, "empty_like", original)
    check(data, got, torch.float32)
    assert clean()
    assert len(outside) >= 2
    assert all(untouched() for untouched in outside)


def test_precision_follows_pytorch(monkeypatch):
    precisions = {}
    for name in ("highest", "high"):
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda name=name: name)
        for dtype in NEAR:
            options = kernel._options(kernel.pick_config((4, 4), (4, 1), 16), 16, dtype)
            precisions[name, dtype] = options["PRECISION"]
    assert precisions.pop(("highest", torch.float32)) == "ieee"
    assert set(precisions.values()) == {"tf32"}


def test_what_has_no_kernel_is_refused():
    with pytest.raises(KernelUnavailableError, match=r"not written for torch.float64"):
        block_affine(*inputs(CASES[0], torch.float64)[:2])
    with pytest.raises(KernelUnavailableError, match=r"r is 129; .* up to 128"):
        block_affine(torch.zeros(129, 129), torch.zeros(1, 1, 129, 129))
