"""Tiles and cost models of a block of columns against sizes of tensors that are really read and written."""

import pytest
import torch

from lightning_weights.kernels.compensate_columns.cost import (
    HELD,
    LONGEST_BLOCK,
    LONGEST_GROUP,
    ROWS,
    cost,
    cost_column_loop,
    pick_config,
)


@pytest.mark.parametrize("pull_all", [False, True])
@pytest.mark.parametrize("warp_size", [32, 64])
@pytest.mark.parametrize("block", [1, 16, 96, 128, 300, LONGEST_BLOCK])
def test_registers_hold_the_block(block, warp_size, pull_all):
    tiles = pick_config(block, search=block, warp_size=warp_size, pull_all=pull_all)
    assert block <= tiles.block < 2 * max(block, 16)
    assert tiles.group <= LONGEST_GROUP
    held = (1 + pull_all) * tiles.block * ROWS
    assert held <= HELD * tiles.warps * warp_size
    assert tiles.warps == 1 or held * 2 > HELD * tiles.warps * warp_size  # half as many would not do
    assert tiles.warps * warp_size <= 1024
    assert ROWS * torch.float32.itemsize == 32  # a sector of memory


@pytest.mark.parametrize(("pairs", "drifts"), [(1, False), (2, True)])
def test_kernel_moves_the_tensors(pairs, drifts):
    block, rows = 128, 4096
    found = cost(block, rows, pairs=pairs, drifts=drifts)
    tile = torch.empty(block, rows)
    later = torch.ones(block, block).triu(1).count_nonzero().item()
    read = (1 + drifts + 2) * tile.nbytes + rows // ROWS * 4 * (pairs * later + 2 * block)
    assert found.bytes_read == read
    assert found.bytes_written == tile.numel() + pairs * tile.nbytes + 4 * rows
    searched = cost(block, rows, pairs=pairs, drifts=drifts, search=48)  # the third group has columns behind the block
    assert searched.bytes_read - found.bytes_read == torch.empty(144, rows).nbytes
    assert searched.bytes_written - found.bytes_written == 2 * torch.empty(3, rows).nbytes
    assert cost(block, rows, search=48, clip=True).flops > cost(block, rows, search=48).flops > found.flops / pairs


@pytest.mark.parametrize(("pairs", "drifts"), [(1, False), (2, True)])
def test_less_is_moved_than_by_the_loop(pairs, drifts):
    loop, fused = (function(128, 4096, pairs=pairs, drifts=drifts) for function in (cost_column_loop, cost))
    assert loop.bytes_read + loop.bytes_written > 10 * (fused.bytes_read + fused.bytes_written)
