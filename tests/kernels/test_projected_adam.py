"""The projected Adam step on the CPU against its specification, an oracle in numpy and torch's own AdamW."""

import sys

import numpy as np
import pytest
import torch

from lightning_weights.errors import KernelUnavailableError, MissingDependencyError, ShardedParameterError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.projected_adam import blockwise, eager, projected_adam, projected_adam_reference
from lightning_weights.kernels.projected_adam.cost import LARGEST_RANK, RANKS_8BIT, cost, cost_composition, pick_config
from tests.kernels.buffers import guarded, strided
from tests.kernels.projected_adam_cases import RULE, SHAPES, SIDES, STEP_SIZE, decoded, encoded, inputs, listed, oracle

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def step(param, grad, left, right, exp_avg, exp_avg_sq, absmaxes=(), sq_absmaxes=(), **rule):
    """Call the operator for one matrix."""
    params, grads, lefts, rights, moments, squares = listed(param, grad, left, right, exp_avg, exp_avg_sq)
    maxima = {"absmaxes": absmaxes, "sq_absmaxes": sq_absmaxes}
    projected_adam(
        params, grads, moments, squares, lefts=lefts, rights=rights, **maxima, step_sizes=[STEP_SIZE], **rule
    )


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_step_is_the_oracles(shape, side, dtype):
    data = inputs(shape, side, dtype)
    rule = {**RULE, "scale": 1.0} if side == "none" else RULE
    want = oracle(*data, **rule)
    step(*data, **RULE)  # without projection the scale has no meaning
    np.testing.assert_allclose(data[0].double(), want[0], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    for moment, wanted in zip(data[4:], want[1:], strict=True):
        np.testing.assert_allclose(moment, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("side", SIDES)
def test_reference_is_the_oracle(side):
    data = inputs((5, 8, 3), side, torch.float64)
    for got, want in zip(
        projected_adam_reference(*data, step_size=STEP_SIZE, **RULE), oracle(*data, **RULE), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_small_matrices_together_are_as_one_by_one(monkeypatch):
    together, alone = ([inputs(shape, "right") for shape in SHAPES] for _ in range(2))
    for ours, theirs in zip(together, alone, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            if one is not None:
                other.copy_(one)
    params, grads, _, rights, moments, squares = map(list, zip(*together, strict=True))
    sizes = [STEP_SIZE] * len(params)
    monkeypatch.setattr(eager, "TOGETHER", 2000)
    projected_adam(params, grads, moments, squares, rights=rights, step_sizes=sizes, **RULE)
    for ours, theirs in zip(together, alone, strict=True):
        step(*theirs, **RULE)
        assert torch.equal(ours[0], theirs[0])


def test_plain_step_is_adam_of_torch():
    """torch divides the second moment's correction out before it adds ε; without ε both are the same."""
    shapes = ((3, 4), (5,), (2, 3, 2, 2))
    params, grads = ([torch.randn(shape, dtype=torch.float64) for shape in shapes] for _ in range(2))
    twins = [torch.nn.Parameter(param.clone()) for param in params]
    theirs = torch.optim.AdamW(twins, lr=0.1, betas=(0.9, 0.99), eps=0.0, weight_decay=0.0)
    moments, squares = ([torch.zeros_like(param) for param in params] for _ in range(2))
    for t in range(1, 4):
        size = 0.1 * (1 - 0.99**t) ** 0.5 / (1 - 0.9**t)
        projected_adam(params, grads, moments, squares, step_sizes=[size] * 3, beta1=0.9, beta2=0.99, eps=0.0)
        for twin, grad in zip(twins, grads, strict=True):
            twin.grad = grad
        theirs.step()
    for param, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(param, twin.data, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("side", SIDES)
def test_codes(side):
    """Weights move by what was decoded; what is stored again is the nearest code of the new moments."""
    pytest.importorskip("bitsandbytes")
    data = inputs((96, 80, 16), side)
    left_only = side == "left"
    codes, maxima = encoded(data[4:], left_only)
    moments = decoded(codes, maxima, left_only)
    rule = {**RULE, "scale": 1.0} if side == "none" else RULE
    want = oracle(*data[:4], *moments, **rule)
    step(*data[:4], *codes, *([maximum] for maximum in maxima), **RULE)
    np.testing.assert_allclose(data[0], want[0], rtol=2e-5, atol=2e-5)
    for moment, wanted in zip(decoded(codes, maxima, left_only), want[1:], strict=True):
        assert np.abs(moment.numpy() - wanted).max() <= np.abs(wanted).max() / 60  # half of the widest step of the map


def test_second_moments_are_not_rounded_to_zero():
    pytest.importorskip("bitsandbytes")
    values = torch.tensor([1.0, 1e-12, 0.0, 0.5]).repeat(200)
    codes, maxima = torch.empty(800, dtype=torch.uint8), torch.empty(4)
    blockwise.quantize(values, codes, maxima, signed=False)
    back = blockwise.dequantize(codes, maxima, signed=False)
    assert back[2::4].eq(0).all()
    assert back[1::4].gt(0).all()
    assert maxima.eq(1).all()


def test_codes_need_bitsandbytes(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    blockwise._bitsandbytes.cache_clear()
    with pytest.raises(MissingDependencyError, match=r"state_bits=8 needs the package 'bitsandbytes'"):
        blockwise.dequantize(torch.zeros(4, dtype=torch.uint8), torch.ones(1), signed=True)
    monkeypatch.undo()
    blockwise._bitsandbytes.cache_clear()


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("side", ["left", "right", "full"])
def test_gradients_that_are_projected_already(side, bits):
    """What the reference makes of whole gradients, the operator makes of their projections."""
    param, grad, left, right, *moments = inputs((96, 80, 16), side)
    reduced = grad if left is None else left.T @ grad
    reduced = reduced if right is None else reduced @ right.T
    states, maxima = moments, []
    if bits == 8:
        pytest.importorskip("bitsandbytes")
        states, maxima = encoded(moments, side == "left")
        moments = decoded(states, maxima, side == "left")
    want = projected_adam_reference(param, grad, left, right, *moments, step_size=STEP_SIZE, **RULE)
    step(param, reduced, left, right, *states, *([maximum] for maximum in maxima), **RULE, projected=True)
    torch.testing.assert_close(param, want[0], rtol=2e-5, atol=2e-5)
    if bits == 32:
        torch.testing.assert_close(tuple(states), want[1:], rtol=2e-5, atol=2e-5)


def test_any_layout():
    data = inputs((6, 10, 3), "right")
    want = oracle(*data, **RULE)
    tensors = [tensor if tensor is None else strided(tensor) for tensor in data]
    step(*tensors, **RULE)
    np.testing.assert_allclose(tensors[0], want[0], rtol=1e-5, atol=1e-5)


def test_only_weights_and_moments_are_written():
    data = inputs((5, 27, 4), "left")
    present = [tensor for tensor in data if tensor is not None]
    tensors, clean = guarded(present)
    param, grad, left, *moments = tensors
    step(param, grad, left, None, *moments, **RULE)
    assert clean()
    assert torch.equal(grad, data[1])
    assert torch.equal(left, data[2])


def test_nothing_to_do():
    projected_adam([], [], [], [], step_sizes=[], beta1=0.9, beta2=0.9, eps=1e-6)
    data = inputs((4, 6, 2), "right")
    before = data[0].clone()
    data[1].zero_()
    data[4].zero_()
    step(*data, **{**RULE, "decay": 0.0})
    assert torch.equal(data[0], before)


def test_bad_input():
    data = inputs((4, 6, 2), "right")
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match=r"tensors are on cpu|triton is not"):
        step(*data, **RULE)
    data[0].placements = ("Shard(0)",)
    with pytest.raises(ShardedParameterError, match="whole matrices"):
        step(*data, **RULE)


def test_opcheck():
    data = inputs((4, 6, 2), "right")
    params, grads, lefts, rights, moments, squares = listed(*data)
    op = torch.ops.lightning_weights.projected_adam.default
    arguments = (params, grads, lefts, rights, moments, squares, [], [], [STEP_SIZE], *RULE.values(), False)
    assert set(torch.library.opcheck(op, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("rank", [1, 8, 30, LARGEST_RANK])
@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("warp_size", [32, 64])
def test_tiles_hold_the_rank_and_whole_blocks(rank, even, warp_size):
    tiles = pick_config(rank, warp_size, even)
    assert tiles.rank >= max(rank, 16)
    assert tiles.inner >= 16
    if rank in RANKS_8BIT:
        assert tiles.outer * rank % blockwise.BLOCK == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [8, 32])
def test_cost_counts_the_tensors(dtype, bits):
    param, grad, _, right, *moments = inputs((100, 40, 8), "right", dtype)
    if bits == 8:
        pytest.importorskip("bitsandbytes")
        codes, maxima = encoded(moments, False)
        moments = [*codes, *maxima]
    moved = cost(100, 40, 8, param_itemsize=param.itemsize, grad_itemsize=grad.itemsize, state_bits=bits)
    states = sum(tensor.nbytes for tensor in moments)
    assert moved.bytes_read == grad.nbytes + param.nbytes + right.nbytes + states
    assert moved.bytes_written == param.nbytes + states


def test_fusing_removes_more_than_a_third_of_the_bytes():
    moved = [m.bytes_read + m.bytes_written for m in (cost(2048, 2048, 64), cost_composition(2048, 2048, 64))]
    assert moved[0] < 0.6 * moved[1]
