"""OFQ against the vectors of the authors' quantizers, attention, annealing and tracking."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_weights.functional.ofq import (
    boundary_mask,
    lsq,
    lsq_codes,
    lsq_step,
    start_freezing,
    start_oscillation,
    stats_codes,
    statsq,
    update_freezing,
    update_oscillation,
)
from lightning_weights.kernels.statsq import statsq_observe
from lightning_weights.modules import FakeQuantLinear, LSQQuantizer, QKRAttention, StatsQuantizer
from tests.helpers.golden import cases, load

GOLDEN = load("ofq")
BITS = [int(bits) for bits in GOLDEN["statsq_bits"]]
RANGES = [float(x) for x in GOLDEN["cga_br"]]
QUANTIZER, ATTENTION, RELATIVE = 1e-6, 1e-5, 1e-4
MOMENTUM, FREEZE_AT = (float(value) for value in GOLDEN["osc_hparams"])
ANNEAL_BITS, ANNEAL_RANGE = 2, 0.1
ANNEAL = {"lr": 1e-2, "betas": (0.9, 0.999), "weight_decay": 0.05}
STEPS, GRADIENTS, SCALES = (
    sorted(name.removeprefix(prefix) for name in GOLDEN if name.startswith(prefix))
    for prefix in ("cga_step_frozen", "attn_grad__", "attn_scale__")
)
OURS = {  # names of the authors' parameters of attention, where ours are different
    "quant_x_4_qkv.input_quant_fn.s": "input_quantizer.quantizer.step",
    "quant_x_4_qkv.move_b4.bias": "input_quantizer.before",
    "quant_x_4_qkv.move_aft.bias": "input_quantizer.after",
    "move_qkx_b4.bias": "score_quantizer.before",
    "move_qkx_aft.bias": "score_quantizer.after",
    "quan_a_qkx_fn.s": "score_quantizer.quantizer.step",
    "move_v_b4.bias": "value_quantizer.before",
    "move_v_aft.bias": "value_quantizer.after",
    "quan_a_v_fn.s": "value_quantizer.quantizer.step",
    "quan_a_softmax_fn.s": "probability_quantizer.step",
    "proj.input_quant_fn.s": "proj.input_quantizer.quantizer.step",
    "proj.move_b4.bias": "proj.input_quantizer.before",
    "proj.move_aft.bias": "proj.input_quantizer.after",
}


def vector(name):
    return torch.tensor(GOLDEN[name])


def assert_near(actual, name, tolerance=QUANTIZER):
    np.testing.assert_allclose(actual.detach(), GOLDEN[name], rtol=tolerance, atol=tolerance, err_msg=name)


def test_every_case_of_the_file_is_known():
    rooms = ("statsq", "cga_", "lsqw_", "lsqa_", "lsqv_", "attn_", "osc_")
    assert all(name.startswith(rooms) for name in GOLDEN)
    assert {int(case) for case in cases(GOLDEN, "statsq_b", "_out")} == set(BITS)
    assert {int(case) for case in cases(GOLDEN, "lsqw_b", "_out")} == set(BITS)
    assert len(cases(GOLDEN, "cga_b", "_frozen")) == len(BITS) * len(RANGES)
    assert [str(step + 1) for step in range(len(GOLDEN["cga_step_grads"]))] == STEPS


@pytest.mark.parametrize("bits", BITS)
def test_weights(bits):
    weight = vector("statsq_w").requires_grad_()
    values, coded = statsq(weight, bits), stats_codes(weight, bits)
    values.backward(vector("statsq_upstream"))
    assert_near(values, f"statsq_b{bits}_out")
    assert_near(coded.step * 2 ** (bits - 1), f"statsq_b{bits}_scale")
    np.testing.assert_array_equal(weight.grad, GOLDEN[f"statsq_b{bits}_grad"])
    assert torch.equal(coded.dequantize(), values)


def test_weights_of_three_dimensions():
    weight, quantizer = vector("statsq3d_w"), StatsQuantizer(bits=2, dim=1)
    assert_near(quantizer(weight), "statsq3d_out")
    assert_near(quantizer.coded(weight).step * 2, "statsq3d_scale")


@pytest.mark.parametrize("x", RANGES)
@pytest.mark.parametrize("bits", BITS)
def test_boundary(bits, x):
    movable = boundary_mask(vector("statsq_w"), bits, x)
    np.testing.assert_array_equal((~movable).long(), GOLDEN[f"cga_b{bits}_br{x}_frozen"])


def test_annealing_steps():
    layer = FakeQuantLinear(*reversed(GOLDEN["statsq_w"].shape), bias=False, weight_bits=ANNEAL_BITS)
    layer.weight.data.copy_(vector("statsq_w"))
    optimizer = torch.optim.AdamW(layer.parameters(), **ANNEAL)
    for step, gradient in zip(STEPS, vector("cga_step_grads"), strict=True):
        [(weight, movable)] = layer.movable(ANNEAL_RANGE)
        np.testing.assert_array_equal((~movable).long(), GOLDEN[f"cga_step_frozen{step}"])
        kept, weight.grad = weight.detach().clone(), gradient * movable
        optimizer.step()
        weight.data.copy_(torch.where(movable, weight, kept))
        assert_near(weight, f"cga_step_w_after{step}")


@pytest.mark.parametrize("bits", BITS)
def test_learned_steps_of_weights(bits):
    weight, quantizer = vector("statsq_w").requires_grad_(), LSQQuantizer(bits, granularity="row")
    values = quantizer(weight)
    values.backward(vector("statsq_upstream"))
    assert_near(quantizer.step, f"lsqw_b{bits}_s_init")
    assert_near(values, f"lsqw_b{bits}_out")
    assert_near(weight.grad, f"lsqw_b{bits}_grad_w")
    assert_near(quantizer.step.grad, f"lsqw_b{bits}_grad_s")
    assert torch.equal(quantizer.coded(weight).dequantize(), values)


@pytest.mark.parametrize("kind", cases(GOLDEN, "lsqa_", "_out"))
def test_learned_steps_of_activations(kind):
    signed = kind == "signed"
    x = vector("lsqa_x") if signed else vector("lsqa_x").abs()
    quantizer = LSQQuantizer(bits=2, signed=signed, granularity="token")
    values = quantizer(x.requires_grad_())
    values.square().sum().backward()
    assert_near(quantizer.step, f"lsqa_{kind}_s_init")
    assert_near(values, f"lsqa_{kind}_out")
    assert_near(x.grad, f"lsqa_{kind}_grad_x")
    assert_near(quantizer.step.grad, f"lsqa_{kind}_grad_s")


def test_learned_steps_of_channels():
    x = vector("lsqa_x")
    step = lsq_step(x, 2, dim=-1)
    assert_near(step, "lsqv_s_init")
    assert_near(lsq(x, step, 2, dim=-1), "lsqv_out")
    assert_near(lsq_codes(x, step, 2, dim=-1).dequantize(), "lsqv_out")


def linear(weight, bias=None):
    layer = nn.Linear(weight.shape[1], len(weight), bias=bias is not None)
    layer.weight.data.copy_(weight)
    if bias is not None:
        layer.bias.data.copy_(bias)
    return layer


@pytest.fixture(scope="module")
def attended():
    """Attention after one forward and backward pass, its input and its output."""
    *_, heads, weight_bits, act_bits = (int(value) for value in GOLDEN["attn_dims"])
    (q, k, v), bias = vector("attn_qkv_weight").chunk(3), vector("attn_qkv_bias").chunk(3)[2]
    proj = linear(vector("attn_proj_weight"), vector("attn_proj_bias"))
    attention = QKRAttention.from_projections(
        linear(q), linear(k), linear(v, bias), proj, heads, weight_bits=weight_bits, act_bits=act_bits
    ).eval()
    x = vector("attn_x").requires_grad_()
    out = attention(x)
    (out * vector("attn_upstream")).sum().backward()
    return attention, x, out


def test_attention(attended):
    _, x, out = attended
    assert tuple(x.shape) == tuple(GOLDEN["attn_dims"][:3])
    assert_near(out, "attn_out", ATTENTION)
    assert_near(x.grad, "attn_grad_x", ATTENTION)


def parameter_of(attended, name):
    theirs = name.replace("__", ".")
    return attended[0].get_parameter(OURS.get(theirs, theirs))


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_attention(attended, name):
    wanted = GOLDEN[f"attn_grad__{name}"]
    actual = parameter_of(attended, name).grad
    np.testing.assert_allclose(actual, wanted, rtol=RELATIVE, atol=RELATIVE * max(1e-2, np.abs(wanted).max()))


@pytest.mark.parametrize("name", SCALES)
def test_first_steps_of_attention(attended, name):
    assert_near(parameter_of(attended, name), f"attn_scale__{name}", ATTENTION)


def test_all_parameters_of_attention_are_compared(attended):
    compared = {id(parameter_of(attended, name)) for name in GRADIENTS}
    assert compared == {id(parameter) for parameter in attended[0].parameters()}


@pytest.mark.parametrize("kind", ["track", "freeze"])
def test_oscillations(kind):
    sequence = vector("osc_seq").to(torch.int8)
    state, freezing = start_oscillation(sequence[0]), start_freezing(sequence[0])
    total, out = torch.zeros(sequence.shape[1:]), []
    for codes in sequence:
        held = torch.where(freezing.frozen, freezing.codes, codes)
        before = state.ema.clone()
        update_oscillation(held, state, MOMENTUM)
        total += (state.ema - (1 - MOMENTUM) * before) > MOMENTUM / 2
        if kind == "freeze":
            update_freezing(held, state, freezing, MOMENTUM, FREEZE_AT)
        out.append(held)
    np.testing.assert_array_equal(torch.stack(out), GOLDEN[f"osc_{kind}_out"])
    np.testing.assert_array_equal(total, GOLDEN[f"osc_{kind}_total"])
    np.testing.assert_array_equal(state.direction, GOLDEN[f"osc_{kind}_prev_dir"])
    assert_near(state.ema, f"osc_{kind}_ema")
    if kind == "freeze":
        np.testing.assert_array_equal(freezing.frozen, GOLDEN["osc_freeze_frozen"])
        np.testing.assert_array_equal(freezing.codes, GOLDEN["osc_freeze_frozen_int"])
        assert_near(freezing.code_ema, "osc_freeze_ema_int")


def weights_with(codes, bits):
    """Weights in the middle between two thresholds, and twice as many others that bring their scale to 1."""
    n, size = 2 ** (bits - 1), codes.shape[1]
    middle = (codes + 0.5) / n
    filler = (3 * size / 2 - middle.abs().sum(1, keepdim=True)) / (2 * size)
    return torch.cat([middle, filler.expand(-1, 2 * size)], dim=1)


def test_the_fused_tracker_counts_the_same():
    sequence, size = vector("osc_seq"), GOLDEN["osc_seq"].shape[2]
    bits = max(2, 1 + math.ceil(math.log2(max(sequence.max().item() + 1, -sequence.min().item()))))
    state = start_oscillation(stats_codes(weights_with(sequence[0], bits), bits).codes)
    for codes in sequence:
        seen = statsq_observe(weights_with(codes, bits), bits, tracker=state, momentum=MOMENTUM)
        np.testing.assert_array_equal(seen.codes[:, :size], codes)
    assert_near(state.ema[:, :size], "osc_track_ema")
    np.testing.assert_array_equal(state.direction[:, :size], GOLDEN["osc_track_prev_dir"])
