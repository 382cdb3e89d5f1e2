"""Adam's arithmetic against the equation in fp64."""

import numpy as np
import pytest
import torch

from lightning_weights.functional.adam import dense_adamw, step_size


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dense_adamw_is_the_equation(dtype):
    state = torch.promote_types(dtype, torch.float32)
    weight, m, v = torch.randn(7).to(dtype), torch.zeros(7, dtype=state), torch.zeros(7, dtype=state)
    w64, m64, v64 = weight.double().numpy(), np.zeros(7), np.zeros(7)
    rule = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    for t in range(1, 5):
        gradient = torch.randn(7).to(dtype)
        g = gradient.double().numpy()
        m64, v64 = 0.9 * m64 + 0.1 * g, 0.95 * v64 + 0.05 * g * g
        size = 0.1 * np.sqrt(1 - 0.95**t) / (1 - 0.9**t)
        w64 = (w64 - size * m64 / (np.sqrt(v64) + 1e-3)) * (1 - 0.1 * 0.1)
        dense_adamw(weight, gradient, m, v, step=t, **rule)
        assert step_size(t, lr=0.1, betas=(0.9, 0.95)) == pytest.approx(size, rel=1e-12)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 3e-2}[dtype]
    np.testing.assert_allclose(weight.double().numpy(), w64, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(v.double().numpy(), v64, rtol=max(tolerance, 1e-6) if state == torch.float32 else 1e-12)
