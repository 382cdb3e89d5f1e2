"""Block size and cost model of the pulse update against sizes of tensors that are really read and written."""

import pytest

from lightning_weights.kernels.pulse_update import pulse_update_reference
from lightning_weights.kernels.pulse_update.cost import cost, cost_eager, pick_config
from tests.kernels.pulse_update_cases import arguments, tensors, varied
from tests.kernels.traffic import Traffic


@pytest.mark.parametrize("numel", [0, 1, 1 << 21, 1 << 22, 10**9])
@pytest.mark.parametrize("warp_size", [32, 64])
def test_blocks_fill_128_bit_accesses(numel, warp_size):
    block, warps = pick_config(numel, warp_size)
    assert block / (warps * warp_size) * 4 >= 16
    assert block & (block - 1) == 0


@pytest.mark.parametrize("mode", ["rising", "single"])
@pytest.mark.parametrize("maps", [0, 3])
def test_kernel_moves_every_device_once(mode, maps):
    grad, states = tensors(mode, (5000,))
    own = [m for kind in varied(mode, (5000,))[:3] for m in kind] if maps else []
    result = cost(5000, pair=mode == "rising", maps=maps)
    assert result.bytes_read == sum(t.nbytes for t in (grad, *states, *own))
    assert result.bytes_written == sum(t.nbytes for t in (grad, *states)) + 32 * 10
    assert result.flops > 0


def test_less_is_moved_than_by_the_composition():
    grad, states = tensors("rising", (4096,))
    with Traffic() as traffic:
        pulse_update_reference(grad, states, **arguments(("soft", "rising", "stochastic", "ideal")))
    model = cost_eager(4096)
    assert (traffic.read, traffic.written) == pytest.approx((model.bytes_read, model.bytes_written), rel=0.01)
    fused = cost(4096)
    assert (model.bytes_read + model.bytes_written) > 8 * (fused.bytes_read + fused.bytes_written)
