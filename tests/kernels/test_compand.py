"""Companding on the CPU against its specification, closed forms and an oracle in numpy."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.errors import KernelUnavailableError, ShardedParameterError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.compand import LIMITS, compand, compand_reference
from lightning_weights.kernels.compand.cost import cost, cost_composition, pick_config
from tests.kernels.buffers import guarded, strided
from tests.kernels.compand_cases import CASES, FUNCTIONS, inputs, oracle

EACH = pytest.mark.parametrize("function", FUNCTIONS)
ROUNDING = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def run(latent, a, b, upstream, function, **options):
    leaves = [tensor.detach().requires_grad_() for tensor in (latent, a, b)]
    weight = compand(*leaves, function, **options)
    return weight.detach(), *torch.autograd.grad(weight, leaves, upstream)


@EACH
@pytest.mark.parametrize(("shape", "scales"), CASES)
@pytest.mark.parametrize("dtype", ROUNDING)
def test_weights_and_gradients_are_the_oracles(shape, scales, dtype, function):
    data = inputs(shape, scales, dtype)
    found, wanted = run(*data, function), oracle(*data, function)
    assert [tensor.dtype for tensor in found] == [dtype, dtype, *[torch.promote_types(dtype, torch.float32)] * 2]
    # sums cancel: their rounding is that of the terms
    terms = 1.0 + sum(float(tensor.double().abs().sum()) for tensor in data[3:])
    for tensor, want, size in zip(found, wanted, (1.0, 1.0, terms, terms), strict=True):
        tolerance = ROUNDING[tensor.dtype]
        np.testing.assert_allclose(tensor.double().numpy(), want, rtol=tolerance, atol=0.1 * tolerance * size)


@EACH
def test_reference_is_the_oracle_and_its_derivatives_are_autograds(function):
    latent, a, b, upstream = inputs((3, 20), 3, torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (latent, a, b)]
    weight = compand_reference(*leaves, function)
    found = weight.detach(), *torch.autograd.grad(weight, leaves, upstream)
    for tensor, want in zip(found, oracle(latent, a, b, upstream, function), strict=True):
        np.testing.assert_allclose(tensor, want, rtol=1e-9, atol=1e-12)


@EACH
@pytest.mark.parametrize("scales", [1, 3])
def test_gradcheck(function, scales):
    latent, a, b, _ = inputs((3, 2, 4), scales, torch.float64)
    leaves = [(latent / 5).requires_grad_(), a.requires_grad_(), b.requires_grad_()]
    assert torch.autograd.gradcheck(lambda *tensors: compand(*tensors, function), leaves)


@EACH
@settings(max_examples=60, deadline=None)
@given(
    v=st.floats(-(2.0**100), 2.0**100, width=32),
    a=st.floats(2.0**-6, 64, width=32),
    b=st.floats(2.0**-6, 64, width=32),
    s=st.sampled_from([0.25, 0.5, 2.0, 8.0]),
)
def test_odd_bounded_rising_and_scale_free(function, v, a, b, s):
    latent = torch.tensor([v, -v, 1.001 * v + 1e-3, 0.0], dtype=torch.float64)
    a, b = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    weight = compand(latent, a, b, function)
    assert weight[0] == -weight[1]
    assert weight[3] == 0
    assert torch.equal(weight.sign(), latent.sign())
    assert bool((weight.abs() <= a * LIMITS[function]).all())
    assert (weight[2] - weight[0]) * (latent[2] - latent[0]) >= 0
    torch.testing.assert_close(compand(s * latent, s * a, s * b, function), s * weight, rtol=1e-13, atol=0)
    # in fp32 too, up to the rounding of the bound
    single = compand(latent.float(), a.float(), b.float(), function)
    assert bool((single.abs() <= a.float() * LIMITS[function]).all())


@EACH
def test_huge_and_infinite_latents_have_finite_gradients_and_nan_goes_on(function):
    latent = torch.tensor([1e30, -3e38, torch.nan, 0.0])
    weight, slope, *_ = run(latent, torch.tensor([2.0]), torch.tensor([0.01]), torch.ones(4), function)
    limit = 2 * LIMITS[function]
    torch.testing.assert_close(weight, torch.tensor([limit, -limit, torch.nan, 0.0]), equal_nan=True)
    torch.testing.assert_close(slope, torch.tensor([0.0, 0.0, torch.nan, 200.0]), equal_nan=True)
    _, _, grad_a, grad_b = run(latent[:2], torch.tensor([2.0]), torch.tensor([0.01]), torch.ones(2), function)
    assert bool((grad_a.isfinite() & grad_b.isfinite()).all())


def test_a_known_weight_is_not_computed_again_but_differentiated():
    data = inputs((4, 9), 4)
    weight, *slopes = run(*data, "arctan")
    other = torch.full_like(weight, 7.0)
    found, *found_slopes = run(*data, "arctan", known=other)
    assert torch.equal(found, other)
    assert found.data_ptr() == other.data_ptr()
    assert all(torch.equal(a, b) for a, b in zip(slopes, found_slopes, strict=True))
    assert not other.requires_grad


def test_only_what_needs_a_gradient_gets_one_and_only_latents_are_kept():
    latent, a, b, upstream = inputs((64, 64), 1)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        weight = compand(latent.requires_grad_(), a, b)
    assert sum(tensor.nbytes for tensor in kept) == latent.nbytes + a.nbytes + b.nbytes
    weight.backward(upstream)
    assert (a.grad, b.grad) == (None, None)
    assert latent.grad is not None


@pytest.mark.parametrize(
    "layout", [strided, lambda v: v.t().contiguous().t(), lambda v: v[::2], lambda v: v.view(4, 10, 5, 5)]
)
def test_any_layout(layout):
    latent, a, b, upstream = inputs((4, 250), 4)
    latent, upstream = layout(latent), layout(upstream)
    if latent.dim() == 4:
        latent = latent.to(memory_format=torch.channels_last)
    a, b = a[: len(latent)], b[: len(latent)]
    for tensor, want in zip(
        run(latent, a, b, upstream, "arctan"), oracle(latent, a, b, upstream, "arctan"), strict=True
    ):
        np.testing.assert_allclose(tensor, want, rtol=3e-6, atol=3e-5)


def test_no_weights_and_inputs_are_only_read():
    empty = run(torch.zeros(0, 4), torch.ones(1), torch.ones(1), torch.zeros(0, 4), "tanh")
    assert [tensor.numel() for tensor in empty] == [0, 0, 1, 1]
    data, clean = guarded(inputs((5, 27), 5))
    before = [tensor.clone() for tensor in data]
    run(*data, "softsign")
    assert clean()
    assert all(torch.equal(a, b) for a, b in zip(data, before, strict=True))


def test_bad_input():
    latent, a, b, _ = inputs((3, 4), 3)
    with pytest.raises(ValueError, match="function is 'cube'; allowed are 'arctan', 'tanh', 'softsign'"):
        compand(latent, a, b, "cube")
    for bad in ((a[:2], b[:2]), (a, b[:1]), (a.view(1, 3), b)):
        with pytest.raises(ValueError, match=r"a has shape .* for latent weights of shape \(3, 4\)"):
            compand(latent, *bad)
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match=r"tensors are on cpu|triton is not"):
        compand(latent, a, b)


def test_sharded_latents_are_refused(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        sharded = torch.distributed.tensor.distribute_tensor(torch.ones(2, 2), mesh)
        with pytest.raises(ShardedParameterError, match=r"use latent\.full_tensor"):
            compand(sharded, torch.ones(1), torch.ones(1))
    finally:
        torch.distributed.destroy_process_group()


def test_opcheck():
    data = inputs((3, 4), 3)
    ops = torch.ops.lightning_weights
    forward = torch.library.opcheck(ops.compand.default, (*data[:3], "arctan"))
    backward = [torch.library.opcheck(ops.compand_backward.default, (*data, "tanh", sums)) for sums in (True, False)]
    assert {result for checks in (forward, *backward) for result in checks.values()} == {"SUCCESS"}


def test_compiles_whole():
    data = inputs((4, 9, 2), 4)
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in data[:3]] for _ in range(2))
    torch.compile(lambda *t: compand(*t).sum(), fullgraph=True, backend="aot_eager")(*ours).backward()
    compand(*theirs).sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))


def test_function_transforms_and_second_derivatives():
    latents, a, b = torch.randn(6, 3, 4), torch.rand(3) + 0.5, torch.rand(3) + 0.5
    gradient = torch.func.grad(lambda v: compand(v, a, b).square().sum())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # a loop over the batch it is
        batched = torch.func.vmap(gradient)(latents)
    torch.testing.assert_close(batched, torch.stack([gradient(v) for v in latents]))
    leaf = latents[0].requires_grad_()
    (slope,) = torch.autograd.grad(compand(leaf, a, b).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        slope.sum().backward()


def test_second_derivatives_of_what_comes_before_the_weights():
    """A gradient penalty on inputs differentiates the weights once only."""
    latent, x = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)

    def penalty(function):
        weight = function(latent, torch.tensor([1.5]), torch.tensor([1.0]))
        (slope,) = torch.autograd.grad((x @ weight.T).square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), latent)[0]

    torch.testing.assert_close(penalty(compand), penalty(compand_reference))


@pytest.mark.parametrize("columns", [1, 27, 300, 576, 1 << 20])
@pytest.mark.parametrize("warp_size", [32, 64])
def test_threads_take_eight_elements(columns, warp_size):
    block, warps = pick_config(columns, warp_size)
    assert block == 8 * warps * warp_size
    assert warps in (1, 2, 4)
    assert warps == 1 or block < 2 * columns


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cost_counts_the_tensors(dtype):
    latent, a, b, upstream = inputs((6, 1000), 6, dtype)
    scales = a.nbytes + b.nbytes  # every row is one program
    forward = cost(6, 1000, itemsize=latent.itemsize)
    assert (forward.bytes_read, forward.bytes_written) == (latent.nbytes + scales, latent.nbytes)
    backward = cost(6, 1000, itemsize=latent.itemsize, backward=True, sums=True)
    partial = 2 * 4 * 6
    assert backward.bytes_read == latent.nbytes + upstream.nbytes + scales + partial
    assert backward.bytes_written == latent.nbytes + partial + scales


def test_fusing_removes_more_than_half_of_the_bytes():
    for sums in (False, True):
        moved = [
            sum(
                part.bytes_read + part.bytes_written
                for part in (count(1, 10**6), count(1, 10**6, backward=True, sums=sums))
            )
            for count in (cost, cost_composition)
        ]
        assert moved[0] < 0.4 * moved[1]


def test_closed_forms():
    weight, slope, grad_a, grad_b = run(
        *(torch.tensor([x], dtype=torch.float64) for x in (1.0, 2.0, 1.0, 1.0)), "arctan"
    )
    found = [float(tensor) for tensor in (weight, slope, grad_a, grad_b)]
    assert found == pytest.approx([math.pi / 2, 1.0, math.pi / 4, -1.0], rel=1e-15)
