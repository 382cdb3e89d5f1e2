"""FOEM against the vectors of the authors' two implementations."""

import numpy as np
import pytest
import torch

from lightning_weights.functional.column_solver import FOEMConfig, InputStatistics, quantize_weight
from tests.helpers.golden import load

GOLDEN = load("foem")


def vector(name):
    return torch.tensor(GOLDEN[name])


def solve(config, dtype):
    found = InputStatistics(GOLDEN["W"].shape[1], asymmetric=True, dtype=dtype)
    for quantized, full in zip(vector("X_q"), vector("X_fp"), strict=True):
        found.update(quantized[None], full[None])
    return quantize_weight(vector("W"), found.hessian, found.asymmetry, config=config, dtype=dtype)


def assert_near(actual, name, tolerance):
    np.testing.assert_allclose(actual.numpy(), GOLDEN[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", range(len(GOLDEN["cases_v2"])))
def test_v2(case, dtype):
    bits, group_size, sym, act_order, static, block = (int(value) for value in GOLDEN["cases_v2"][case])
    alpha, beta = (float(value) for value in GOLDEN["alpha_beta_v2"][case])
    config = FOEMConfig(
        bits=bits,
        group_size=group_size,
        sym=bool(sym),
        act_order=bool(act_order),
        static_groups=bool(static),
        block_size=block,
        damp=float(GOLDEN["percdamp"]),
        alpha=alpha,
        beta=beta,
    )
    result = solve(config, dtype)
    assert_near(result.dequantized, f"v2_Q_{case}", 1e-5)
    assert_near(result.scale, f"v2_scale_{case}", 1e-5)
    assert_near(result.zero, f"v2_zero_{case}", 0.0)
    assert_near(result.g_idx, f"v2_gidx_{case}", 0)


@pytest.mark.parametrize("case", range(len(GOLDEN["cases_v1"])))
def test_v1(case):
    bits, group_size, sym, act_order, block, first_order, asymmetric = (int(v) for v in GOLDEN["cases_v1"][case])
    alpha, beta = (float(value) for value in GOLDEN["alpha_beta_v1"][case])
    config = FOEMConfig(
        variant="v1",
        bits=bits,
        group_size=group_size,
        sym=bool(sym),
        act_order=bool(act_order),
        block_size=block,
        damp=float(GOLDEN["percdamp"]),
        alpha=alpha * asymmetric,
        beta=beta * first_order,
    )
    result = solve(config, torch.float32)
    expected = GOLDEN[f"v1_Q_{case}"]
    assert_near(result.g_idx, f"v1_gidx_{case}", 0)
    step = result.scale[:, result.g_idx.long()].numpy()
    same = np.abs(result.dequantized.numpy() - expected) < 0.5 * step
    assert same.mean() >= 0.99
    assert np.abs(result.dequantized.numpy() - expected).mean() < 1e-3
    print(case, same.mean(), np.abs(result.dequantized.numpy() - expected).mean())
