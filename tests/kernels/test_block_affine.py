"""The block-affine weight on the CPU against its specification and an oracle in numpy."""

import warnings

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_weights.errors import KernelUnavailableError, ShardedParameterError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.block_affine import (
    block_affine,
    block_affine_linear,
    block_affine_reference,
    built_weight,
    eager,
)
from lightning_weights.kernels.block_affine.cost import cost, cost_composition, pick_config
from tests.kernels.block_affine_cases import CASES, inputs, oracle
from tests.kernels.buffers import guarded, strided
from tests.kernels.traffic import Traffic

NEAR = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 4e-3}


def close(got, want, dtype):
    tolerance = NEAR[dtype]
    np.testing.assert_allclose(got.detach().double().numpy(), want, rtol=tolerance, atol=tolerance * np.abs(want).max())


@pytest.fixture(params=[1, 1 << 20], ids=["small pieces", "large pieces"])
def _pieces(request, monkeypatch):
    monkeypatch.setattr(eager, "PIECE", request.param)


@pytest.mark.usefixtures("_pieces")
@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_weight_outputs_and_gradients_are_the_oracles(case, dtype):
    weight, block, tokens, upstream = inputs(case, dtype)
    block, tokens = block.requires_grad_(), tokens.requires_grad_()
    want = oracle(weight, block, tokens, upstream)
    for built in (None, built_weight(weight, block)):
        outputs = block_affine_linear(tokens, weight, block, built=built)
        slopes = torch.autograd.grad(outputs, (block, tokens), upstream)
        results = (block_affine(weight, block), outputs, *slopes)
        assert [result.dtype for result in results] == [dtype, dtype, block.dtype, dtype]
        for result, exact in zip(results, want, strict=True):
            close(result, exact, dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_is_the_oracle(case):
    data = inputs(case, torch.float64)
    np.testing.assert_allclose(block_affine_reference(*data[:2]), oracle(*data)[0], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("case", [(4, 6, (2, 1), 2), (6, 4, (2, 2), 2)], ids=str)
def test_gradcheck(case):
    weight, block, tokens, _ = (tensor.requires_grad_() for tensor in inputs(case, torch.float64))
    bias = torch.randn(case[0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block_affine, (weight, block))
    for keep in (True, False):

        def layer(tokens, block, bias, keep=keep):
            built = built_weight(weight, block) if keep else None
            return block_affine_linear(tokens, weight.detach(), block, bias, built=built)

        assert torch.autograd.gradcheck(layer, (tokens, block, bias))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_without_a_block_the_weight_is_the_same_in_every_bit(case):
    for dtype in NEAR:
        weight, block, *_ = inputs(case, dtype, scale=0.0)
        assert torch.equal(block_affine(weight, block), weight)


def test_half_precision_is_rounded_once():
    """I + B in bfloat16 would lose this block altogether."""
    weight, block = torch.full((4, 4), 2.0, dtype=torch.bfloat16), torch.diag(torch.full((4,), 2.0**-9))[None, None]
    wide = block_affine(weight, block, dtype=torch.float32)
    assert torch.equal(wide.diag(), torch.full((4,), 2.0 + 3 * 2.0**-9))
    assert torch.equal(block_affine(weight, block), wide.bfloat16())


@pytest.mark.parametrize("layout", [strided, lambda t: t.mT.contiguous().mT], ids=["every second", "transposed"])
def test_any_layout(layout):
    data = inputs(CASES[2])
    weight, block, tokens, upstream = map(layout, data)
    tokens, block = tokens.requires_grad_(), block.requires_grad_()
    outputs = block_affine_linear(tokens, weight, block)
    results = (block_affine(weight, block), outputs, *torch.autograd.grad(outputs, (block, tokens), upstream))
    for got, want in zip(results, oracle(*data), strict=True):
        close(got, want, torch.float32)


def test_inputs_are_only_read():
    data, clean = guarded(inputs(CASES[3]))
    before = [tensor.clone() for tensor in data]
    block_affine_linear(data[2], data[0], data[1].requires_grad_()).backward(data[3])
    assert clean()
    assert all(torch.equal(tensor, old) for tensor, old in zip(data, before, strict=True))


def test_no_tokens_and_many_dimensions():
    weight, block, tokens, _ = inputs(CASES[0])
    block.requires_grad_()
    none = block_affine_linear(tokens[:0], weight, block)
    none.sum().backward()
    assert none.shape == (0, 12)
    assert not block.grad.any()
    many = block_affine_linear(tokens[:6].view(2, 3, 8), weight, block)
    torch.testing.assert_close(many.view(6, 12), block_affine_linear(tokens[:6], weight, block))


def test_autocast_reaches_neither_weight_nor_gradient():
    weight, block, *_ = inputs(CASES[0])
    block.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = block_affine(weight, block)
        slope = torch.autograd.grad(under, block, torch.ones_like(under))[0]
    assert under.dtype == torch.float32
    assert torch.equal(under, block_affine(weight, block))
    assert torch.equal(slope, torch.autograd.grad(block_affine(weight, block), block, torch.ones_like(under))[0])


class Largest(TorchDispatchMode):
    """Keeps the size of the largest tensor that an operator makes, the built weight apart."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and "view" not in str(function):
            self.size = max(self.size, result.numel() * (0 not in result.stride()))
        return result


def test_gradient_of_the_weight_is_never_whole(monkeypatch):
    monkeypatch.setattr(eager, "PIECE", 1024)
    weight, block, tokens, upstream = inputs((64, 160, (4, 1), 16))
    with Largest() as mode:
        eager.gradient(upstream, tokens, weight, list(block.shape), block.dtype)
    assert mode.size == 16 * 160


@pytest.mark.parametrize(
    ("weight", "block"),
    [
        ((12, 8), (3, 1, 5, 5)),
        ((12, 8), (4, 1, 4, 4)),
        ((12, 8), (3, 4, 4)),
        ((12, 8), (3, 1, 4, 2)),
        ((12,), (3, 1, 4, 4)),
    ],
)
def test_shapes_that_do_not_fit_are_named(weight, block):
    with pytest.raises(ValueError, match=r"weight has shape .* and block .*; allowed are"):
        block_affine(torch.zeros(weight), torch.zeros(block))


def test_bad_operands_of_the_layer():
    weight, block, tokens, _ = inputs(CASES[0])
    with pytest.raises(ValueError, match=r"weight requires gradients"):
        block_affine_linear(tokens, weight.clone().requires_grad_(), block)
    with pytest.raises(ValueError, match=r"tokens has shape \(7, 7\); allowed is \(..., 8\)"):
        block_affine_linear(tokens[:, 1:], weight, block)
    with pytest.raises(ValueError, match=r"bias has shape \(3,\)"):
        block_affine_linear(tokens, weight, block, torch.zeros(3))
    with pytest.raises(ValueError, match=r"built has shape .* torch.bfloat16; allowed are .* tokens' torch.float32"):
        block_affine_linear(tokens, weight, block, built=built_weight(weight, block, dtype=torch.bfloat16))
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match=r"tensors are on cpu|triton is not"):
        block_affine(weight, block)


def test_sharded_operands_are_refused():
    weight, block, *_ = inputs(CASES[0])
    weight.placements = ()
    with pytest.raises(ShardedParameterError, match="whole weight"):
        block_affine(weight, block)


def test_opcheck():
    weight, block, tokens, upstream = inputs(CASES[2])
    ops = torch.ops.lightning_weights
    results = [
        torch.library.opcheck(ops.block_affine.default, (weight, block, torch.float32, True)),
        torch.library.opcheck(
            ops.block_affine_gradient.default, (upstream, tokens, weight, block.shape, torch.float32)
        ),
        torch.library.opcheck(ops.block_affine_backward.default, (weight, weight, block, [True, False])),
        torch.library.opcheck(
            ops.block_affine_linear_backward.default, (upstream, tokens, weight, block, None, [True, False, True])
        ),
    ]
    assert all(set(result.values()) == {"SUCCESS"} for result in results)


def test_compiles_whole():
    weight, block, tokens, _ = inputs(CASES[2])

    def layer(tokens, block):
        return block_affine_linear(tokens, weight, block, built=built_weight(weight, block)).square().sum()

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    ours, theirs = ([t.clone().requires_grad_() for t in (tokens, block)] for _ in range(2))
    compiled(*ours).backward()
    layer(*theirs).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))


def test_function_transforms_and_second_derivatives():
    weight, block, tokens, _ = inputs(CASES[0])
    gradient = torch.func.grad(lambda x: block_affine_linear(x, weight, block).square().sum())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        batched = torch.func.vmap(gradient)(tokens)
    torch.testing.assert_close(batched, torch.stack([gradient(x) for x in tokens]))
    block.requires_grad_()
    for function in (
        lambda: block_affine(weight, block).square().sum(),
        lambda: block_affine_linear(tokens.requires_grad_(), weight, block).square().sum(),
    ):
        (slope,) = torch.autograd.grad(function(), block, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiated once only"):
            slope.sum().backward()


def test_stacked_adapters_are_one():
    """(W + J)(I + B₁)(I + B₂) = (W + J)(I + B₁ + B₂ + B₁B₂), with both trained."""
    weight, first, *_ = inputs(CASES[0], torch.float64)
    first, second = first.requires_grad_(), inputs(CASES[0], torch.float64)[1].requires_grad_()
    stacked = block_affine(block_affine(weight, first), second)
    joint = block_affine_reference(weight, first + second + first @ second)
    torch.testing.assert_close(stacked, joint)
    for ours, theirs in zip(
        torch.autograd.grad(stacked.sin().sum(), (first, second)),
        torch.autograd.grad(joint.sin().sum(), (first, second)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("warp_size", [32, 64])
@pytest.mark.parametrize("r", [1, 4, 16, 48, 64, 128])
@pytest.mark.parametrize("grid", [(64, 1), (1, 64), (2, 2), (64, 64)])
def test_tiles_hold_a_block_and_fill_the_threads(r, grid, warp_size):
    config = pick_config((64, 64), grid, r, warp_size)
    assert r <= config.tile < max(2 * r, 17)
    assert config.tile**2 * 2 >= min(16 * config.warps * warp_size, 512)
    assert 1 <= config.splits <= (64 // grid[0]) * (64 // grid[1])


@pytest.mark.parametrize("grid", [(16, 1), (1, 4), (2, 2)])
def test_cost_counts_the_tensors(grid):
    weight, block = torch.zeros(256, 64, dtype=torch.bfloat16), torch.zeros(*grid, 16, 16)
    splits = pick_config((16, 4), grid, 16).splits
    forward, backward = (cost(256, 64, 16, grid, itemsize=2, backward=way) for way in (False, True))
    assert (forward.bytes_read, forward.bytes_written) == (weight.nbytes + block.nbytes, weight.nbytes)
    assert (backward.bytes_read, backward.bytes_written) == (2 * weight.nbytes, splits * block.nbytes)


def test_composition_moves_what_it_is_said_to():
    def composed(weight, block):
        copy = weight.clone()
        tiles = copy.view(16, 16, 4, 16).permute(2, 0, 1, 3).contiguous().view(4, 16, 16, 16)
        product = torch.bmm(tiles.view(64, 16, 16), block.expand(4, 16, 16, 16).reshape(64, 16, 16))
        summed = product.view(4, 16, 16, 16) + block
        return copy + summed.permute(1, 2, 0, 3).contiguous().view(256, 64)

    weight, block = torch.randn(256, 64), torch.randn(16, 16, 16)
    torch.testing.assert_close(composed(weight, block), block_affine(weight, block.unsqueeze(1)), rtol=1e-4, atol=1e-4)
    with Traffic() as traffic:
        composed(weight, block)
    expected = cost_composition(256, 64, 16)
    copies = 4 * block.nbytes  # of the block for the batched product, which a broadcasting one spares
    assert traffic.written == expected.bytes_written + copies
    assert abs(traffic.read - expected.bytes_read) <= copies


def test_fusing_removes_more_than_a_third_of_the_bytes():
    fused, composed = cost(4096, 4096, 64, (64, 1), itemsize=2), cost_composition(4096, 4096, 64, itemsize=2)
    assert fused.bytes_read + fused.bytes_written < 0.5 * (composed.bytes_read + composed.bytes_written)
