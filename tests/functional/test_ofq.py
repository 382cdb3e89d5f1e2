"""Quantizers, boundaries, oscillations and the product of attention as functions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_weights.functional.ofq import (
    boundary_mask,
    confidence,
    key_bias,
    lsq,
    lsq_bounds,
    lsq_codes,
    lsq_step,
    movable_factors,
    score_matrix,
    start_freezing,
    start_oscillation,
    stats_codes,
    statsq,
    update_freezing,
    update_oscillation,
)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_scales_belong_to_a_dimension(dim):
    weight = torch.randn(3, 4, 5)
    coded = stats_codes(weight, 3, dim)
    slices = [statsq(part.reshape(1, -1), 3).view_as(part) for part in weight.unbind(dim)]
    assert torch.equal(statsq(weight, 3, dim), torch.stack(slices, dim))
    assert torch.equal(coded.dequantize(), statsq(weight, 3, dim))
    assert coded.step.shape == (weight.shape[dim],)


def test_convolutions_have_a_scale_per_output_channel():
    weight = torch.randn(4, 3, 2, 2)
    assert torch.equal(statsq(weight, 2), statsq(weight.flatten(1), 2).view_as(weight))


def test_vectors_have_no_rows():
    with pytest.raises(ValueError, match="two or more dimensions"):
        statsq(torch.ones(4), 2)


@given(bits=st.integers(2, 5), x=st.floats(0.0, 0.6), seed=st.integers(0, 500))
def test_boundary_is_where_confidence_is_low(bits, x, seed):
    weight = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(seed))
    distance = confidence(weight, bits, dim=1)
    mask = boundary_mask(weight, bits, x, dim=1)
    near = (distance - x).abs() < 1e-5
    assert torch.all((mask == (distance <= x)) | near)


def test_no_interior_weight_is_farther_than_half_a_step():
    weight = torch.rand(8, 64) * 2 - 1
    interior = stats_codes(weight, 4).codes.abs() < 6
    assert interior.any()
    assert boundary_mask(weight, 4, 0.5)[interior].all()
    assert not boundary_mask(weight, 4, 0.0).any()


def lsq_gradients(x, step, bits, signed):
    """Closed form in numpy's float64: of the values, and of one step shared by all."""
    low, high = lsq_bounds(bits, signed)
    v = x.double().numpy() / step
    inside = (v >= low) & (v <= high)
    slope = np.where(inside, np.rint(v) - v, np.clip(v, low, high))
    return inside, slope.sum() / np.sqrt(high * x.numel())


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_of_learned_steps(bits, signed, dtype):
    x, step = torch.randn(6, 7, dtype=dtype).requires_grad_(), torch.tensor([0.37], dtype=dtype).requires_grad_()
    values = lsq(x, step, bits, signed)
    values.sum().backward()
    of_x, of_step = lsq_gradients(x.detach(), step.item(), bits, signed)
    np.testing.assert_array_equal(x.grad, of_x)
    np.testing.assert_allclose(step.grad.item(), of_step, rtol=1e-5)
    assert torch.equal(lsq_codes(x, step, bits, signed).dequantize(), values)


def test_steps_below_the_floor_act_as_the_floor_and_keep_their_gradient():
    x, step = torch.tensor([[0.3e-5, 5.0]]), torch.tensor([-1.0]).requires_grad_()
    values = lsq(x, step, bits=2)
    values.sum().backward()
    torch.testing.assert_close(values.detach(), torch.tensor([[0.0, 1e-5]]))
    assert step.grad.abs().item() > 0
    torch.testing.assert_close(lsq_codes(x, step, bits=2).dequantize(), values.detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_activations_are_quantized_in_fp32(dtype):
    x, step = torch.randn(2, 5, 8).to(dtype), lsq_step(torch.randn(2, 5, 8), 2, dim=1)
    values = lsq(x, step, 2, dim=1)
    assert values.dtype == dtype
    assert torch.equal(values, lsq(x.float(), step, 2, dim=1).to(dtype))
    assert lsq_step(x, 2).dtype == torch.float32


def test_the_number_of_steps_has_to_fit():
    with pytest.raises(ValueError, match=r"3 steps, but dimension -2 .* has 4 .*sequence length"):
        lsq(torch.ones(2, 4, 8), torch.ones(3), 2, dim=-2)
    with pytest.raises(ValueError, match="bits is 1"):
        lsq_bounds(1, True)


def test_learned_steps_compile_and_transform():
    x, step = torch.randn(3, 6), torch.tensor([0.4, 0.5, 0.6])
    want = torch.autograd.functional.jacobian(lambda s: lsq(x, s, 2, dim=0).sum(), step)
    got = torch.func.grad(lambda s: torch.func.vmap(lambda x, s: lsq(x, s[None], 2))(x, s).sum())(step)
    torch.testing.assert_close(got, want)
    compiled = torch.compile(lambda x, s: lsq(x, s, 2, dim=0), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, step), lsq(x, step, 2, dim=0))


