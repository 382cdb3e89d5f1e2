"""Block size, vector and cost model of the joint loss."""

import pytest
import torch
from torch.nn import functional as F

from lightning_weights.kernels.distillation_loss.cost import cost, cost_composed, pick_config, pick_vector
from tests.kernels.traffic import Traffic


@pytest.mark.parametrize("classes", [1, 2, 100, 256, 1000, 4096, 4097, 150_000])
@pytest.mark.parametrize("warp_size", [32, 64])
def test_blocks_hold_a_row_or_the_largest_piece(classes, warp_size):
    block, warps = pick_config(classes, warp_size)
    assert block & (block - 1) == 0
    assert block >= min(classes, 4096)
    assert block == 8 * warps * warp_size  # 128 bits of the narrowest dtype per thread
    assert 1 <= warps <= 32


def test_the_vector_divides_everything():
    assert [pick_vector(c, k, c, k) for c, k in ((1000, 896), (1000, 900), (10, 8), (10, 7), (4096, 4096))] == [
        8,
        4,
        2,
        1,
        8,
    ]
    assert pick_vector(64, 32, 65, 32) == 1  # padded rows start anywhere


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [1000, 50_000])
def test_kernels_move_every_tensor_once(dtype, classes):
    student, teacher = torch.zeros(8, classes, dtype=dtype), torch.zeros(8, classes // 2)
    targets, losses, statistics = torch.zeros(8, dtype=torch.int64), torch.zeros(8), torch.zeros(3, 8)
    forward, backward = cost(8, classes, classes // 2, itemsize=dtype.itemsize)
    assert forward.bytes_read == student.nbytes + teacher.nbytes + targets.nbytes + 8 * dtype.itemsize
    assert forward.bytes_written == losses.nbytes + statistics.nbytes
    per_block = targets.nbytes + statistics.nbytes + 8 * 4  # and the gradient of the loss
    blocks = -(-classes // 4096)
    assert backward.bytes_read == student.nbytes + teacher.nbytes + blocks * per_block
    assert backward.bytes_written == student.nbytes
    assert forward.flops > 0 < backward.flops


@pytest.mark.parametrize("known", [500, 3999])
def test_composed_cost_is_what_its_operators_move(known):
    student, teacher = torch.randn(4, 4000, requires_grad=True), torch.randn(4, known)
    targets, expected = torch.zeros(4, dtype=torch.int64), cost_composed(4, 4000, known)
    with Traffic() as forward:
        log_q, q_hat = F.log_softmax(student[:, :known] / 2, dim=1), F.softmax(teacher / 2, dim=1)
        loss = 0.25 * F.cross_entropy(student, targets) + 0.75 * -(q_hat * log_q).sum(1).mean()
    with Traffic() as backward:
        loss.backward()
    for measured, model in zip((forward, backward), expected, strict=True):
        assert measured.read == pytest.approx(model.bytes_read, rel=2e-3)
        assert measured.written == pytest.approx(model.bytes_written, rel=2e-3)


def test_fusing_removes_more_than_a_third():
    moved = [
        sum(part.bytes_read + part.bytes_written for part in parts(256, 1000, 750)) for parts in (cost, cost_composed)
    ]
    assert moved[0] < 2 / 3 * moved[1]
