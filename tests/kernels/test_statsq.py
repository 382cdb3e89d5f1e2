"""The statistics-based quantizer on the CPU against its specification and an oracle in numpy."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_weights.errors import KernelUnavailableError, ShardedParameterError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.statsq import eager, statsq, statsq_observe, statsq_reference
from lightning_weights.kernels.statsq.cost import cost, cost_composition, pick_config
from tests.kernels.buffers import guarded, strided
from tests.kernels.statsq_cases import MOMENTUM, RANGE, SHAPES, THRESHOLD, advanced, inputs, oracle, tracker

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
RULE = {"momentum": MOMENTUM, "threshold": THRESHOLD}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_everything_is_the_oracles(shape, dtype, bits):
    weight = inputs(shape, dtype)
    codes, step, values, distance = oracle(weight, bits)
    seen = statsq_observe(weight, bits, values=True, boundary_range=RANGE)
    bit = 1e-15 if dtype == torch.float64 else 0.0  # where the sum has no wider type, its order shows
    torch.testing.assert_close(statsq(weight, bits), values, rtol=bit, atol=0.0)
    assert torch.equal(seen.values, statsq(weight, bits))
    np.testing.assert_array_equal(seen.codes, codes)
    np.testing.assert_allclose(seen.step, step, rtol=bit)
    np.testing.assert_array_equal(seen.movable, distance <= RANGE)
    assert seen.counts.tolist() == [0, 0, 0, (distance <= RANGE).sum()]


@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_is_the_oracle(dtype):
    weight = inputs((5, 48), dtype)
    want = oracle(weight, 3)
    got = statsq_reference(weight, 3)
    np.testing.assert_array_equal(got.codes, want[0])
    np.testing.assert_allclose(got.step, want[1], rtol=1e-6)
    torch.testing.assert_close(got.values, want[2])
    np.testing.assert_allclose(got.confidence, want[3], atol=1e-5)


@pytest.mark.parametrize("ema_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("bits", [2, 8])
def test_tracking(bits, ema_dtype):
    weight, state = inputs((5, 48)), tracker((5, 48), bits, ema_dtype)
    *want, counts = advanced(oracle(weight, bits)[0], state)
    seen = statsq_observe(weight, bits, tracker=state, **RULE)
    for tensor, values in zip(state, want, strict=True):
        np.testing.assert_allclose(tensor.flatten().float(), values, atol=1e-7 if ema_dtype == torch.float32 else 1e-3)
    assert seen.counts.tolist() == [*counts, 0]
    assert seen.values is None
    assert seen.movable is None


def test_tracking_the_same_codes_again_only_lets_averages_fade():
    weight, state = inputs((3, 7)), tracker((3, 7), 2)
    statsq_observe(weight, 2, tracker=state, **RULE)
    codes, direction, ema = copy.deepcopy(state)
    seen = statsq_observe(weight, 2, tracker=state, **RULE)
    assert torch.equal(state[0], codes)
    assert torch.equal(state[1], direction)
    torch.testing.assert_close(state[2], (1 - MOMENTUM) * ema)
    assert seen.counts[:2].tolist() == [0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_is_the_identity_also_for_clipped_weights(dtype):
    weight, upstream = inputs((4, 9), dtype).requires_grad_(), torch.randn(4, 9).to(dtype)
    (gradient,) = torch.autograd.grad(statsq(weight, 2), weight, upstream)
    assert torch.equal(gradient, upstream)


@given(bits=st.integers(2, 8), scale=st.floats(1e-6, 1e4), seed=st.integers(0, 1000))
def test_narrow_weights_have_no_code_outside_the_grid(bits, scale, seed):
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(seed)) * scale
    for dtype in (torch.float16, torch.bfloat16):
        seen = statsq_observe(weight.to(dtype), bits, values=True)
        assert seen.codes.min() >= -(2 ** (bits - 1))
        assert seen.codes.max() <= 2 ** (bits - 1) - 1
        assert all(len(row.unique()) <= 2**bits for row in seen.values)


@given(bits=st.integers(2, 4), power=st.integers(-20, 20), seed=st.integers(0, 1000))
def test_powers_of_two_scale_through_and_signs_turn(bits, power, seed):
    weight = torch.randn(3, 33, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(statsq(weight * 2.0**power, bits), statsq(weight, bits) * 2.0**power)
    assert torch.equal(statsq(-weight, bits), -statsq(weight, bits))


@given(seed=st.integers(0, 1000))
def test_order_of_columns_does_not_matter(seed):
    generator = torch.Generator().manual_seed(seed)
    weight, order = torch.randn(2, 257, generator=generator), torch.randperm(257, generator=generator)
    assert torch.equal(statsq(weight[:, order], 3), statsq(weight, 3)[:, order])


def test_scale_is_twice_the_mean_absolute_weight_to_the_last_bit():
    weight = torch.randn(64, 4096)
    exact = (2 * weight.double().abs().mean(1)).float()
    scale = 2 * statsq_observe(weight, 2).step
    assert torch.all((scale - exact).abs() <= torch.nextafter(exact, 2 * exact) - exact)
    assert torch.all(statsq(weight, 2).abs() <= scale.unsqueeze(1) * 0.75)


def test_occupancy_of_bell_shaped_rows():
    codes = statsq_observe(torch.randn(64, 4096), 2).codes
    outer = torch.isin(codes, torch.tensor([-2, 1], dtype=torch.int8)).double().mean()
    assert abs(outer - 0.425) < 0.005


def test_zeros_go_up_and_rows_of_zeros_stay():
    weight = torch.tensor([[0.0, 1.0, -1.0], [0.0, 0.0, 0.0]])
    assert torch.equal(statsq(weight, 2)[:, 0], torch.tensor([(4 / 3) / 4, 0.0]))
    seen = statsq_observe(weight, 2, values=True, boundary_range=0.0)
    assert seen.values[1].eq(0).all()
    assert seen.codes[1].eq(0).all()
    assert seen.movable[1].all()
    assert statsq(weight * 1e-44, 2).isfinite().all()


def test_rows_are_worked_on_a_few_at_a_time(monkeypatch):
    weight, states = inputs((11, 16)), [tracker((11, 16), 2) for _ in range(2)]
    for old, new in zip(*states, strict=True):
        new.copy_(old)
    whole = statsq_observe(weight, 2, values=True, boundary_range=RANGE, tracker=states[0], **RULE)
    monkeypatch.setattr(eager, "CHUNK", 48)
    parts = statsq_observe(weight, 2, values=True, boundary_range=RANGE, tracker=states[1], **RULE)
    assert all(torch.equal(*pair) for pair in zip(whole, parts, strict=True))
    assert all(torch.equal(*pair) for pair in zip(*states, strict=True))
    assert torch.equal(statsq(weight, 2), whole.values)
    assert torch.equal(statsq(weight.bfloat16(), 2), oracle(weight.bfloat16(), 2)[2])


@pytest.mark.parametrize("layout", [strided, lambda t: t.t().contiguous().t()], ids=["every second", "transposed"])
def test_any_layout(layout):
    weight, state = inputs((6, 10)), tracker((6, 10), 2)
    moved = [layout(tensor.float()).to(tensor.dtype) for tensor in state]
    seen = statsq_observe(layout(weight), 2, tracker=moved, **RULE)
    want = statsq_observe(weight, 2, tracker=state, **RULE)
    assert torch.equal(seen.codes, want.codes)
    assert all(torch.equal(*pair) for pair in zip(moved, state, strict=True))
    assert torch.equal(statsq(layout(weight), 2), statsq(weight, 2))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_no_weights(shape):
    assert statsq(torch.zeros(shape), 2).shape == shape
    assert statsq_observe(torch.zeros(shape), 2, boundary_range=0.1).counts.tolist() == [0, 0, 0, 0]


def test_autocast_does_not_reach_it():
    weight = inputs((6, 200))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(statsq(weight, 2), oracle(weight, 2)[2])


def test_inputs_are_only_read():
    (weight,), clean = guarded([inputs((5, 27))])
    before = weight.clone()
    statsq(weight, 2)
    statsq_observe(weight, 2, values=True, boundary_range=0.1)
    assert clean()
    assert torch.equal(before, weight)


def test_bad_input():
    weight, state = inputs((3, 4)), tracker((3, 4), 2)
    for bits in (1, 9, 2.5):
        with pytest.raises(ValueError, match="bits is"):
            statsq(weight, bits)
    for bad in (weight[0], weight.to(torch.int32)):
        with pytest.raises(ValueError, match="weight has shape"):
            statsq(bad, 2)
    with pytest.raises(ValueError, match=r"boundary_range is -0\.1"):
        statsq_observe(weight, 2, boundary_range=-0.1)
    with pytest.raises(ValueError, match="momentum is 0"):
        statsq_observe(weight, 2, momentum=0.0)
    for bad in (state[:2], [*state[:2], state[2][:2]], [state[2], *state[1:]]):
        with pytest.raises(ValueError, match="tracker has shapes"):
            statsq_observe(weight, 2, tracker=bad)
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match=r"tensors are on cpu|triton is not"):
        statsq(weight, 2)


def test_sharded_weights_are_refused():
    weight = inputs((3, 4))
    weight.placements = ("Shard(0)",)
    with pytest.raises(ShardedParameterError, match="whole row"):
        statsq(weight, 2)


def test_opcheck():
    weight, ops = inputs((3, 4)), torch.ops.lightning_weights
    forward = torch.library.opcheck(ops.statsq.default, (weight, 2))
    arguments = (weight, tracker((3, 4), 2), 2, True, 0.1, MOMENTUM, THRESHOLD)
    observed = torch.library.opcheck(ops.statsq_observe.default, arguments)
    assert set(forward.values()) == set(observed.values()) == {"SUCCESS"}


def test_compiles_whole_and_transforms():
    weight = inputs((4, 9))
    compiled = torch.compile(lambda w: statsq(w, 2).square().sum(), fullgraph=True, backend="aot_eager")
    ours, theirs = (weight.clone().requires_grad_() for _ in range(2))
    compiled(ours).backward()
    statsq(theirs, 2).square().sum().backward()
    assert torch.equal(ours.grad, theirs.grad)
    mapped = torch.func.vmap(torch.func.grad(lambda w: statsq(w, 2).square().sum()))(weight.view(2, 2, 9))
    assert torch.equal(mapped.view(4, 9), theirs.grad)


@pytest.mark.parametrize("columns", [1, 48, 768, 4096, 11008])
@pytest.mark.parametrize("warp_size", [32, 64])
@pytest.mark.parametrize("wide", [True, False])
def test_blocks_hold_a_row_or_are_full(columns, warp_size, wide):
    block, warps = pick_config(columns, wide, warp_size)
    assert block >= min(columns, 4096)
    assert block % (warps * warp_size) == 0
    assert block // (warps * warp_size) <= (16 if wide else 8)


def test_cost_counts_the_tensors():
    weight, state = inputs((6, 100)), tracker((6, 100), 2)
    seen = statsq_observe(weight, 2, values=True, boundary_range=0.1, tracker=state)
    moved = cost(6, 100, codes=True, movable=True, tracked=True)
    history = sum(tensor.nbytes for tensor in state)
    results = (seen.codes, seen.step, seen.values, seen.movable)
    assert moved.bytes_read == weight.nbytes + history
    assert moved.bytes_written == sum(tensor.nbytes for tensor in results) + history + 6 * 4 * 4


def test_fusing_removes_nine_tenths_of_the_bytes():
    moved = [m.bytes_read + m.bytes_written for m in (cost(2048, 2048), cost_composition(2048, 2048))]
    assert moved[0] < 0.1 * moved[1]
