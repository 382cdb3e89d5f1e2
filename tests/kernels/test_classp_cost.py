"""Block size and cost model of the CLASSP step against sizes of tensors that are really read and written."""

import pytest
import torch

from lightning_weights.kernels.classp_step import eager
from lightning_weights.kernels.classp_step.cost import cost, cost_eager, pick_config
from tests.kernels.classp_cases import lists
from tests.kernels.traffic import Traffic


@pytest.mark.parametrize("numel", [0, 1, 1000, 1 << 22, 10**9])
@pytest.mark.parametrize("itemsize", [1, 2, 4])
@pytest.mark.parametrize("warp_size", [32, 64])
def test_blocks_fill_128_bit_accesses(numel, itemsize, warp_size):
    block, warps = pick_config(numel, itemsize, warp_size)
    per_thread = block / (warps * warp_size)
    assert per_thread * itemsize >= 16
    assert block & (block - 1) == 0
    assert block < 1 << 15  # the kernel packs two counts of at most a block into 32 bits


def test_small_launches_have_more_programs():
    assert pick_config(1 << 20, 4)[0] < pick_config(1 << 24, 4)[0]


@pytest.mark.parametrize(
    ("param_dtype", "grad_dtype"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("float32", "float16")]
)
def test_kernel_moves_every_tensor_once(param_dtype, grad_dtype):
    params = [
        torch.zeros(1000, dtype=getattr(torch, param_dtype)),
        torch.zeros(50_000, dtype=getattr(torch, param_dtype)),
    ]
    grads = [torch.zeros(len(param), dtype=getattr(torch, grad_dtype)) for param in params]
    sums = [torch.zeros(len(param)) for param in params]
    sizes = {name: sum(t.nbytes for t in tensors) for name, tensors in (("w", params), ("g", grads), ("a", sums))}
    numels = [1000, 50_000]
    result = cost(numels, param_itemsize=params[0].itemsize, grad_itemsize=grads[0].itemsize)
    programs = 1 + -(-50_000 // 1024)
    assert result.bytes_read == sizes["w"] + sizes["g"] + sizes["a"] + 24 * (programs + 2)
    assert result.bytes_written == sizes["w"] + sizes["a"] + 8 * programs


def test_fp32_weights_cost_20_bytes_and_skipped_ones_4():
    million = 10**6
    everything, half, nothing = (cost([million], skipped=skipped) for skipped in (0, million // 2, million))
    moved = [result.bytes_read + result.bytes_written for result in (everything, half, nothing)]
    tables = moved[2] - 4 * million
    assert tables < 0.01 * moved[0]
    assert [total - tables for total in moved] == [20 * million, 12 * million, 4 * million]
    assert everything.flops > half.flops > nothing.flops > 0


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("decay", [True, False])
def test_eager_cost_is_what_its_operators_move(power, decay):
    data = lists([(4096,), (777,)])
    with Traffic() as traffic:
        counts = torch.zeros(2, dtype=torch.int64)
        before = traffic.read, traffic.written
        eager.step_in_cache(*data, counts, 0.1, 1e-4, power, 1e-5, decay, False)
    expected = cost_eager([4096, 777], power=power, apply_decay=decay)
    counters = 32  # bytes of the counter and what is added to it, written once
    assert abs(traffic.read - before[0] - expected.bytes_read) <= counters
    assert abs(traffic.written - before[1] - expected.bytes_written) <= counters


def test_fusing_removes_more_than_a_third():
    fused, composed = cost([10**6]), cost_eager([10**6])
    assert fused.bytes_read + fused.bytes_written < 2 / 3 * (composed.bytes_read + composed.bytes_written)
