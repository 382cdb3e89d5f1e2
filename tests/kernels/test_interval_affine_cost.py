"""Tiles and cost models of interval propagation against sizes of tensors that are really read and written."""

import pytest
import torch

from lightning_weights.kernels.interval_affine import cost, eager, interval_affine
from tests.kernels.interval_affine_cases import NAMES, VARIANTS, call, operands
from tests.kernels.traffic import Traffic

SHAPE = (24, 32, 128)


@pytest.mark.parametrize("warp_size", [32, 64])
@pytest.mark.parametrize(("inner", "columns"), [(512, 512), (27, 64), (512, 10)])
def test_tiles_fill_the_threads(inner, columns, warp_size):
    tiles, even = cost.pick_config(inner, columns, warp_size)
    assert even == (inner % tiles.inner == 0 and columns % tiles.columns == 0)
    assert tiles.rows * tiles.columns >= 4 * tiles.warps * warp_size  # 16 bytes of each result per thread
    assert tiles.warps * warp_size in (128, 256)
    backward, (margins, _) = cost.backward_tiles(warp_size), cost.margin_tiles(512, warp_size)
    assert backward.rows * backward.columns >= 4 * backward.warps * warp_size
    assert margins.rows * margins.inner >= 4 * margins.warps * warp_size


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_kernel_moves_every_tensor_once(variant):
    data = operands(SHAPE)
    arguments = [data[name] for name in NAMES[:3]] + [data["bias"]] * variant["bias"]
    arguments += [data["scale"], data["shift"]] * variant["affine"]
    raw = torch.ops.lightning_weights.interval_affine.default(
        *arguments[:3],
        data["bias"] if variant["bias"] else None,
        *([data["scale"], data["shift"]] if variant["affine"] else [None, None]),
        variant["relu"],
        False,
    )
    partial = 32 * 2  # sums of two tiles, reduced to `sums` afterwards
    result = cost.cost(*SHAPE, **variant)
    assert result.bytes_read == sum(tensor.nbytes for tensor in arguments)
    assert result.bytes_written == sum(tensor.nbytes for tensor in raw) - raw[2].nbytes + partial


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_eager_cost_is_what_its_operators_move(variant):
    data = operands(SHAPE)
    vectors = [data["bias"] if variant["bias"] else None]
    vectors += [data[name] if variant["affine"] else None for name in ("scale", "shift")]
    with Traffic() as traffic:
        eager.affine_forward(*(data[name] for name in NAMES[:3]), *vectors, variant["relu"], False)
    expected = cost.cost_eager(*SHAPE, **variant)
    assert abs(traffic.read - expected.bytes_read) <= 64
    assert abs(traffic.written - expected.bytes_written) <= 64  # the sums


@pytest.mark.parametrize("affine", [True, False])
def test_backward_kernel_moves_every_tensor_once(affine):
    rows, columns = 24, 128
    tensor, vector, blocks = rows * columns * 4, columns * 4, 3
    result = cost.cost_backward(rows, columns, grads=2, affine=affine)
    assert result.bytes_read == tensor * (2 + 2 + affine) + vector * affine + 32
    assert result.bytes_written == 2 * tensor + vector * blocks * (3 if affine else 1)


def test_products_dominate_the_arithmetic_of_wide_layers():
    result = cost.cost(256, 512, 512)
    products = 2 * 2 * 256 * 512 * 512
    assert products < result.flops < 1.05 * products
    assert cost.cost(256, 512, 512, sound=True).flops > 1.45 * products


def test_fusing_removes_more_than_a_third():
    fused, composed = cost.cost(256, 512, 512), cost.cost_eager(256, 512, 512)
    assert fused.bytes_read + fused.bytes_written < 2 / 3 * (composed.bytes_read + composed.bytes_written)


def test_margin_head_moves_every_tensor_once():
    center, weight, labels = torch.zeros(128, 512), torch.zeros(200, 512), torch.zeros(128, dtype=torch.int64)
    result = cost.cost_margins(128, 200, 512)
    assert result.bytes_read == 2 * center.nbytes + weight.nbytes + weight[:, 0].numel() * 4 + labels.nbytes
    assert result.bytes_written == 128 * 199 * 4


def test_results_of_the_public_function_are_those_that_are_counted():
    out = call(interval_affine, operands(SHAPE), VARIANTS[0])
    assert [tuple(tensor.shape) for tensor in out] == [(24, 128)] * 4 + [(8,)]
