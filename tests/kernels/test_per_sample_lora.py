"""Adapters per sample on the CPU against their specification and an oracle in numpy."""

import warnings

import numpy as np
import pytest
import torch

import lightning_weights.kernels.per_sample_lora as kernels
from lightning_weights.errors import KernelUnavailableError, ShardedParameterError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.per_sample_lora import per_sample_lora, per_sample_lora_reference
from lightning_weights.kernels.per_sample_lora.cost import cost, cost_composition, pick_config
from tests.kernels.buffers import guarded, strided
from tests.kernels.per_sample_lora_cases import CASES, SCALE, inputs, oracle
from tests.kernels.traffic import Traffic

NEAR = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}


def results(base, tokens, a, b, upstream):
    leaves = [tensor.detach().requires_grad_() for tensor in (tokens, a, b)]
    outputs = per_sample_lora(base, *leaves, SCALE)
    return outputs, *torch.autograd.grad(outputs, leaves, upstream)


def check(data, got, dtype):
    for ours, exact in zip(got, oracle(*data), strict=True):
        tolerance = NEAR[dtype] * np.abs(exact).max()
        np.testing.assert_allclose(ours.detach().double().numpy(), exact, rtol=NEAR[dtype], atol=tolerance)


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_gradients_are_the_oracles(case, dtype):
    data = inputs(case, dtype)
    got = results(*data)
    assert {part.dtype for part in got} == {dtype}
    check(data, got, dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_is_the_oracle(case):
    data = inputs(case, torch.float64)
    np.testing.assert_allclose(per_sample_lora_reference(*data[:4], SCALE), oracle(*data)[0], rtol=1e-12, atol=1e-12)


def test_gradcheck_of_every_operand():
    *tensors, _ = inputs(CASES[0], torch.float64)
    for number in range(4):
        operands = [tensor.clone().requires_grad_(place == number) for place, tensor in enumerate(tensors)]
        assert torch.autograd.gradcheck(lambda *four: per_sample_lora(*four, SCALE), operands)


def test_without_b_the_outputs_are_the_bases():
    for dtype in NEAR:
        base, tokens, a, b, _ = inputs(CASES[0], dtype)
        assert torch.equal(per_sample_lora(base, tokens, a, torch.zeros_like(b), SCALE), base)


def test_samples_do_not_see_each_other():
    base, tokens, a, b, _ = inputs(CASES[4])
    whole = per_sample_lora(base, tokens, a, b, SCALE)
    a[1], b[1] = torch.nan, torch.inf
    assert torch.equal(per_sample_lora(base, tokens, a, b, SCALE)[0], whole[0])


@pytest.mark.parametrize("layout", [strided, lambda t: t.mT.contiguous().mT], ids=["every second", "transposed"])
def test_any_layout(layout):
    data = inputs(CASES[4])
    check(data, results(*map(layout, data)), torch.float32)


def test_inputs_are_only_read():
    data, clean = guarded(inputs(CASES[4]))
    before = [tensor.clone() for tensor in data]
    results(*data)
    assert clean()
    assert all(torch.equal(tensor, old) for tensor, old in zip(data, before, strict=True))


def test_no_tokens():
    base, tokens, a, b, _ = inputs(CASES[0])
    a.requires_grad_()
    none = per_sample_lora(base[:, :0], tokens[:, :0], a, b, SCALE)
    none.sum().backward()
    assert none.shape == (2, 0, 7)
    assert not a.grad.any()


def test_autocast_changes_nothing():
    data = inputs(CASES[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = results(*data)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(under, results(*data), strict=True))


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 3, 7), (2, 3, 5), (1, 2, 5), (2, 7, 2)),
        ((2, 3, 7), (2, 4, 5), (2, 2, 5), (2, 7, 2)),
        ((2, 3, 7), (2, 3, 5), (2, 2, 6), (2, 7, 2)),
        ((2, 3, 7), (2, 3, 5), (2, 2, 5), (2, 7, 3)),
        ((2, 3, 7), (2, 3, 5), (2, 0, 5), (2, 7, 0)),
        ((2, 7), (2, 5), (2, 2, 5), (2, 7, 2)),
    ],
)
def test_shapes_that_do_not_fit_are_named(shapes):
    with pytest.raises(ValueError, match=r"the shapes are base .*; allowed are base \(N, T, out\)"):
        per_sample_lora(*map(torch.zeros, shapes), 1.0)


