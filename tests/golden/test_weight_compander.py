"""Weight Compander against closed forms in double precision: nobody has published code to make vectors with."""

import math

import pytest
import torch

from lightning_weights.functional.weight_compander import compand_inverse
from lightning_weights.kernels.compand import LIMITS, compand
from lightning_weights.modules import Compander

HALF, THIRD = math.log(3.0) / 2, math.sqrt(3.0)
# function, v, a, b: w, ∂w/∂v, ∂w/∂a, ∂w/∂b
CLOSED_FORMS = {
    "arctan at its width": ("arctan", 1.0, 2.0, 1.0, math.pi / 2, 1.0, math.pi / 4, -1.0),
    "arctan beyond it": ("arctan", -THIRD, 3.0, 1.0, -math.pi, 0.75, -math.pi / 3, 0.75 * THIRD),
    "arctan at zero": ("arctan", 0.0, 3.0, 2.0, 0.0, 1.5, 0.0, 0.0),
    "tanh": ("tanh", HALF, 2.0, 1.0, 1.0, 1.5, 0.5, -1.5 * HALF),
    "softsign": ("softsign", -3.0, 2.0, 1.0, -1.5, 0.125, -0.75, 0.375),
}


@pytest.mark.parametrize("case", CLOSED_FORMS)
def test_weights_and_derivatives(case):
    function, *point, weight, by_latent, by_a, by_b = CLOSED_FORMS[case]
    leaves = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in point]
    found = compand(*leaves, function)
    slopes = torch.autograd.grad(found, leaves)
    assert float(found.detach()) == pytest.approx(weight, rel=1e-14, abs=1e-15)
    assert [float(slope) for slope in slopes] == pytest.approx([by_latent, by_a, by_b], rel=1e-13, abs=1e-15)


@pytest.mark.parametrize("case", [case for case in CLOSED_FORMS if "beyond" not in case])
def test_inverse(case):
    function, latent, a, b, weight, *_ = CLOSED_FORMS[case]
    found = compand_inverse(*(torch.tensor([x], dtype=torch.float64) for x in (weight, a, b)), function)
    assert float(found) == pytest.approx(latent, rel=1e-14)


def test_inverse_and_bound_of_the_specification():
    found = compand_inverse(*(torch.tensor([x], dtype=torch.float64) for x in (1.0, 2.0, 1.0)))
    assert float(found) == pytest.approx(0.5463024898437905, rel=1e-15)
    assert 2.0 * LIMITS["arctan"] == math.pi
    assert float(Compander(2.0, 1.0).bound) == pytest.approx(math.pi, rel=1e-6)


def test_a_step_of_latents_is_a_preconditioned_step_of_weights():
    """To first order Δw = -η (a/b)² cos⁴(w/a) ∂L/∂w."""
    a, b, rate = (torch.tensor(x, dtype=torch.float64) for x in (3.0, 2.0, 1e-6))
    latent = torch.linspace(-9, 9, 31, dtype=torch.float64).requires_grad_()
    upstream = torch.randn(31, dtype=torch.float64)
    weight = compand(latent, a, b)
    (slope,) = torch.autograd.grad(weight, latent, upstream)
    moved = compand(latent.detach() - rate * slope, a, b) - weight.detach()
    expected = -rate * (a / b) ** 2 * torch.cos(weight.detach() / a) ** 4 * upstream
    torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-13)
