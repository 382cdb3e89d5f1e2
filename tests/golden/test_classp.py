"""CLASSP against the vectors of the author's code and of the equations in float64."""

import numpy as np
import pytest
import torch

from lightning_weights.optimizers import CLASSP
from tests.helpers.golden import cases, load

pytestmark = pytest.mark.filterwarnings("ignore:threshold is:lightning_weights.errors.LightningWeightsWarning")

GOLDEN = load("classp")
REFERENCE_CASES = cases(GOLDEN, "ref_", "_hparams")
EQUATION_CASES = cases(GOLDEN, "eq_", "_hparams")
PARAMS = len([name for name in GOLDEN if name.startswith("p") and name.endswith("_init")])
STEPS = GOLDEN["grads0"].shape[0]


def fresh_params(dtype):
    return [torch.nn.Parameter(torch.tensor(GOLDEN[f"p{i}_init"], dtype=dtype)) for i in range(PARAMS)]


def set_gradients(params, step):
    for i, param in enumerate(params):
        param.grad = torch.tensor(GOLDEN[f"grads{i}"][step], dtype=param.dtype)


def assert_params_match(params, prefix, step, tolerance):
    for i, param in enumerate(params):
        name = f"{prefix}_p{i}_step{step}"
        if name in GOLDEN:
            np.testing.assert_allclose(param.detach().numpy(), GOLDEN[name], rtol=0, atol=tolerance, err_msg=name)


def assert_sums_match(optimizer, params, prefix, tolerance):
    for i, param in enumerate(params):
        name = f"{prefix}_gradsum{i}_step{STEPS}"
        expected = GOLDEN[name]
        actual = optimizer.state[param]["grad_sum"].numpy() if optimizer.state[param] else np.zeros_like(expected)
        # Accumulators can be large, where the spacing of float32 exceeds any absolute tolerance.
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("case", REFERENCE_CASES)
def test_reference_variant_repeats_the_authors_code(case):
    lr, threshold, eps, power, decay = GOLDEN[f"ref_{case}_hparams"].tolist()
    params = fresh_params(torch.float32)
    optimizer = CLASSP(
        params, lr=lr, threshold=threshold, eps=eps, power=power, apply_decay=bool(decay), variant="reference"
    )
    for step in range(STEPS):
        if case.startswith("sched"):  # the author's schedule: two steps without decay, then decay and no threshold
            optimizer.param_groups[0].update(apply_decay=step >= 2, threshold=threshold if step < 2 else 0.0)
        set_gradients(params, step)
        optimizer.step()
        assert_params_match(params, f"ref_{case}", step + 1, 1e-6)
    assert_sums_match(optimizer, params, f"ref_{case}", 1e-6)
    assert optimizer.average_grad_sum() == pytest.approx(float(GOLDEN[f"ref_{case}_average_grad_sum"]), abs=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("case", EQUATION_CASES)
def test_paper_variant_is_the_equation(case, dtype, tolerance):
    lr, threshold, eps, power = GOLDEN[f"eq_{case}_hparams"].tolist()
    params = fresh_params(dtype)
    optimizer = CLASSP(params, lr=lr, threshold=threshold, eps=eps, power=power)
    numel = sum(param.numel() for param in params)
    for step in range(STEPS):
        optimizer.param_groups[0]["apply_decay"] = bool(GOLDEN[f"eq_{case}_decay"][step])
        set_gradients(params, step)
        optimizer.step()
        assert round(optimizer.update_fraction() * numel) == GOLDEN[f"eq_{case}_updated_per_step"][step]
        assert_params_match(params, f"eq_{case}", step + 1, tolerance)
    assert_sums_match(optimizer, params, f"eq_{case}", tolerance)


def test_power_two_without_threshold_is_adagrad():
    lr, initial = GOLDEN["adagrad_hparams"].tolist()
    params = fresh_params(torch.float64)
    optimizer = CLASSP(params, lr=lr, threshold=0.0, power=2.0, eps=initial)
    for step in range(STEPS):
        set_gradients(params, step)
        optimizer.step()
    assert_params_match(params, "adagrad", STEPS, 1e-15)
