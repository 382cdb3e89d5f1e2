"""The penalties against closed forms in float64, and their invariants."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.tscnc import (
    condition_numbers,
    condition_penalty,
    geometric_mean_condition,
    transformed_l1,
    tsc_penalty,
)

SHAPES = st.floats(1e-3, 1e4)
SIZES = st.floats(0, 1e6)


@settings(deadline=None)
@given(s=SIZES, step=st.floats(1e-6, 1e3), a=SHAPES)
def test_transformed_l1_rises_and_is_bounded(s, step, a):
    low, middle, high = (transformed_l1(torch.tensor(x, dtype=torch.float64), a) for x in (s, s + step / 2, s + step))
    rounding = 1e-15 * (a + 1)
    assert 0 <= low <= middle + rounding <= high + 2 * rounding < (a + 1) * (1 + 1e-14)
    assert middle >= (low + high) / 2 - 1e-9 * (1 + high)  # concave
    assert abs(low - s) <= s * abs(1 - s) / (a + s) * (1 + 1e-9) + 1e-12
    assert transformed_l1(torch.tensor(-s, dtype=torch.float64), a) == low


@settings(deadline=None)
@given(a=SHAPES)
def test_transformed_l1_fixes_zero_and_one(a):
    ends = transformed_l1(torch.tensor([0.0, 1.0], dtype=torch.float64), a)
    np.testing.assert_allclose(ends, [0.0, 1.0], rtol=1e-14)


@settings(deadline=None)
@given(s=st.floats(1e-3, 1e3), a=SHAPES)
def test_transformed_l1_slope(s, a):
    x = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(transformed_l1(x, a), x)
    assert slope.item() == pytest.approx((a + 1) * a / (a + s) ** 2, rel=1e-9)


def test_without_gates_it_is_weight_decay():
    tensors = [torch.randn(4, 3, requires_grad=True), torch.randn(4, requires_grad=True)]
    norm = torch.randn(4, requires_grad=True)
    rule = {"num_samples": 1234, "weight_decay": 5e-2, "weight": 0.7}
    tsc_penalty([], tensors, [norm], **rule).backward()
    for tensor in tensors:
        torch.testing.assert_close(tensor.grad, 5e-2 * 0.7 * tensor.detach())
    torch.testing.assert_close(norm.grad, 5e-2 * norm.detach())  # λ does not scale it


def test_gated_filters_pay_the_transformed_energy():
    weight, keep = torch.randn(3, 2, 5, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    rule = {"num_samples": 100, "weight_decay": 0.1, "l0": 0.3, "a": 7.0, "weight": 2.0, "droprate": 0.4}
    energy = keep * (0.5 * 10 / 0.6 * weight.square().sum((1, 2)) + 0.3 * 10)
    want = 2.0 / 100 * transformed_l1(energy, 7.0).sum()
    torch.testing.assert_close(tsc_penalty([(weight, keep)], [], [], **rule), want)


@pytest.mark.parametrize("mode", ["logdet", "released", "amgm"])
@pytest.mark.parametrize("shape", [(4, 11), (11, 4), (4, 2, 3)])
def test_condition_penalty_is_the_closed_form(mode, shape):
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    values = np.linalg.svd(weight.detach().flatten(1).numpy(), compute_uv=False)
    eigenvalues = values**2 / len(values)
    log_det = np.log(eigenvalues).sum()
    want = {
        "logdet": (log_det / len(values)) ** 2,
        "released": math.log(1e-5 + eigenvalues.prod()) ** 2,
        "amgm": math.log(eigenvalues.mean()) - log_det / len(values),
    }[mode]
    assert condition_penalty(weight, mode).item() == pytest.approx(want, rel=1e-10)
    scale = {"logdet": len(values) ** 2, "released": 1, "amgm": len(values)}[mode]
    assert condition_penalty(weight, mode, normalize=False).item() == pytest.approx(scale * want, rel=1e-10)
    assert torch.autograd.gradcheck(lambda w: condition_penalty(w, mode), weight)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10))
def test_invariances(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(9, 4, dtype=torch.float64, generator=generator)
    left = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator)).Q
    for mode in ("logdet", "released", "amgm"):
        penalty = condition_penalty(weight, mode)
        torch.testing.assert_close(condition_penalty(left @ weight @ right, mode), penalty, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(condition_penalty(weight.T, mode), penalty, rtol=1e-8, atol=1e-10)
    amgm = condition_penalty(weight, "amgm")
    torch.testing.assert_close(condition_penalty(scale * weight, "amgm"), amgm, rtol=1e-8, atol=1e-10)
    assert amgm > 0
    # any spectrum with product 1 is a minimum of logdet, but only κ = 1 of amgm
    gram = weight.T @ weight / 4
    scaled = weight / torch.linalg.det(gram) ** (1 / 8)
    assert condition_penalty(scaled, "logdet") < 1e-20
    assert condition_penalty(3.0 * left[:, :4], "amgm").abs() < 1e-12
    # for det G > 1e-2 the released formula agrees, up to its eps
    lifted = weight * (1.5 / torch.linalg.det(gram)) ** (1 / 8)
    logdet = condition_penalty(lifted, "logdet", normalize=False)
    torch.testing.assert_close(condition_penalty(lifted, "released"), logdet, rtol=1e-3, atol=1e-3)
    _assert_condition_bound(gram)


def _assert_condition_bound(gram):
    n = len(gram)
    x = torch.sqrt(1 - torch.linalg.det(gram) / (gram.trace() / n) ** n)
    assert torch.linalg.cond(gram) <= (1 + x) / (1 - x) * (1 + 1e-9)


def test_a_head_of_100_classes_learns_its_condition():
    weight = (torch.randn(100, 160) * (2 / 160) ** 0.5).requires_grad_()
    with pytest.warns(LightningWeightsWarning, match="no gradient.*mode='logdet'"):
        (dead,) = torch.autograd.grad(condition_penalty(weight, "released"), weight)
    assert dead.norm() == 0
    (alive,) = torch.autograd.grad(condition_penalty(weight), weight)
    assert alive.norm() > 0.1
    before = torch.linalg.cond(weight.detach())
    optimizer = torch.optim.SGD([weight], lr=1.0)
    for _ in range(60):
        optimizer.zero_grad()
        (condition_penalty(weight) + 5e-4 * weight.square().sum()).backward()
        optimizer.step()
    assert torch.linalg.cond(weight.detach()) < before / 2


@pytest.mark.parametrize("mode", ["logdet", "amgm"])
@pytest.mark.parametrize(
    "weight",
    [torch.zeros(3, 5), torch.ones(300, 300), torch.eye(4, 9) * torch.tensor([1.0, 1e-30, 0, 1])[:, None]],
    ids=["zero", "rank one", "two lost"],
)
def test_singular_matrices_give_finite_numbers(mode, weight):
    weight = weight.clone().requires_grad_()
    penalty = condition_penalty(weight, mode)
    (gradient,) = torch.autograd.grad(penalty, weight)
    assert penalty.isfinite()
    assert gradient.isfinite().all()


def test_autocast_does_not_reach_it():
    weight = torch.randn(6, 20)
    with torch.autocast("cpu", torch.bfloat16):
        inside = condition_penalty(weight)
    assert torch.equal(inside, condition_penalty(weight))
    assert inside.dtype == torch.float32


def test_bad_input():
    for dtype in (torch.float16, torch.bfloat16, torch.int64):
        with pytest.raises(ValueError, match="allowed are float32 and float64"):
            condition_penalty(torch.ones(2, 3, dtype=dtype))
    with pytest.raises(ValueError, match="weight has shape"):
        condition_penalty(torch.ones(3))
    with pytest.raises(ValueError, match="mode is 'det'"):
        condition_penalty(torch.ones(2, 3), mode="det")
    with pytest.raises(ValueError, match="eps is 0"):
        condition_penalty(torch.ones(2, 3), eps=0.0)
    with pytest.raises(ValueError, match="a is 0"):
        transformed_l1(torch.ones(1), 0.0)
    with pytest.raises(ValueError, match="are empty"):
        tsc_penalty([], [], [], num_samples=1)
    with pytest.raises(ValueError, match="num_samples is 0"):
        tsc_penalty([], [torch.ones(1)], [], num_samples=0)
    with pytest.raises(ValueError, match="has its pole"):
        tsc_penalty([(torch.ones(1, 9), torch.ones(1))], [], [], num_samples=10**6, a=1.0, released_sign=True)
    with pytest.raises(ValueError, match="numbers is empty"):
        geometric_mean_condition({})


def test_condition_numbers_are_numpys():
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 4))
    numbers = condition_numbers(network)
    want = {name: np.linalg.cond(network[int(name)].weight.detach().double().flatten(1).numpy()) for name in "03"}
    assert numbers == pytest.approx(want)
    assert geometric_mean_condition(numbers) == pytest.approx(math.sqrt(want["0"] * want["3"]))
    with torch.no_grad():
        network[3].weight[1] = 0
    assert condition_numbers(network)["3"] == math.inf
    assert geometric_mean_condition(condition_numbers(network)) == math.inf