def test_constant_codes_do_not_oscillate_and_alternating_ones_always_do():
    codes = torch.zeros(2, dtype=torch.int8)
    state = start_oscillation(codes)
    for step in range(200):
        codes[1] = step % 2
        counts = update_oscillation(codes, state, momentum=0.1)
    assert state.ema[0] == 0
    assert state.ema[1] > 0.999
    assert [int(count) for count in counts] == [1, 1, 1]


def test_a_code_that_wanders_one_way_does_not_oscillate():
    state = start_oscillation(torch.tensor([-2], dtype=torch.int8))
    counts = [update_oscillation(torch.tensor([code], dtype=torch.int8), state) for code in (-1, 0, 0, 1, 1)]
    assert [int(count.flips) for count in counts] == [1, 1, 0, 1, 0]
    assert sum(int(count.oscillations) for count in counts) == 0


def test_codes_freeze_at_their_average():
    state, freezing = start_oscillation(torch.tensor([0, 3], dtype=torch.int8)), None
    freezing = start_freezing(state.previous)
    for step in range(40):
        codes = torch.where(freezing.frozen, freezing.codes, torch.tensor([-(step % 2), 3], dtype=torch.int8))
        update_oscillation(codes, state, momentum=0.1)
        update_freezing(codes, state, freezing, momentum=0.1, freeze_threshold=0.3)
    assert freezing.frozen.tolist() == [True, False]
    assert freezing.codes[0] in (-1, 0)


def test_bad_input_of_tracking():
    codes = torch.zeros(3, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"momentum is 1\.5"):
        update_oscillation(codes, start_oscillation(codes), momentum=1.5)
    with pytest.raises(ValueError, match=r"codes have shape \(2,\)"):
        update_oscillation(codes[:2], start_oscillation(codes))
    with pytest.raises(ValueError, match="freeze_threshold is 0"):
        update_freezing(codes, start_oscillation(codes), start_freezing(codes), 0.1, 0.0)


def test_product_gives_the_scores_of_every_head():
    q, k, x, heads = torch.randn(6, 8), torch.randn(6, 8), torch.randn(5, 8), 2
    want = [(x @ q[h * 3 : h * 3 + 3].T) @ (x @ k[h * 3 : h * 3 + 3].T).T for h in range(heads)]
    got = score_matrix(q, k, heads).view(heads, 8, 8)
    torch.testing.assert_close(torch.stack([x @ matrix @ x.T for matrix in got]), torch.stack(want))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(score_matrix(q, k, heads), got.view(16, 8))


def test_bias_of_queries_prefers_keys():
    bias, k, x = torch.randn(6), torch.randn(6, 8), torch.randn(5, 8)
    want = torch.stack([x @ k[h * 3 : h * 3 + 3].T @ bias[h * 3 : h * 3 + 3] for h in range(2)])
    torch.testing.assert_close(key_bias(bias, k, 2) @ x.T, want)


def test_grouped_keys_have_no_product():
    with pytest.raises(ValueError, match="grouped"):
        score_matrix(torch.ones(6, 8), torch.ones(3, 8), 2)


def test_factors_without_movable_elements_have_no_gradient():
    q, k = torch.randn(4, 6).requires_grad_(), torch.randn(4, 6).requires_grad_()
    movable = torch.rand(12, 6) < 0.15
    (score_matrix(q, k, 2) * torch.where(movable, torch.randn(12, 6), 0.0)).sum().backward()
    of_q, of_k = movable_factors(movable, 2)
    for weight, mask in ((q, of_q), (k, of_k)):
        reached = weight.grad.view(2, 2, 6).ne(0).all(1)
        assert torch.equal(reached, mask)
    assert 0 < int(of_q.sum()) < of_q.numel()
