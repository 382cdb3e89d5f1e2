"""The transformed group energy on the CPU against its specification and an oracle in numpy."""

import warnings

import numpy as np
import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.transformed_l1 import transformed_l1, transformed_l1_reference
from lightning_weights.kernels.transformed_l1.cost import cost, cost_composition, pick_config
from tests.kernels.buffers import guarded, strided
from tests.kernels.transformed_l1_cases import OP_RULE, RULE, SHAPES, inputs, oracle

BIT = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def gradients(weight, keep, upstream, **rule):
    weight, keep = weight.detach().requires_grad_(), keep.detach().requires_grad_()
    energies = transformed_l1(weight, keep, **rule)
    return energies, *torch.autograd.grad(energies, (weight, keep), upstream.to(energies.dtype))


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", BIT)
def test_energies_and_gradients_are_the_oracles(shape, dtype, released):
    data = inputs(shape, dtype)
    energies, *slopes = gradients(*data, **RULE, released=released)
    wide = torch.promote_types(dtype, torch.float32)
    want, *want_slopes = oracle(*data, **RULE, released=released)
    np.testing.assert_allclose(energies.detach().numpy(), want, rtol=BIT[wide])
    assert (slopes[0].dtype, slopes[1].dtype, energies.dtype) == (dtype, wide, wide)
    for slope, want_slope, tolerance in zip(slopes, want_slopes, (BIT[dtype], BIT[wide]), strict=True):
        np.testing.assert_allclose(slope.double().numpy(), want_slope, rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize("released", [False, True])
def test_reference_is_the_oracle(released):
    data = inputs((4, 9), torch.float64)
    want = oracle(*data, **RULE, released=released)[0]
    np.testing.assert_allclose(transformed_l1_reference(*data[:2], **RULE, released=released), want, rtol=1e-14)


@pytest.mark.parametrize("released", [False, True])
def test_gradcheck(released):
    weight, keep, _ = inputs((3, 5), torch.float64)
    weight, keep = weight.view(3, 5, 1).requires_grad_(), keep.requires_grad_()
    assert torch.autograd.gradcheck(lambda w, k: transformed_l1(w, k, **RULE, released=released), (weight, keep))


@pytest.mark.parametrize(
    "layout",
    [strided, lambda w: w.t().contiguous().t(), lambda w: w[::2], lambda w: w.view(4, 10, 5, 5)],
    ids=["every second", "transposed", "rows", "convolution"],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_any_layout(layout, channels_last):
    weight, keep, upstream = inputs((4, 250))
    weight = layout(weight)
    if channels_last and weight.dim() == 4:
        weight = weight.to(memory_format=torch.channels_last)
    keep, upstream = keep[: len(weight)], upstream[: len(weight)]
    energies, slope, _ = gradients(weight, keep, upstream, **RULE)
    want, want_slope, _ = oracle(weight.flatten(1), keep, upstream, **RULE)
    np.testing.assert_allclose(energies.detach(), want, rtol=2e-6)
    np.testing.assert_allclose(slope.flatten(1), want_slope, rtol=2e-6, atol=1e-7)


def test_no_filters():
    energies, slope, _ = gradients(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), **RULE)
    assert (energies.shape, slope.shape) == ((0,), (0, 4))


def test_inputs_are_only_read():
    (weight, keep), clean = guarded(inputs((5, 27))[:2])
    before = weight.clone(), keep.clone()
    gradients(weight, keep, torch.ones(5), **RULE)
    assert clean()
    assert torch.equal(weight, before[0])
    assert torch.equal(keep, before[1])


def test_released_sign_ends_at_its_pole():
    weight, keep = torch.ones(2, 4), torch.ones(2)
    rule = {"precision": 1.0, "l0": 0.0, "released": True}  # energies of 2
    assert transformed_l1(weight, keep, a=2.1, **rule).allclose(torch.full((2,), 3.1 * 2 / 0.1))
    for a in (2.0, 1.9):
        with pytest.raises(ValueError, match=r"a is .* has its pole"):
            transformed_l1(weight, keep, a=a, **rule)


def test_bad_input():
    weight, keep, _ = inputs((3, 4))
    for name, value in (("a", 0.0), ("precision", -1.0), ("l0", float("nan"))):
        with pytest.raises(ValueError, match=f"{name} is"):
            transformed_l1(weight, keep, **{**RULE, name: value})
    for bad in ((weight[0], keep[:1]), (weight, keep[:2])):
        with pytest.raises(ValueError, match=r"weight has shape .* and keep"):
            transformed_l1(*bad, **RULE)
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match=r"tensors are on cpu|triton is not"):
        transformed_l1(weight, keep, **RULE)


def test_opcheck():
    weight, keep, upstream = inputs((3, 4))
    ops = torch.ops.lightning_weights
    forward = torch.library.opcheck(ops.transformed_l1.default, (weight, keep, *OP_RULE))
    squares = weight.square().sum(1)
    backward = torch.library.opcheck(ops.transformed_l1_backward.default, (weight, keep, squares, upstream, *OP_RULE))
    assert set(forward.values()) == set(backward.values()) == {"SUCCESS"}


def test_compiles_whole():
    data = inputs((4, 9, 2))
    rule = {**RULE, "released": True}
    compiled = torch.compile(lambda w, k: transformed_l1(w, k, **rule).sum(), fullgraph=True, backend="aot_eager")
    ours = [tensor.clone().requires_grad_() for tensor in data[:2]]
    theirs = [tensor.clone().requires_grad_() for tensor in data[:2]]
    compiled(*ours).backward()
    transformed_l1(*theirs, **rule).sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))


def test_function_transforms():
    weights, keep = torch.randn(6, 3, 4), torch.rand(3)
    gradient = torch.func.grad(lambda w: transformed_l1(w, keep, **RULE).sum())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # a loop over the batch it is
        batched = torch.func.vmap(gradient)(weights)
    torch.testing.assert_close(batched, torch.stack([gradient(w) for w in weights]))


@pytest.mark.parametrize("columns", [1, 27, 576, 5760, 1 << 20])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("warp_size", [32, 64])
def test_threads_take_whole_vectors_and_short_rows_one_round(columns, itemsize, warp_size):
    block, warps = pick_config(columns, itemsize, warp_size)
    per_thread, rest = divmod(block * itemsize, warps * warp_size)
    assert (rest, per_thread % 16) == (0, 0)
    assert block >= columns or columns > 8192
    assert block & (block - 1) == 0
    assert warps == 1 or block < 2 * columns


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cost_counts_the_tensors(dtype):
    weight, keep, upstream = inputs((6, 100), dtype)
    forward, backward = (cost(6, 100, itemsize=weight.itemsize, backward=way) for way in (False, True))
    assert (forward.bytes_read, forward.bytes_written) == (weight.nbytes + keep.nbytes, 2 * keep.nbytes)
    assert backward.bytes_read == weight.nbytes + 2 * keep.nbytes + upstream.nbytes
    assert backward.bytes_written == weight.nbytes + keep.nbytes


def test_fusing_removes_more_than_a_third_of_the_bytes():
    moved = [
        sum(way.bytes_read + way.bytes_written for way in (count(640, 5760), count(640, 5760, backward=True)))
        for count in (cost, cost_composition)
    ]
    assert moved[0] < 0.5 * moved[1]
