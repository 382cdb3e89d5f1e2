"""Block size and cost model of the cross-entropy per sample."""

import pytest
import torch
from torch.nn import functional as F

from lightning_weights.kernels.weighted_cross_entropy.cost import cost, cost_composed, pick_config
from tests.kernels.traffic import Traffic


@pytest.mark.parametrize("classes", [1, 2, 100, 256, 1000, 4096, 4097, 150_000])
@pytest.mark.parametrize("warp_size", [32, 64])
def test_blocks_hold_a_row_or_the_largest_piece(classes, warp_size):
    block, warps = pick_config(classes, warp_size)
    assert block & (block - 1) == 0
    assert block >= min(classes, 4096)
    assert block == 8 * warps * warp_size  # 128 bits of the narrowest dtype per thread
    assert 1 <= warps <= 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [1000, 50_000])
def test_kernels_move_every_tensor_once(dtype, classes):
    logits, labels = torch.zeros(8, classes, dtype=dtype), torch.zeros(8, dtype=torch.int64)
    losses, normalizers = torch.zeros(8), torch.zeros(8)
    forward, backward = cost(8, classes, itemsize=dtype.itemsize)
    assert forward.bytes_read == logits.nbytes + labels.nbytes + 8 * dtype.itemsize
    assert forward.bytes_written == losses.nbytes + normalizers.nbytes
    blocks = -(-classes // 4096)
    assert backward.bytes_read == logits.nbytes + blocks * (labels.nbytes + losses.nbytes + normalizers.nbytes)
    assert backward.bytes_written == logits.nbytes
    assert forward.flops > 0 < backward.flops


def test_ignored_tokens_are_written_and_not_read():
    (all_forward, all_backward), (forward, backward) = (cost(8, 5000, counted=counted) for counted in (None, 2))
    assert all_forward.bytes_read - forward.bytes_read == 6 * (5000 + 1) * 2
    assert all_backward.bytes_read - backward.bytes_read == 6 * 5000 * 2
    assert all_backward.bytes_written == backward.bytes_written


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_composed_cost_is_what_its_operators_move(dtype):
    logits = torch.randn(4, 4000).to(dtype).requires_grad_()
    labels, expected = torch.zeros(4, dtype=torch.int64), cost_composed(4, 4000, itemsize=dtype.itemsize)
    with Traffic() as forward:
        loss = F.cross_entropy(logits.float(), labels, reduction="none").mean()
    with Traffic() as backward:
        loss.backward()
    for measured, model in zip((forward, backward), expected, strict=True):
        assert measured.read == pytest.approx(model.bytes_read, rel=2e-3)
        assert measured.written == pytest.approx(model.bytes_written, rel=2e-3)


def test_fusing_removes_more_than_two_thirds():
    moved = [sum(part.bytes_read + part.bytes_written for part in parts(64, 49_152)) for parts in (cost, cost_composed)]
    assert moved[0] < moved[1] / 3