def test_what_is_refused():
    base, tokens, a, b, _ = inputs(CASES[0])
    with pytest.raises(ValueError, match=r"data types are .* a torch.float16"):
        per_sample_lora(base, tokens, a.half(), b, 1.0)
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match=r"tensors are on cpu|triton is not"):
        per_sample_lora(base, tokens, a, b, 1.0)
    a.placements = ()
    with pytest.raises(ShardedParameterError, match="full_tensor"):
        per_sample_lora(base, tokens, a, b, 1.0)


def test_exact_products_are_left_to_the_library(monkeypatch):
    asked = []
    monkeypatch.setattr(kernels, "takes_triton", lambda *_, exact_products: asked.append(exact_products))
    for precision in ("highest", "high"):
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda precision=precision: precision)
        for dtype in (torch.float32, torch.bfloat16):
            per_sample_lora(*inputs(CASES[0], dtype)[:4], SCALE)
    assert asked == [True, False, False, False]


def test_opcheck():
    base, tokens, a, b, upstream = inputs(CASES[0])
    ops = torch.ops.lightning_weights
    results = [
        torch.library.opcheck(ops.per_sample_lora.default, (base, tokens, a, b, SCALE)),
        torch.library.opcheck(
            ops.per_sample_lora_backward.default, (upstream, tokens, tokens @ a.mT, a, b, SCALE, [True, False, True])
        ),
    ]
    assert all(set(result.values()) == {"SUCCESS"} for result in results)


def test_compiles_whole():
    data = inputs(CASES[0])
    compiled = torch.compile(per_sample_lora, fullgraph=True, backend="aot_eager")
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in data[:4]] for _ in range(2))
    compiled(*ours, SCALE).square().sum().backward()
    per_sample_lora(*theirs, SCALE).square().sum().backward()
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(ours, theirs, strict=True))


def test_function_transforms_and_second_derivatives():
    base, tokens, a, b, _ = inputs(CASES[0])

    def loss(own):
        return per_sample_lora(base, tokens, own, b, SCALE).square().sum()

    several = torch.stack([a, 2 * a, -a])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        batched = torch.func.vmap(torch.func.grad(loss))(several)
    torch.testing.assert_close(batched, torch.stack([torch.func.grad(loss)(own) for own in several]))
    (slope,) = torch.autograd.grad(loss(a.requires_grad_()), a, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        slope.sum().backward()


@pytest.mark.parametrize("warp_size", [32, 64])
@pytest.mark.parametrize("tokens", [1, 16, 17, 4096])
@pytest.mark.parametrize("r", [1, 12, 16, 64, 128])
def test_tiles_hold_the_rank_and_fill_the_threads(tokens, r, warp_size):
    config = pick_config(tokens, r, warp_size)
    assert r <= config.rank < max(2 * r, 17)
    assert config.rank * config.columns <= 128 * 64  # what a program keeps of B
    assert config.tokens * config.columns * 2 >= 16 * config.warps * warp_size


def test_cost_counts_the_tensors():
    case = (2, 32, 16, 128, 8)
    base, tokens, a, b, _ = inputs(case, torch.bfloat16)
    found = cost(*case, itemsize=2)
    inner = 2 * 32 * 8 * 2
    assert found.bytes_read == base.nbytes + tokens.nbytes + a.nbytes + b.nbytes + inner
    assert found.bytes_written == base.nbytes + inner


def test_composition_moves_what_it_is_said_to():
    case = (2, 32, 16, 128, 8)
    base, tokens, a, b, _ = inputs(case)
    left, right = a.mT, b.mT
    with Traffic() as traffic:
        composed = base + SCALE * torch.bmm(torch.bmm(tokens, left), right)
    expected = cost_composition(*case)
    torch.testing.assert_close(composed, per_sample_lora(base, tokens, a, b, SCALE), rtol=1e-4, atol=1e-4)
    assert (traffic.read, traffic.written) == (expected.bytes_read, expected.bytes_written)


def test_fusing_removes_more_than_a_third_of_the_bytes():
    sizes = (8, 1024, 1024, 4096, 16)
    fused, composed = cost(*sizes, itemsize=2), cost_composition(*sizes, itemsize=2)
    assert fused.bytes_read + fused.bytes_written < 0.6 * (composed.bytes_read + composed.bytes_written)
