"""Block size and cost model of the sparse AdamW step against sizes of tensors that are really read and written."""

import pytest
import torch

from lightning_weights.kernels.sparse_adamw.cost import SECTOR, cost, cost_dense_mask, pick_config


@pytest.mark.parametrize("count", [0, 1, 1 << 20, 1 << 21, 10**9])
@pytest.mark.parametrize("warp_size", [32, 64])
def test_blocks_fill_128_bit_accesses(count, warp_size):
    block, warps = pick_config(count, warp_size)
    assert block / (warps * warp_size) * 4 >= 16
    assert block & (block - 1) == 0
    assert pick_config(1 << 20)[0] < pick_config(1 << 24)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gathered", [True, False])
def test_kernel_moves_every_chosen_entry_once(dtype, gathered):
    counts = [1000, 50_000]
    entries = [[torch.zeros(k, dtype=kind) for k in counts] for kind in (torch.int32, dtype, torch.float32)]
    idx, weight, moment = (sum(tensor.nbytes for tensor in tensors) for tensors in entries)
    grad = moment if gathered else weight
    result = cost(counts, param_itemsize=dtype.itemsize, grad_itemsize=dtype.itemsize, gathered=gathered)
    tables = 24 * (1 + 49) + 48 * 2
    assert result.bytes_read == idx + weight + grad + 2 * moment + tables
    assert result.bytes_written == weight + 2 * moment
    assert result.flops > 0


def test_single_entries_cost_a_sector_each():
    near, far = (cost([10**6], scattered=scattered) for scattered in (False, True))
    assert far.bytes_read - near.bytes_read == 2 * (SECTOR - 4) * 10**6
    assert far.bytes_written - near.bytes_written == (SECTOR - 4) * 10**6


def test_less_is_moved_than_with_a_dense_mask():
    weights, density = 10**7, 0.05
    dense = cost_dense_mask([weights], density)
    for scattered in (False, True):
        sparse = cost([round(density * weights)], scattered=scattered)
        moved = sparse.bytes_read + sparse.bytes_written
        assert moved < (dense.bytes_read + dense.bytes_written) / 4
