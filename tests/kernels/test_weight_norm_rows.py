"""The row norms on the CPU against their specification and an oracle in numpy."""

import numpy as np
import pytest
import torch

from lightning_weights.errors import KernelUnavailableError, ShardedParameterError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.weight_norm_rows import (
    SMALLEST_NORM,
    eager,
    weight_norm_rows,
    weight_norm_rows_reference,
)
from lightning_weights.kernels.weight_norm_rows.cost import cost, cost_composition, pick_config
from tests.kernels.buffers import guarded, strided
from tests.kernels.weight_norm_rows_cases import SCALE, SHAPES, inputs, oracle

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_norms_and_gradients_are_the_oracles(shape, dtype, known):
    *data, upstream = inputs(shape, dtype)
    data = [tensor.requires_grad_() for tensor in data]
    square = data[0].detach().to(upstream.dtype).square().sum(1) if known else None
    norms = weight_norm_rows(*data, scale=SCALE, weight_norm_sq=square)
    gradients = torch.autograd.grad(norms, data, upstream)
    want, *want_gradients = oracle(*data, upstream)
    np.testing.assert_allclose(norms.detach(), want, rtol=TOLERANCE[dtype])
    assert [norms.dtype, *(gradient.dtype for gradient in gradients)] == [upstream.dtype, *(t.dtype for t in data)]
    rounding = {torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(dtype, 10 * TOLERANCE[dtype])
    np.testing.assert_allclose(gradients[0].double(), want_gradients[0], rtol=rounding, atol=rounding)
    for gradient, wanted in zip(gradients[1:], want_gradients[1:], strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=10 * TOLERANCE[dtype])


def test_reference_is_the_oracle():
    *data, upstream = inputs((4, 9, 2), torch.float64)
    np.testing.assert_allclose(weight_norm_rows_reference(*data, SCALE), oracle(*data, upstream)[0], rtol=1e-14)


def test_gradcheck():
    *data, _ = inputs((4, 6, 2), torch.float64)
    data = [tensor.requires_grad_() for tensor in data]
    assert torch.autograd.gradcheck(lambda *tensors: weight_norm_rows(*tensors, scale=SCALE), data)


def test_rows_of_zeros_have_the_smallest_norm_and_no_gradient():
    weight, factor_i, factor_j, _ = inputs((3, 5, 2))
    weight[1], factor_i[1] = 0.0, 0.0
    factor_i.requires_grad_()
    norms = weight_norm_rows(weight, factor_i, factor_j, scale=SCALE)
    norms.sum().backward()
    assert norms[1] == torch.tensor(SMALLEST_NORM)
    assert factor_i.grad[1].eq(0).all()
    assert factor_i.grad.isfinite().all()


def test_narrow_weights_are_widened_few_rows_at_a_time(monkeypatch):
    *data, upstream = inputs((11, 16, 3), torch.bfloat16)
    whole = eager.norms(*data, None, SCALE)
    slopes = eager.gradients(*data, *reversed(whole), upstream, SCALE, False)
    monkeypatch.setattr(eager, "CHUNK", 48)
    parts = eager.norms(*data, None, SCALE)
    for one, other in zip(
        (*whole, *slopes), (*parts, *eager.gradients(*data, *reversed(whole), upstream, SCALE, False)), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("layout", [strided, lambda t: t.t().contiguous().t()], ids=["every second", "transposed"])
def test_any_layout(layout):
    *data, upstream = inputs((6, 10, 3))
    norms = weight_norm_rows(*map(layout, data), scale=SCALE)
    np.testing.assert_allclose(norms, oracle(*data, upstream)[0], rtol=1e-5)


def test_no_rows():
    norms = weight_norm_rows(torch.zeros(0, 4), torch.zeros(0, 2), torch.zeros(2, 4), scale=SCALE)
    assert norms.shape == (0,)


def test_autocast_does_not_reach_it():
    *data, upstream = inputs((6, 200, 3))
    with torch.autocast("cpu", torch.bfloat16):
        norms = weight_norm_rows(*data, scale=SCALE)
    np.testing.assert_allclose(norms, oracle(*data, upstream)[0], rtol=1e-5)


def test_inputs_are_only_read():
    *data, _ = inputs((5, 27, 4))
    tensors, clean = guarded(data)
    before = [tensor.clone() for tensor in tensors]
    weight_norm_rows(*tensors, scale=SCALE)
    assert clean()
    assert all(torch.equal(old, new) for old, new in zip(before, tensors, strict=True))


def test_bad_input():
    weight, factor_i, factor_j, _ = inputs((3, 4, 2))
    with pytest.raises(ValueError, match="scale is nan"):
        weight_norm_rows(weight, factor_i, factor_j, scale=float("nan"))
    for bad in ((weight[0], factor_i, factor_j), (weight, factor_i[:2], factor_j), (weight, factor_i, factor_j[:, :3])):
        with pytest.raises(ValueError, match="weight has shape"):
            weight_norm_rows(*bad, scale=SCALE)
    with pytest.raises(ValueError, match=r"weight_norm_sq \(2,\)"):
        weight_norm_rows(weight, factor_i, factor_j, scale=SCALE, weight_norm_sq=torch.ones(2))
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match=r"tensors are on cpu|triton is not"):
        weight_norm_rows(weight, factor_i, factor_j, scale=SCALE)


def test_sharded_weights_are_refused():
    weight, factor_i, factor_j, _ = inputs((3, 4, 2))
    weight.placements = ("Shard(0)",)
    with pytest.raises(ShardedParameterError, match="whole row"):
        weight_norm_rows(weight, factor_i, factor_j, scale=SCALE)


def test_second_derivatives_are_refused():
    *data, _ = inputs((3, 4, 2))
    data[1].requires_grad_()
    norms = weight_norm_rows(*data, scale=SCALE)
    (gradient,) = torch.autograd.grad(norms.sum(), data[1], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        gradient.sum().backward()


def test_opcheck():
    *data, upstream = inputs((3, 4, 2))
    ops = torch.ops.lightning_weights
    forward = torch.library.opcheck(ops.weight_norm_rows.default, (*data, None, SCALE))
    norms, product = eager.norms(*data, None, SCALE)
    arguments = (*data, product, norms, upstream, SCALE, True)
    backward = torch.library.opcheck(ops.weight_norm_rows_backward.default, arguments)
    assert set(forward.values()) == set(backward.values()) == {"SUCCESS"}


def test_compiles_whole():
    *data, _ = inputs((4, 9, 2))
    compiled = torch.compile(
        lambda *tensors: weight_norm_rows(*tensors, scale=SCALE).sum(), fullgraph=True, backend="aot_eager"
    )
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in data] for _ in range(2))
    compiled(*ours).backward()
    weight_norm_rows(*theirs, scale=SCALE).sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("rank", [1, 16, 40, 64])
@pytest.mark.parametrize("warp_size", [32, 64])
def test_tiles_hold_the_rank_and_whole_vectors(rank, warp_size):
    tiles, even = pick_config(4096, 4096, rank, warp_size)
    assert tiles.rank >= rank
    assert even == (tiles.rank == rank)
    assert tiles.columns * tiles.rows * 4 % (16 * tiles.warps * warp_size) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("known", [False, True])
def test_cost_counts_the_tensors(dtype, known):
    weight, factor_i, factor_j, upstream = inputs((6, 100, 8), dtype)
    moved = cost(6, 100, 8, itemsize=weight.itemsize, norms_known=known)
    turned = factor_i @ factor_j @ factor_j.T
    read = [weight, factor_i, factor_j, turned, *([upstream] if known else [])]
    assert moved.bytes_read == sum(tensor.nbytes for tensor in read)
    assert moved.bytes_written == upstream.nbytes + turned.nbytes


def test_fusing_removes_more_than_a_third_of_the_bytes():
    moved = [m.bytes_read + m.bytes_written for m in (cost(2048, 2048, 8), cost_composition(2048, 2048, 8))]
    assert moved[0] < 0.5 * moved[1]
