"""The Gram matrix of gradients on the CPU against a matrix product in float64."""

import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.gradient_gram import eager, gradient_gram, gradient_gram_reference
from lightning_weights.kernels.gradient_gram.cost import cost, cost_composed, pairs, pick_config
from tests.kernels.buffers import SHAPES, guarded, strided
from tests.kernels.traffic import Traffic


def lists(objectives=3, dtype=torch.float32, shapes=SHAPES):
    return [[torch.randn(shape).to(dtype) for shape in shapes] for _ in range(objectives)]


@pytest.mark.parametrize("objectives", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_inner_products(objectives, dtype, monkeypatch):
    monkeypatch.setattr(eager, "CHUNK", 100)
    gradients = lists(objectives, dtype)
    found, want = gradient_gram(gradients), gradient_gram_reference(gradients)
    assert found.dtype == torch.float64
    assert torch.equal(found, found.T)
    torch.testing.assert_close(found, want, rtol=1e-12 if dtype == torch.float64 else 1e-5, atol=1e-3)


def test_row_sums_add_up_to_the_square_of_the_sum():
    gradients = lists(4, torch.float64)
    together = sum(sum(parts).square().sum() for parts in zip(*gradients, strict=True))
    torch.testing.assert_close(gradient_gram(gradients).sum(), together)


def test_it_is_the_same_with_and_without_waiting_for_a_device():
    gradients = lists()
    flat = [part for row in gradients for part in row]
    torch.testing.assert_close(eager._on_a_device(flat, 3), gradient_gram(gradients), rtol=1e-5, atol=1e-3)


def test_any_layout_and_nothing_outside_is_touched():
    gradients = lists(2, shapes=[(6, 10), (7,)])
    want = gradient_gram(gradients)
    for layout in (strided, lambda x: x.t().contiguous().t() if x.ndim == 2 else x):
        torch.testing.assert_close(
            gradient_gram([[layout(x) for x in row] for row in gradients]), want, rtol=1e-5, atol=1e-5
        )
    copies, clean = guarded([x for row in gradients for x in row], shift=1)
    torch.testing.assert_close(gradient_gram([copies[:2], copies[2:]]), want, rtol=1e-5, atol=1e-5)
    assert clean()


def test_nan_shows():
    gradients = lists(2, shapes=[(5,), (3,)])
    gradients[1][0][2] = torch.nan
    found = gradient_gram(gradients)
    assert found.isnan().tolist() == [[False, True], [True, True]]


def test_opcheck_and_compile():
    gradients = lists(2, shapes=[(5,), (3, 2)])
    flat = [part for row in gradients for part in row]
    results = torch.library.opcheck(torch.ops.lightning_weights.gradient_gram.default, (flat, 2))
    assert set(results.values()) == {"SUCCESS"}
    compiled = torch.compile(gradient_gram, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(gradients), gradient_gram(gradients))


def test_bad_input():
    with pytest.raises(ValueError, match="no tensors; allowed are one list per objective"):
        gradient_gram([])
    with pytest.raises(ValueError, match="lists of 2, 1 tensors"):
        gradient_gram([[torch.ones(1), torch.ones(1)], [torch.ones(1)]])
    with pytest.raises(ValueError, match="same shapes"):
        gradient_gram([[torch.ones(2)], [torch.ones(3)]])
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match="TRITON_INTERPRET"):
        gradient_gram([[torch.ones(2)]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cost_model_is_what_moves(dtype):
    block, warps = pick_config()
    assert block == 16 * 32 * warps
    numels = [5000, 64]
    gradients = lists(3, dtype, [(numel,) for numel in numels])
    moved = cost(numels, 3, itemsize=dtype.itemsize)
    programs = -(-numels[0] // block) + 1
    assert moved.bytes_read == sum(x.nbytes for row in gradients for x in row) + 24 * programs + 8 * 3 * 2
    assert moved.bytes_written == 4 * pairs(3) * programs
    with Traffic() as traffic:
        rows = torch.stack([torch.cat(row) for row in gradients])
        _ = rows @ rows.T
    composed = cost_composed(numels, 3, itemsize=dtype.itemsize)
    # the traffic of operators that read lists is not seen by the meter
    assert traffic.written == pytest.approx(composed.bytes_written, rel=0.01)
    assert moved.bytes_read + moved.bytes_written < 2 / 3 * (composed.bytes_read + composed.bytes_written)
