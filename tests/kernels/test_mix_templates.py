"""Mixing on the CPU against an oracle in numpy, its specification and its promises."""

import importlib
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.errors import KernelUnavailableError, ShardedParameterError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.mix_templates import mix_templates, mix_templates_reference
from lightning_weights.kernels.mix_templates.cost import cost, cost_composition, pick_config
from lightning_weights.kernels.mix_templates.eager import gradients, weights
from tests.kernels.buffers import guarded, strided
from tests.kernels.mix_templates_cases import CASES, inputs, oracle, tolerances
from tests.kernels.traffic import Traffic

MODULE = importlib.import_module("lightning_weights.kernels.mix_templates")
EACH = pytest.mark.parametrize(("count", "shape", "sets", "columns"), CASES)
FOUR = (0, 0, 1, 1)


@pytest.fixture(autouse=True)
def operator(monkeypatch):
    """Take the operator for small templates, too."""
    monkeypatch.setattr(MODULE, "SMALL", 0)
    return monkeypatch


@pytest.fixture
def without_operator(operator):
    """Leave small templates to the specification, as it is outside of these tests."""
    operator.undo()


def run(templates, coefficients, sets, columns, upstream=None, function=mix_templates):
    """Return the weight, an upstream gradient and the gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in (*templates, coefficients)]
    weight = function(leaves[:-1], leaves[-1], sets, columns)
    upstream = torch.randn_like(weight) if upstream is None else upstream
    return weight.detach(), upstream, torch.autograd.grad(weight, leaves, upstream)


@EACH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_weights_and_gradients_are_the_oracles(count, shape, sets, columns, dtype):
    data = inputs(count, shape, sets, dtype)
    weight, upstream, grads = run(*data, sets, columns)
    assert weight.dtype == dtype
    step, sums = tolerances(dtype, upstream)
    np.testing.assert_allclose(weight.double(), oracle(*data, sets, columns), rtol=step, atol=step)
    wanted = oracle(*data, sets, columns, upstream)
    for found, want, atol in zip(grads, wanted, [step] * len(data[0]) + [sums], strict=True):
        np.testing.assert_allclose(found.double(), want, rtol=step, atol=atol)
    assert [grad.dtype for grad in grads] == [tensor.dtype for tensor in (*data[0], data[1])]


@EACH
def test_reference_is_the_oracle(count, shape, sets, columns):
    data = inputs(count, shape, sets, torch.float64)
    weight, upstream, grads = run(*data, sets, columns, function=mix_templates_reference)
    np.testing.assert_allclose(weight, oracle(*data, sets, columns), rtol=1e-12, atol=1e-13)
    for found, want in zip(grads, oracle(*data, sets, columns, upstream), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-11, atol=1e-11)


@EACH
def test_small_weights_take_no_operator_and_keep_its_promises(count, shape, sets, columns, without_operator):
    templates, coefficients = inputs(count, shape, sets)
    weight, upstream, grads = run(templates, coefficients, sets, columns)
    step, sums = tolerances(torch.float32, upstream)
    np.testing.assert_allclose(weight, oracle(templates, coefficients, sets, columns), rtol=step, atol=step)
    wanted = oracle(templates, coefficients, sets, columns, upstream)
    for found, want, atol in zip(grads, wanted, [step] * len(templates) + [sums], strict=True):
        np.testing.assert_allclose(found, want, rtol=step, atol=atol)
    blocks = [block for row in weight.split(shape[0]) for block in row.split(shape[1], 1)]
    for block, row, which in zip(blocks, coefficients, sets, strict=True):
        assert torch.equal(block, mix_templates([templates[which]], row[None], (0,)))


def test_large_weights_take_the_operator(without_operator):
    for size, taken in ((64, False), (128, True)):
        templates, coefficients = inputs(2, (size, 128), FOUR)
        weight = mix_templates([part.requires_grad_() for part in templates], coefficients, FOUR, 2)
        assert ("MixTemplates" in weight.grad_fn.name()) is taken
    narrow = mix_templates([part[:, :2] for part in templates], coefficients, FOUR, 2, dtype=torch.bfloat16)
    assert narrow.dtype == torch.bfloat16


@settings(max_examples=40, deadline=None)
@given(o=st.integers(1, 9), i=st.integers(1, 40), count=st.integers(1, 5), columns=st.sampled_from([1, 2, 4]))
def test_a_block_has_the_same_bits_wherever_it_stands(o, i, count, columns):
    templates, coefficients = inputs(count, (o, i), FOUR)
    weight = mix_templates(templates, coefficients, FOUR, columns)
    blocks = [block for row in weight.split(o) for block in row.split(i, 1)]
    for block, row, which in zip(blocks, coefficients, FOUR, strict=True):
        assert torch.equal(block, mix_templates([templates[which]], row[None], (0,)))


def test_gradcheck():
    templates, coefficients = inputs(3, (2, 2, 3), FOUR, torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (*templates, coefficients)]
    assert torch.autograd.gradcheck(lambda a, b, c: mix_templates([a, b], c, (0, 1, 0, 1), 2), leaves)
    assert torch.autograd.gradcheck(lambda a, b, c: mix_templates([a, b], c[:2], (0, 1), 2), leaves)


def test_the_weight_may_be_narrow_and_gradients_stay_wide():
    templates, coefficients = inputs(2, (8, 8), FOUR)
    leaves = [tensor.requires_grad_() for tensor in (*templates, coefficients)]
    weight = mix_templates(leaves[:2], leaves[2], FOUR, 2, dtype=torch.bfloat16)
    assert torch.equal(weight, mix_templates(leaves[:2], leaves[2], FOUR, 2).bfloat16())
    upstream = torch.randn(16, 16).bfloat16()
    grads = torch.autograd.grad(weight, leaves, upstream)
    for found, want in zip(grads, oracle(templates, coefficients, FOUR, 2, upstream), strict=True):
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-4)


def test_only_what_needs_a_gradient_gets_one_and_only_arguments_are_kept():
    templates, coefficients = inputs(2, (16, 16), FOUR)
    templates[1].requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        weight = mix_templates(templates, coefficients, FOUR, 2)
    assert sum(tensor.nbytes for tensor in kept) == sum(t.nbytes for t in (*templates, coefficients))
    weight.sum().backward()
    assert templates[1].grad is not None
    assert templates[0].grad is coefficients.grad is None


@pytest.mark.parametrize(
    "layout", [strided, lambda v: v.transpose(1, 2).contiguous().transpose(1, 2), lambda v: v[:, ::2], lambda v: v]
)
def test_any_layout(layout):
    templates, coefficients = inputs(2, (6, 4, 5), FOUR)
    templates = [layout(part) for part in templates]
    upstream = layout(torch.randn(2, 12, 8, 5))[0][: 2 * templates[0].shape[1]]
    weight, _, grads = run(templates, coefficients, FOUR, 2, upstream)
    np.testing.assert_allclose(weight, oracle(templates, coefficients, FOUR, 2), rtol=1e-5, atol=1e-6)
    for found, want in zip(grads, oracle(templates, coefficients, FOUR, 2, upstream), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-4)


def test_channels_last_gradients_and_inputs_that_are_only_read():
    templates, coefficients = inputs(2, (4, 3, 3, 3), FOUR)
    upstream = torch.randn(8, 6, 3, 3).to(memory_format=torch.channels_last)
    tensors, clean = guarded([*templates, coefficients])
    before = [tensor.clone() for tensor in tensors]
    *_, grads = run(tensors[:2], tensors[2], FOUR, 2, upstream)
    for found, want in zip(grads, oracle(templates, coefficients, FOUR, 2, upstream), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-4)
    assert clean()
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_nan_and_infinity_stay_in_their_block():
    templates, coefficients = inputs(2, (2, 3), FOUR)
    templates[0][0, 0, 0], templates[1][1, 1, 1] = torch.nan, torch.inf
    weight = mix_templates(templates, coefficients, FOUR, 2)
    assert weight[:2].isnan().sum() == 2
    assert weight[2:].isinf().sum() == 2


def test_bad_input():
    templates, coefficients = inputs(2, (4, 4), FOUR)
    with pytest.raises(ValueError, match="templates have shapes"):
        mix_templates([templates[0], templates[1][:1]], coefficients, FOUR, 2)
    with pytest.raises(ValueError, match="templates have shapes"):
        mix_templates([*templates, templates[0]], coefficients, FOUR, 2)
    for sets, columns in (((0, 0, 0, 1), 2), ((0, 0, 1, 2), 2), ((0, 0), 2), (FOUR, 3)):
        with pytest.raises(ValueError, match="sets is"):
            mix_templates(templates, coefficients[: len(sets)], sets, columns)
    with pytest.raises(ValueError, match=r"coefficients have shape \(4, 1\); allowed is \(4, 2\)"):
        mix_templates(templates, coefficients[:, :1], FOUR, 2)
    with pytest.raises(ValueError, match="columns is 0"):
        mix_templates(templates, coefficients, FOUR, 0)
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match=r"tensors are on cpu|triton is not"):
        mix_templates(templates, coefficients, FOUR, 2)


def test_sharded_templates_are_refused(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        sharded = torch.distributed.tensor.distribute_tensor(torch.ones(2, 2, 2), mesh)
        with pytest.raises(ShardedParameterError, match="use full_tensor"):
            mix_templates([sharded], torch.ones(1, 2), (0,))
    finally:
        torch.distributed.destroy_process_group()


def test_opcheck():
    (first, second), coefficients = inputs(2, (3, 2, 3), FOUR)
    ops = torch.ops.lightning_weights
    arguments = (list(FOUR), 2)
    shapes = {"test_utils": ("test_schema", "test_faketensor")}
    checks = [
        torch.library.opcheck(ops.mix_templates.default, (first, second, coefficients, *arguments, torch.float32)),
        torch.library.opcheck(
            ops.mix_templates.default, (first, None, coefficients[:1], [0], 1, torch.bfloat16), **shapes
        ),
        torch.library.opcheck(
            ops.mix_templates_backward.default, (first, second, coefficients, torch.randn(6, 4, 3), *arguments, True)
        ),
        torch.library.opcheck(
            ops.mix_templates_backward.default,
            (first, None, coefficients[:1], torch.randn(3, 2, 3), [0], 1, False),
            **shapes,
        ),
    ]
    assert {result for check in checks for result in check.values()} == {"SUCCESS"}


def test_compiles_whole():
    data = inputs(2, (3, 4), FOUR)
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in (*data[0], data[1])] for _ in range(2))
    compiled = torch.compile(
        lambda a, b, c: mix_templates([a, b], c, FOUR, 2).sum(), fullgraph=True, backend="aot_eager"
    )
    compiled(*ours).backward()
    mix_templates(theirs[:2], theirs[2], FOUR, 2).sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))


def test_function_transforms_and_second_derivatives():
    templates, coefficients = inputs(2, (3, 4), (0, 0))
    many = torch.randn(5, 2, 3, 4)
    gradient = torch.func.grad(lambda part: mix_templates([part], coefficients, (0, 0), 2).square().sum())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # a loop over the batch it is
        batched = torch.func.vmap(gradient)(many)
    torch.testing.assert_close(batched, torch.stack([gradient(part) for part in many]))
    leaf = templates[0].requires_grad_()
    (slope,) = torch.autograd.grad(mix_templates([leaf], coefficients, (0, 0)).square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        slope.sum().backward()


@pytest.mark.parametrize("rows", [1, 33, 1000])
@pytest.mark.parametrize("columns", [1, 27, 300, 5000])
@pytest.mark.parametrize("warp_size", [32, 64])
def test_tiles_are_full_and_threads_take_eight_elements(rows, columns, warp_size):
    down, across, warps = pick_config(rows, columns, warp_size)
    assert down * across == 8 * warps * warp_size
    assert down & (down - 1) == across & (across - 1) == 0
    assert warps == 1 or down * across < 4 * rows * columns
    assert down == 1 or across <= max(8, 2 * columns)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_cost_counts_the_tensors(kind):
    templates, coefficients = inputs(2, (64, 512), FOUR, kind)
    weight = mix_templates(templates, coefficients, FOUR, 2)
    programs = 32  # 64 rows of 512 in tiles of two
    counted = cost(64, 512, 2, itemsize=kind.itemsize, weight_itemsize=kind.itemsize)
    factors = programs * coefficients.nbytes
    assert (counted.bytes_read, counted.bytes_written) == (2 * templates[0].nbytes + factors, weight.nbytes)
    back = cost(64, 512, 2, itemsize=kind.itemsize, weight_itemsize=kind.itemsize, backward=True, sums=True)
    assert back.bytes_read == weight.nbytes + 2 * templates[0].nbytes + 2 * factors
    assert back.bytes_written == 2 * templates[0].nbytes + factors + coefficients.nbytes


def test_the_plain_composition_moves_what_its_cost_says():
    templates, coefficients = inputs(2, (8, 16), FOUR)

    def composed(first, second, alpha):
        blocks = [
            (row.view(-1, 1, 1) * part).sum(0) for row, part in zip(alpha, (first, first, second, second), strict=True)
        ]
        return torch.vstack([torch.hstack(blocks[:2]), torch.hstack(blocks[2:])])

    with Traffic() as traffic:
        composed(*templates, coefficients)
    counted = cost_composition(8, 16, 2)
    alphas = 4 * coefficients[0].nbytes  # of rows of factors, which are left out
    assert traffic.written == counted.bytes_written
    concatenated = 8 * templates[0][0].nbytes  # lists of tensors, which are not seen
    assert traffic.read == counted.bytes_read - concatenated + alphas
    own = cost(1000, 1000, 2)
    assert own.bytes_read + own.bytes_written < 0.2 * sum(
        (cost_composition(1000, 1000, 2).bytes_read, cost_composition(1000, 1000, 2).bytes_written)
    )


def test_eager_parts_agree_with_autograd_of_themselves():
    templates, coefficients = inputs(2, (3, 4), FOUR, torch.float64)
    upstream = torch.randn(6, 8, dtype=torch.float64)
    grads, grad_coefficients = gradients(templates, coefficients, upstream, (0, 1, 0, 1), 2, sums=True)
    step = 1e-6
    for which, t, o, i in ((0, 1, 2, 3), (1, 0, 0, 0)):
        moved = [part.clone() for part in templates]
        moved[which][t, o, i] += step
        change = weights(moved, coefficients, (0, 1, 0, 1), 2) - weights(templates, coefficients, (0, 1, 0, 1), 2)
        assert float((change * upstream).sum() / step) == pytest.approx(float(grads[which][t, o, i]), rel=1e-6)
    moved = coefficients.clone()
    moved[3, 1] += step
    change = weights(templates, moved, (0, 1, 0, 1), 2) - weights(templates, coefficients, (0, 1, 0, 1), 2)
    assert float((change * upstream).sum() / step) == pytest.approx(float(grad_coefficients[3, 1]), rel=1e-6)
